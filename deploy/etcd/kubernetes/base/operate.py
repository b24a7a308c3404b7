"""Operates an etcd cluster: users and roles, defragmentation, rotation of backups. It needs Python alone.

    python operate.py roles             wait for etcd, make users and roles, turn auth on, and prove that the roles are
                                        confined; running it again does no harm
    python operate.py defragment        one member after another, the leader last, and only where it pays or where the
                                        file nears the quota
    python operate.py rotate FROM TO    check a snapshot, keep it under the time it was made at, and the newest
                                        28 of them

From the environment: ETCD_ENDPOINTS (comma separated), ETCD_CA_FILE, ETCD_CERT_FILE and ETCD_KEY_FILE for TLS,
ETCD_ROOT_PASSWORD_FILE, ETCD_NAMESPACE (codomyrmex), ETCD_WAIT (900): for so many seconds `roles` asks again while no
endpoint answers. A refusal by etcd is not asked again. ETCD_QUOTA_BACKEND_BYTES: the quota, for an etcd older than 3.6,
which does not tell it (etcd's own default, 2 GiB). To change root's password, put the new one into that file, and
the older one into a file `previous` beside it.

It speaks to etcd's HTTP gateway, which knows users by password only; root has one, all others are known by their
certificates' names. Its own certificate must have no common name: the gateway refuses those that do.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import http.client
import json
import math
import os
import secrets
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

KEPT = 28  # backups
BLOCK = 1 << 20
PAGE = 512  # etcd pads the database to whole pages; the checksum of `snapshot save` follows it
PAYS = 0.5  # defragment where more than this share of the file is free
LEAST = 100 << 20  # bytes; below, it never pays
FULL, SOME = 0.6, 0.2  # of a file above this share of the quota, defragment where more than this share is free
QUOTA = 2 << 30  # bytes; etcd's own default
WAIT = 900.0  # seconds in which an etcd that does not answer is asked again
AGAIN, TOLD = 2.0, 30.0  # seconds from one question to the next, and from one line about the waiting to the next
CALL, DEFRAGMENTATION = 10.0, 900.0  # seconds for one answer


class Refused(Exception):
    """etcd's own words."""


class Damaged(Exception):
    """The reason why a snapshot is not kept."""


class NoAnswer(Exception):
    """The reason why no etcd, or no leader, answered; asking again may help."""


class Etcd:
    """One endpoint's gateway; with a token after a login."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._token = ""
        self._tls = None
        if endpoint.startswith("https://"):
            self._tls = tls()

    def __call__(self, path: str, /, *, timeout: float = CALL, **body: object) -> dict[str, Any]:
        headers = {"Authorization": self._token} if self._token else {}
        request = urllib.request.Request(f"{self.endpoint}/v3/{path}", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self._tls) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace").strip() or str(error)
            if error.code in (503, 504):  # no leader, or none in time
                raise NoAnswer(f"{self.endpoint}: {said}") from None
            raise Refused(said) from None
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(f"{self.endpoint}: {getattr(error, 'reason', None) or error}") from None

    def login(self, user: str, password: str) -> Etcd:
        self._token = ""  # an older one, which a new password ends, would be refused
        self._token = self("auth/authenticate", name=user, password=password)["token"]
        return self

    def unless_there(self, path: str, **body: object) -> None:
        """Make what may exist already."""
        try:
            self(path, **body)
        except Refused as error:
            if "already exist" not in str(error) and "already granted" not in str(error):
                raise


def tls() -> ssl.SSLContext:
    """The certificates that the environment names; they may come later than this program."""
    names = [os.environ.get(f"ETCD_{name}_FILE") for name in ("CA", "CERT", "KEY")]
    for name in names:
        if name and not Path(name).exists():
            raise NoAnswer(f"the certificate file {name} is not there")
    authority, certificate, key = names
    try:
        context = ssl.create_default_context(cafile=authority)
        if certificate:
            context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise NoAnswer(f"the certificate files {names} cannot be read: {error}") from None
    return context


def until_answered(
    ask: Callable[[], T],
    wait: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Asks every 2 s until there is an answer or a refusal; says why it waits, at once and then every 30 s."""
    began, told = clock(), -math.inf
    while True:
        try:
            return ask()
        except NoAnswer as error:
            now = clock()
            if now - began >= wait:
                raise NoAnswer(
                    f"{error}. No answer within {wait:g} s. Check that the members run and have a leader (their logs "
                    "say it), that ETCD_ENDPOINTS names them, and that the certificate files are of their authority"
                ) from None
            if now - told >= TOLD:
                print(f"waiting for etcd, for {began + wait - now:.0f} s more: {error}", file=sys.stderr, flush=True)
                told = now
        sleep(AGAIN)


def endpoints() -> list[str]:
    return [part.strip() for part in os.environ["ETCD_ENDPOINTS"].split(",")]


def password_file() -> Path:
    return Path(os.environ["ETCD_ROOT_PASSWORD_FILE"])


def root() -> tuple[str, str]:
    return "root", password_file().read_text().rstrip("\r\n")


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def logged_in(endpoint: str) -> tuple[Etcd, bool]:
    """An endpoint as root sees it, and whether auth is on."""
    etcd = Etcd(endpoint)
    try:
        etcd("auth/user/list")
    except Refused:
        return logged_in_as_root(etcd), True
    return etcd, False


def logged_in_as_root(etcd: Etcd) -> Etcd:
    """With the password of the file. If that is new, and the older one lies beside it, the new one is set first."""
    name, password = root()
    try:
        return etcd.login(name, password)
    except Refused:
        previous = password_file().with_name("previous")
        if not previous.exists():
            raise
        etcd.login(name, previous.read_text().rstrip("\r\n"))
        etcd("auth/user/changepw", name=name, password=password)
        return etcd.login(name, password)


def roles() -> None:
    """By the first endpoint that answers."""
    silent = NoAnswer("ETCD_ENDPOINTS is empty")
    for endpoint in endpoints():
        try:
            make_roles(endpoint)
            return
        except NoAnswer as error:
            silent = error
    raise silent


def make_roles(endpoint: str) -> None:
    etcd, enabled = logged_in(endpoint)
    prefix = f"/{os.environ.get('ETCD_NAMESPACE', 'codomyrmex')}/"
    name, password = root()
    etcd.unless_there("auth/role/add", name="root")
    etcd.unless_there("auth/user/add", name=name, password=password)
    etcd.unless_there("auth/user/grant", user=name, role="root")
    if not enabled:  # an older root may have another password, and could not log in once auth is on
        etcd("auth/user/changepw", name=name, password=password)
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
    """Tries each role as a user made for the moment, with a password: the gateway knows no user by certificate."""
    for user in etcd("auth/user/list").get("users", ()):
        if user.startswith("proof-"):  # of a run that was killed
            etcd("auth/user/delete", name=user)
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
            proof = Etcd(etcd.endpoint).login(user, password)
            for path, body, allowed in attempts:
                try:
                    proof(path, **body)
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
        quota = int(status.get("dbSizeQuota") or os.environ.get("ETCD_QUOTA_BACKEND_BYTES") or QUOTA)
        members.append((leads, endpoint, etcd, int(status["dbSize"]), int(status["dbSizeInUse"]), quota))
    alarms = members[0][2]("maintenance/alarm", action="GET").get("alarms")
    if alarms:
        raise SystemExit(f"alarms are raised, see the runbooks: {alarms}")
    for leads, endpoint, etcd, size, used, quota in sorted(members, key=lambda member: member[:2]):
        what = f"{endpoint}{' (leader)' if leads else ''}: {used >> 20} of {size >> 20} MiB in use"
        if not pays(size, used, quota):
            print(f"{what}; left alone")
            continue
        logged_in(endpoint)[0]("maintenance/defragment", timeout=DEFRAGMENTATION)
        etcd = until_answered(functools.partial(reading, endpoint), WAIT)  # before the next member stands still
        print(f"{what}; now {int(etcd('maintenance/status')['dbSize']) >> 20} MiB", flush=True)


def pays(size: int, used: int, quota: int) -> bool:
    """True if much of a file is free, or some of one that nears the quota, before EtcdDatabaseFillsUp rings."""
    least = SOME if 0 < quota * FULL < size else PAYS
    return size >= LEAST and size - used >= size * least


def reading(endpoint: str) -> Etcd:
    """A member that reads again all that was agreed on; with a login of its own, since a token ends after 5 minutes."""
    etcd, _ = logged_in(endpoint)
    etcd("kv/range", key=b64("proof"))
    return etcd


def rotate(snapshot: Path, folder: Path) -> None:
    made = datetime.now(UTC)
    kept = folder / f"etcd-{made:%Y%m%dT%H%M%SZ}.db"
    for stale in folder.glob("etcd-*.partial"):  # of a run that was killed; runs do not overlap
        stale.unlink()
    os.umask(0o077)  # a snapshot holds all data and the hashes of passwords
    partial = kept.with_suffix(".partial")
    with open(snapshot, "rb") as source, open(partial, "wb") as target:
        try:
            copy_checked(source, target, snapshot.stat().st_size)
        except Damaged as error:
            partial.unlink()
            raise Damaged(f"{snapshot} {error}; the older backups are kept. Make a job of etcd-backup again") from None
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


def copy_checked(source: BinaryIO, target: BinaryIO, size: int) -> None:
    """Copy a snapshot block by block. Raises `Damaged` if its database has not the checksum that follows it."""
    digest = hashlib.sha256()
    if size % PAGE != digest.digest_size:
        raise Damaged(f"is not a whole snapshot: {size} bytes")
    left = size - digest.digest_size
    while block := source.read(min(BLOCK, left)):
        digest.update(block)
        target.write(block)
        left -= len(block)
    appended = source.read()
    if appended != digest.digest():
        raise Damaged("is damaged: its checksum is not the one that etcd appended")
    target.write(appended)


def main() -> None:
    match sys.argv[1:]:
        case ["roles"]:
            until_answered(roles, float(os.environ.get("ETCD_WAIT", WAIT)))
        case ["defragment"]:
            defragment()
        case ["rotate", snapshot, folder]:
            rotate(Path(snapshot), Path(folder))
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except (Refused, Damaged, NoAnswer, OSError, KeyError) as error:
        raise SystemExit(f"operate.py: {type(error).__name__}: {error}") from None
