"""What etcd needs done to it: users and roles, defragmentation, rotation of backups. Python's standard library alone.

    python operate.py roles             make users and roles, turn auth on, prove that they are confined; harmless twice
    python operate.py defragment        one member after another, the leader last, and only where it pays
    python operate.py rotate FROM TO    keep a snapshot under the time it was made at, and the newest 28 of them

From the environment: ETCD_ENDPOINTS (comma separated), ETCD_CA_FILE, ETCD_CERT_FILE and ETCD_KEY_FILE for TLS,
ETCD_ROOT_PASSWORD_FILE, ETCD_NAMESPACE (codomyrmex).

It speaks to etcd's HTTP gateway, which knows users by password only; root has one, all others are known by their
certificates' names. Its own certificate must have no common name: the gateway refuses those that do.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import ssl
import sys
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

KEPT = 28  # backups
PAYS = 0.5  # defragment where more than this share of the file is free
LEAST = 100 << 20  # bytes; below, it never pays


class Refused(Exception):
    """etcd's own words."""


class Etcd:
    """One endpoint's gateway; with a token once somebody has logged in."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._token = ""
        self._tls = None
        if endpoint.startswith("https://"):
            self._tls = ssl.create_default_context(cafile=os.environ.get("ETCD_CA_FILE"))
            if certificate := os.environ.get("ETCD_CERT_FILE"):
                self._tls.load_cert_chain(certificate, os.environ["ETCD_KEY_FILE"])

    def __call__(self, path: str, **body: object) -> dict[str, Any]:
        headers = {"Authorization": self._token} if self._token else {}
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60, context=self._tls) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode(errors="replace").strip() or str(error)) from None

    def login(self, user: str, password: str) -> Etcd:
        self._token = self("auth/authenticate", name=user, password=password)["token"]
        return self

    def unless_there(self, path: str, **body: object) -> None:
        """Make what may exist already."""
        try:
            self(path, **body)
        except Refused as error:
            if "already exist" not in str(error) and "already granted" not in str(error):
                raise


def endpoints() -> list[str]:
    return [part.strip() for part in os.environ["ETCD_ENDPOINTS"].split(",")]


def root() -> tuple[str, str]:
    return "root", Path(os.environ["ETCD_ROOT_PASSWORD_FILE"]).read_text().rstrip("\r\n")


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def logged_in(endpoint: str) -> tuple[Etcd, bool]:
    """etcd as root sees it, and whether auth is on."""
    etcd = Etcd(endpoint)
    try:
        etcd("auth/user/list")
    except Refused:
        return etcd.login(*root()), True
    return etcd, False


def roles() -> None:
    etcd, enabled = logged_in(endpoints()[0])
    prefix = f"/{os.environ.get('ETCD_NAMESPACE', 'codomyrmex')}/"
    name, password = root()
    etcd.unless_there("auth/role/add", name="root")
    etcd.unless_there("auth/user/add", name=name, password=password)
    etcd.unless_there("auth/user/grant", user=name, role="root")
    # The prefix with its trailing slash, or the neighbour whose name begins alike would be reached too.
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    for role, kind in (("agent", 2), ("observer", 0)):
        etcd.unless_there("auth/role/add", name=role)
        permission = {"permType": kind, "key": b64(prefix), "range_end": b64(end)}
        etcd("auth/role/grant", name=role, perm=permission)
    for user, role in (("agent", "agent"), ("observer", "observer"), ("operator", "root")):
        etcd.unless_there("auth/user/add", name=user, options={"no_password": True})
        etcd.unless_there("auth/user/grant", user=user, role=role)
    if not enabled:
        etcd("auth/enable")
        etcd.login(name, password)
    prove(etcd, prefix)
    print(f"roles agent and observer reach {prefix} and nothing else; auth is on")


def prove(etcd: Etcd, prefix: str) -> None:
    """By users for the moment, with passwords, since the gateway knows nobody by certificate."""
    inside, outside = f"{prefix}proof", f"{prefix[:-1]}-neighbour/proof"
    # what: path, body, and which roles may
    attempts = (
        ("kv/put", {"key": b64(inside), "value": b64("proof")}, {"agent"}),
        ("kv/range", {"key": b64(inside)}, {"agent", "observer"}),
        ("kv/put", {"key": b64(outside), "value": b64("proof")}, set()),
        ("kv/range", {"key": b64(outside)}, set()),
        ("kv/range", {"key": b64("\0"), "range_end": b64("\0")}, set()),
        ("auth/user/list", {}, set()),
        ("kv/deleterange", {"key": b64(inside)}, {"agent"}),
    )
    for role in ("agent", "observer"):
        user, password = f"proof-{secrets.token_hex(4)}", secrets.token_urlsafe()
        etcd("auth/user/add", name=user, password=password)
        try:
            etcd("auth/user/grant", user=user, role=role)
            somebody = Etcd(etcd.endpoint).login(user, password)
            for path, body, allowed in attempts:
                try:
                    somebody(path, **body)
                    may = True
                except Refused as error:
                    if "permission denied" not in str(error):
                        raise
                    may = False
                if may != (role in allowed):
                    raise SystemExit(f"the role {role} {'may' if may else 'may not'} {path} {body}: repair it by hand")
        finally:
            etcd("auth/user/delete", name=user)


def defragment() -> None:
    members = []
    for endpoint in endpoints():
        etcd, _ = logged_in(endpoint)
        status = etcd("maintenance/status")
        leads = status["header"]["member_id"] == status.get("leader")
        members.append((leads, endpoint, etcd, int(status["dbSize"]), int(status["dbSizeInUse"])))
    alarms = members[0][2]("maintenance/alarm", action="GET").get("alarms")
    if alarms:
        raise SystemExit(f"alarms are raised, see the runbooks: {alarms}")
    for leads, endpoint, etcd, size, used in sorted(members, key=lambda member: member[:2]):
        what = f"{endpoint}{' (leader)' if leads else ''}: {used >> 20} of {size >> 20} MiB in use"
        if size < LEAST or used > size * (1 - PAYS):
            print(f"{what}; left alone")
            continue
        etcd("maintenance/defragment")
        print(f"{what}; now {int(etcd('maintenance/status')['dbSize']) >> 20} MiB")


def rotate(snapshot: Path, folder: Path) -> None:
    made = datetime.now(UTC)
    kept = folder / f"etcd-{made:%Y%m%dT%H%M%SZ}.db"
    for stale in folder.glob("etcd-*.partial"):  # of a run that was killed; runs do not overlap
        stale.unlink()
    os.umask(0o077)  # a snapshot holds all data and the hashes of passwords
    partial = kept.with_suffix(".partial")
    with open(snapshot, "rb") as source, open(partial, "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
        target.flush()
        os.fsync(target.fileno())
    partial.rename(kept)
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
    for old in sorted(folder.glob("etcd-*.db"))[:-KEPT]:
        old.unlink()
    print(f"kept {kept.name}, {kept.stat().st_size >> 10} KiB")


def main() -> None:
    match sys.argv[1:]:
        case ["roles"]:
            roles()
        case ["defragment"]:
            defragment()
        case ["rotate", snapshot, folder]:
            rotate(Path(snapshot), Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError, KeyError) as error:
        raise SystemExit(f"operate.py: {type(error).__name__}: {error}") from None
