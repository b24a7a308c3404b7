"""A small judge of JSON against JSON schemas: the part of the standard that our own schemas use, and nothing else."""

from __future__ import annotations

from typing import Any

_TYPES = {"string": str, "boolean": bool, "array": list, "object": dict, "null": type(None)}
_KNOWN = {
    *("$ref", "additionalProperties", "anyOf", "const", "default", "description", "enum", "format", "items"),
    *("properties", "required", "title", "type"),
}


def faults(value: Any, schema: Any, schemas: dict[str, Any], where: str = "it") -> list[str]:
    """Each place in which ``value`` does not conform to ``schema``; references lead into ``schemas``."""
    if schema is True:
        return []
    unknown = set(schema) - _KNOWN
    if unknown:
        return [f"{where}: this judge does not know {unknown}"]
    if "$ref" in schema:
        return faults(value, schemas[schema["$ref"].removeprefix("#/schemas/")], schemas, where)
    if "anyOf" in schema:
        tried = [faults(value, one, schemas, where) for one in schema["anyOf"]]
        return [] if [] in tried else [f"{where}: none of {len(tried)}: {tried}"]
    if not _is(value, schema.get("type")):
        return [f"{where}: {value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        return [f"{where}: {value!r} is not in {schema['enum']}"]
    found = []
    if isinstance(value, list) and "items" in schema:
        found += [
            fault for n, one in enumerate(value) for fault in faults(one, schema["items"], schemas, f"{where}[{n}]")
        ]
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, one in value.items():
            below = properties.get(name, schema.get("additionalProperties", not properties))
            if below is False:
                found.append(f"{where}.{name} is not described")
            else:
                found += faults(one, below, schemas, f"{where}.{name}")
    return found


def _is(value: Any, name: str | None) -> bool:
    if name is None:
        return True
    if name in ("integer", "number"):
        return isinstance(value, int if name == "integer" else int | float) and not isinstance(value, bool)
    return isinstance(value, _TYPES[name])
