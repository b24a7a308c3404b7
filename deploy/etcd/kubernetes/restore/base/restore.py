"""Puts a restored data directory into the place of a member's own. Python's standard library alone.

    python restore.py sha256 SNAPSHOT   check a snapshot and print its checksum; run it where the snapshot lies
    python restore.py prepare           wait for the snapshot, and refuse where etcd runs or this stamp was used
    python restore.py receive           take the snapshot from standard input, check it, keep it for `prepare`
    python restore.py exchange          move /data/etcd to /data/etcd.STAMP and the restored directory into its place
    python restore.py clean             delete the old directory and the snapshot of this stamp and of all earlier ones

All but `sha256` run in the pods of this folder. Their environment: STAMP (seconds since 1970, one for all members),
SHA256 (the snapshot's checksum), MEMBER (its name, for messages), DATA (/data).

Nothing is overwritten. A crash at any place leaves the old directory whole, and the next run goes on from there. A run
for a member that is restored already, with this stamp and from this snapshot, changes nothing and exits with 0.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 20
WAITS = "waits for the snapshot"  # run.sh looks for these words
PAGE = 512  # etcd pads the database to whole pages; the checksum that follows makes 32 bytes more


class Refused(Exception):
    """The reason, and what the operator does about it."""


class Member:
    """One member's volume, and the restore that is being made on it."""

    def __init__(self, data: Path, stamp: str, sha256: str) -> None:
        if not re.fullmatch(r"[1-9][0-9]{9}", stamp):
            raise Refused(f"the stamp {stamp!r} is not the seconds since 1970: make the ConfigMap etcd-restore anew")
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise Refused(f"{sha256!r} is no SHA-256 checksum: make the ConfigMap etcd-restore anew")
        self.stamp, self.sha256 = stamp, sha256
        self.data = data
        self.current = data / "etcd"
        self.old = data / f"etcd.{stamp}"
        self.work = data / f"restore-{stamp}"
        self.snapshot = self.work / "snapshot.db"
        self.restored = self.work / "etcd"

    @property
    def is_made(self) -> bool:
        """True if the exchange with this stamp was made here."""
        return self.old.exists() and self.current.exists()

    def refuse_unless_the_same(self) -> None:
        """Raise `Refused` unless the restore that was made here came from the named snapshot, which is kept."""
        if not self.snapshot.exists() or checked(self.snapshot) != self.sha256:
            raise Refused(
                f"a restore with the stamp {self.stamp} was made here already, and the named snapshot is not here: "
                "make the ConfigMap etcd-restore anew, with a new stamp"
            )

    def refuse_unless_free(self) -> None:
        """Raise `Refused` where a restore would do harm."""
        later = [
            path.name for path in self.data.glob("etcd.*") if path.name[5:].isdigit() and path.name > self.old.name
        ]
        if later:
            raise Refused(f"a restore with a later stamp was made here ({later[0]}): take a new stamp from `date +%s`")
        if runs(self.current):
            raise Refused("etcd runs on this volume: scale the StatefulSet to 0 and wait until its pods are gone")

    def receive(self, source: BinaryIO) -> None:
        """Keep the snapshot that comes from `source`, if it is whole and the one that was named."""
        self.refuse_unless_free()
        if self.is_made:
            self.refuse_unless_the_same()
        if self.snapshot.exists():
            return  # `prepare` checks it
        self.work.mkdir(mode=0o700, exist_ok=True)
        partial = self.work / "snapshot.partial"
        with open(partial, "wb") as target:
            shutil.copyfileobj(source, target, BLOCK)
            target.flush()
            os.fsync(target.fileno())
        try:
            found = checked(partial)
            if found != self.sha256:
                raise Refused(f"this is another snapshot than the ConfigMap names: {found}, not {self.sha256}")
        except Refused:
            partial.unlink()
            raise
        partial.rename(self.snapshot)
        sync(self.work)

    def prepare(self, poll: float = 1.0) -> None:
        """Wait for the snapshot, and clear away a directory that an earlier run left half made."""
        self.refuse_unless_free()
        if self.is_made:
            self.refuse_unless_the_same()
        if not self.snapshot.exists():
            print(f"{WAITS}: run.sh sends it")
            while not self.snapshot.exists():
                time.sleep(poll)
            time.sleep(2 * poll)  # `receive` runs in this container, and ends with it: let it say that it is done
        if checked(self.snapshot) != self.sha256:
            raise Refused(f"{self.snapshot} is another snapshot than the ConfigMap names: delete it")
        self.refuse_unless_free()
        if self.restored.exists():
            shutil.rmtree(self.restored)

    def exchange(self) -> None:
        """Move the old directory away and the restored one into its place."""
        self.refuse_unless_free()
        if self.is_made:
            self.refuse_unless_the_same()
            shutil.rmtree(self.restored, ignore_errors=True)  # the job has made it once more
            return
        if not (self.restored / "member" / "snap" / "db").exists():
            raise Refused(f"{self.restored} is no restored directory: delete the job and apply it again")
        if not self.old.exists():
            if self.current.exists():
                self.current.rename(self.old)
            else:
                self.old.mkdir(mode=0o700)  # a member that had no data: the name tells that this stamp was used
            sync(self.data)
        self.restored.rename(self.current)
        sync(self.data)

    def clean(self) -> bool:
        """Delete what this restore and all earlier ones left, but for the name of this one's old directory.

        That name tells that the stamp was used. Returns False if no restore left anything, as on a new volume.
        """
        left = [*self._left("etcd."), *self._left("restore-")]
        if not self.is_made:
            if left:
                raise Refused("no restore was made here with this stamp; nothing was deleted")
            return False
        for path in left:
            if path != self.old:
                shutil.rmtree(path)
        for path in self.old.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return True

    def _left(self, prefix: str) -> list[Path]:
        """The folders of this stamp and of all earlier ones."""
        stamps = ((path, path.name.removeprefix(prefix)) for path in self.data.glob(f"{prefix}*"))
        return [path for path, stamp in stamps if stamp.isdigit() and stamp <= self.stamp]


def runs(directory: Path) -> bool:
    """True if an etcd has this data directory open: it locks its database as long as it runs."""
    try:
        descriptor = os.open(directory / "member" / "snap" / "db", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def checked(snapshot: Path) -> str:
    """The SHA-256 checksum of a snapshot file. Raises `Refused` if it is not whole.

    `etcdctl snapshot save` appends the checksum of the database to it. A file that was cut off, or copied from a
    member's data directory, has none.
    """
    size = snapshot.stat().st_size
    if size % PAGE != hashlib.sha256().digest_size:
        raise Refused(f"{snapshot} is not a whole snapshot: {size} bytes; take another one, or copy it again")
    database, whole = hashlib.sha256(), hashlib.sha256()
    left = size - database.digest_size
    with open(snapshot, "rb") as file:
        while left:
            block = file.read(min(BLOCK, left))
            database.update(block)
            whole.update(block)
            left -= len(block)
        appended = file.read()
    whole.update(appended)
    if appended != database.digest():
        raise Refused(f"{snapshot} is damaged: its checksum is not the one that etcd appended; take another one")
    return whole.hexdigest()


def sync(folder: Path) -> None:
    """Make the names in a folder outlast a crash."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """Run the command that the arguments name."""
    os.umask(0o077)
    if sys.argv[1:2] == ["sha256"] and len(sys.argv) == 3:
        print(checked(Path(sys.argv[2])))
        return
    commands = {"prepare", "receive", "exchange", "clean"}
    if len(sys.argv) != 2 or sys.argv[1] not in commands:
        raise SystemExit(__doc__)
    member = Member(Path(os.environ.get("DATA", "/data")), os.environ["STAMP"], os.environ["SHA256"])
    name = os.environ.get("MEMBER", "this member")
    match sys.argv[1]:
        case "prepare":
            member.prepare()
            print(f"{name}: the snapshot is whole; nothing runs on this volume")
        case "receive":
            member.receive(sys.stdin.buffer)
            print(f"{name} has the snapshot, and it is whole")
        case "exchange":
            member.exchange()
            print(f"{name} is restored; its former data lie in {member.old}")
        case "clean":
            deleted = member.clean()
            print(f"{name}: {'the former data and the snapshots are deleted' if deleted else 'nothing to delete'}")


if __name__ == "__main__":
    try:
        main()
    except (Refused, OSError, KeyError) as error:
        text = str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
        raise SystemExit(f"{os.environ.get('MEMBER', 'restore.py')}: {text}") from None
