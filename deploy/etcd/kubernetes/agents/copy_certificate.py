"""Copies the secret `agent-tls` of the namespace codomyrmex-etcd into codomyrmex-agents, since a pod mounts secrets of
its own namespace alone. Python's standard library is all it needs.

If codomyrmex-etcd has the ConfigMap `client-ca-bundle`, its `ca.crt` replaces the secret's: during a rotation agents
trust the old authority and the new one.
"""

import base64
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SOURCE, TARGET, NAME, BUNDLE = "codomyrmex-etcd", "codomyrmex-agents", "agent-tls", "client-ca-bundle"
PARTS = ("ca.crt", "tls.crt", "tls.key")
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_LOOK = f"cert-manager makes it: see kubectl -n {SOURCE} describe certificate agent"
Object = dict[str, Any]


class Problem(Exception):
    """An error with the next step for an operator."""


def copied(source: Object | None, bundle: Object | None, target: Object | None) -> Object | None:
    """The secret to write, or None if `target` has that content already. Raises `Problem` if a part is missing."""
    data = {part: (source or {}).get("data", {}).get(part) for part in PARTS}
    missing = [part for part in PARTS if not data[part]]
    if missing and source:
        raise Problem(f"the secret {SOURCE}/{NAME} has no {', '.join(missing)}; {_LOOK}")
    if missing:
        raise Problem(f"there is no secret {SOURCE}/{NAME}; {_LOOK}")
    if bundle is not None:
        authorities = bundle.get("data", {}).get("ca.crt", "")
        if "-----BEGIN CERTIFICATE-----" not in authorities:
            raise Problem(f"the ConfigMap {SOURCE}/{BUNDLE} has no certificate under ca.crt; mend or delete it")
        data["ca.crt"] = base64.b64encode(authorities.encode()).decode()
    if target is None:
        made = {"name": NAME, "namespace": TARGET, "labels": {"app.kubernetes.io/managed-by": "copy-certificate"}}
        return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": made, "data": data}
    return None if target.get("data") == data else {**target, "data": data}


class Cluster:
    """The API server, as the pod's service account reaches it."""

    def __init__(self) -> None:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        self._server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        self._context = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        # Python 3.13 refuses certificates without an authority key identifier, and older clusters have such ones.
        self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._token = (ACCOUNT / "token").read_text()

    def get(self, namespace: str, kind: str, name: str) -> Object | None:
        """The object, or None if there is none."""
        try:
            return self._call("GET", namespace, f"{kind}/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    def write(self, secret: Object) -> None:
        """Create the secret, or update it if it came from the server."""
        there = "resourceVersion" in secret["metadata"]
        self._call("PUT" if there else "POST", TARGET, f"secrets/{NAME}" if there else "secrets", secret)

    def _call(self, method: str, namespace: str, path: str, body: Object | None = None) -> Object:
        request = urllib.request.Request(
            f"{self._server}/api/v1/namespaces/{namespace}/{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=10, context=self._context) as answer:
            result: Object = json.load(answer)
            return result


def main() -> None:
    try:
        cluster = Cluster()
        secret = copied(
            cluster.get(SOURCE, "secrets", NAME),
            cluster.get(SOURCE, "configmaps", BUNDLE),
            cluster.get(TARGET, "secrets", NAME),
        )
        if secret:
            cluster.write(secret)
    except Problem as problem:
        sys.exit(str(problem))
    except urllib.error.HTTPError as error:
        said = json.loads(error.read() or b"{}").get("message", "")
        sys.exit(
            f"the API server refused with {error.code}: {said}; apply kubernetes/agents again if a role is missing"
        )
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"the API server did not answer: {error!r}; look at the NetworkPolicy copy-certificate")
    print(f"{TARGET}/{NAME}: {'copied' if secret else 'up to date'}")


if __name__ == "__main__":
    main()
