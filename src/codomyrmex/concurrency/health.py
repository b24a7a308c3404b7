"""The health of the etcd cluster for an operator: members, alarms, versions, history, foreign keys.

The check needs no lease, so it works when etcd is full. A part that the user's role may not read gives a warning, not
an error.
"""

from __future__ import annotations

from codomyrmex.concurrency.errors import EtcdAuthError, EtcdError
from codomyrmex.concurrency.etcd.scan import keys_under
from codomyrmex.concurrency.etcd.transports.factory import transport_for
from codomyrmex.concurrency.etcd.transports.failures import COMPACTED
from codomyrmex.concurrency.etcd.transports.protocol import ClusterMember, Get, Transport
from codomyrmex.concurrency.keys import ELECTION, GROUP, LOCK, PATH, RATE, SEMAPHORE, Kind, Layout
from codomyrmex.concurrency.models import ClusterStatus, MemberStatus
from codomyrmex.concurrency.records import LeaseRecord
from codomyrmex.concurrency.settings import EtcdSettings
from codomyrmex.concurrency.waitqueue.view import is_entry, is_limit

# From these patches on, a deposed leader renews no lease that the new one expires (etcd#15247 and its follow-ups).
_SOUND_SINCE = {(3, 4): 38, (3, 5): 23, (3, 6): 5}
_MUCH_HISTORY = 10_000


async def cluster_status(settings: EtcdSettings) -> ClusterStatus:
    """The answer of each endpoint, and the problems found. Raises ``EtcdUnavailable`` if no endpoint answers."""
    transport = transport_for(settings)
    layout = Layout(settings.namespace)
    try:
        await transport.connect(layout.leases)
        return await _Inspection(transport, layout).run()
    finally:
        await transport.close()


class _Inspection:
    def __init__(self, transport: Transport, layout: Layout) -> None:
        self._transport = transport
        self._layout = layout
        self._problems: list[str] = []
        self._warnings: list[str] = []

    async def run(self) -> ClusterStatus:
        members = [await self._member(endpoint) for endpoint in self._transport.endpoints]
        reached = [member for member in members if isinstance(member, ClusterMember)]
        if not any(member.leader_id for member in reached):
            self._problems.append("the cluster has no leader")
        if len({member.cluster_id for member in reached}) > 1:
            self._problems.append("the endpoints belong to different clusters")
        for member in reached:
            self._check_version(member)
        alarms = await self._alarms()
        await self._check_history()
        sessions, locks = await self._count()
        return ClusterStatus(
            cluster_id=f"{reached[0].cluster_id:016x}" if reached else "",
            members=tuple(_status(member) if isinstance(member, ClusterMember) else member for member in members),
            alarms=tuple(alarms),
            sessions=sessions,
            locks=locks,
            problems=tuple(self._problems),
            warnings=tuple(dict.fromkeys(self._warnings)),
        )

    async def _member(self, endpoint: str) -> ClusterMember | MemberStatus:
        try:
            member = await self._transport.member(endpoint)
        except EtcdAuthError:
            self._warnings.append("this user may not ask for the members' status")
            return MemberStatus(endpoint, error="not permitted")
        except EtcdError as error:
            self._problems.append(f"{endpoint} does not answer")
            return MemberStatus(endpoint, error=str(error))
        # An alarm is among a member's errors; it is reported once, as an alarm.
        self._problems += [f"{endpoint}: {text}" for text in member.errors if "alarm" not in text.lower()]
        return member

    def _check_version(self, member: ClusterMember) -> None:
        if _numbers(member.version) in ((3, 5, 0), (3, 5, 1), (3, 5, 2)):
            self._warnings.append(f"etcd {member.version} can corrupt data after a crash; for development only")
        if renews_wrongly(member.version):
            self._warnings.append(
                f"on etcd {member.version} a deposed leader may renew leases that the new one expires: "
                "there only fenced writes are safe; upgrade to 3.6.14 or 3.7.1, or later"
            )

    async def _alarms(self) -> list[str]:
        try:
            alarms = await self._transport.alarms()
        except EtcdAuthError:
            self._warnings.append("this user may not read alarms")
            return []
        self._problems += [f"alarm: {alarm}" for alarm in alarms]
        return alarms

    async def _check_history(self) -> None:
        """Warn if old revisions are never compacted: then the first one can still be read.

        etcd compacts for the first time when its leader has run for the retention time without a restart. It does not
        tell for how long it has run, so the warning says when it counts.
        """
        try:
            first = await self._transport.get(Get(self._layout.leases, revision=1))
        except EtcdError as error:
            if COMPACTED not in str(error):
                self._warnings.append(f"history could not be checked: {error}")
            return
        if first.revision > _MUCH_HISTORY:
            self._warnings.append(
                f"none of {first.revision:,} revisions was compacted yet; if etcd's leader has run for ten minutes, "
                "start etcd with --auto-compaction-mode=periodic --auto-compaction-retention=5m"
            )

    async def _count(self) -> tuple[int, int]:
        sessions = 0
        async for kv in keys_under(self._transport, self._layout.leases):
            record = LeaseRecord.decode(kv.value)
            sessions += record is None or not record.reservation
        names: set[tuple[Kind, str]] = set()
        for kind in (LOCK, PATH, RATE, SEMAPHORE, ELECTION, GROUP):
            foreign = 0
            async for kv in keys_under(self._transport, self._layout.under(kind)):
                name = self._layout.name_of(kv.key, kind)
                named = name is not None if kind is not RATE else self._layout.rate_and_dimension(kv.key)
                if name is None or not named or not (is_entry(kv) or is_limit(kv)):
                    foreign += 1
                elif kind in (LOCK, PATH):
                    names.add((kind, name))
            if foreign:
                self._warnings.append(f"{foreign} keys among the {kind.what} entries are not entries; they are skipped")
        return sessions, len(names)


def renews_wrongly(version: str) -> bool:
    """True if a deposed leader of this etcd version may renew leases that the new leader expires."""
    major, minor, patch = _numbers(version)
    return patch < _SOUND_SINCE.get((major, minor), 0) or (major, minor) < (3, 4)


def _numbers(version: str) -> tuple[int, int, int]:
    major, minor, patch = (int(part) for part in version.split("-")[0].split("."))
    return major, minor, patch


def _status(member: ClusterMember) -> MemberStatus:
    return MemberStatus(
        endpoint=member.endpoint,
        version=member.version,
        leader=member.leader_id == member.member_id,
        db_size=member.db_size,
        revision=member.revision,
        errors=member.errors,
    )
