"""The endpoint of the next call, and the order in which the others take over: pure, the first one is handed in."""

from __future__ import annotations

from collections.abc import Sequence


class Endpoints:
    """The endpoints of a client as a ring; ``current`` takes the next call.

    After a failure the next endpoint on the ring is used, so an endpoint that failed is tried again last. Clients begin
    at different places, so that neither the calls of a fleet nor the loss of a member meet one endpoint.
    """

    def __init__(self, addresses: Sequence[str], first: int = 0) -> None:
        self._ring = tuple(addresses)
        self._index = first
        self.current = self._ring[first]  # not a property, because each call reads it

    @property
    def others(self) -> tuple[str, ...]:
        """The endpoints that are not the current one, in the order in which they would take over."""
        return self._ring[self._index + 1 :] + self._ring[: self._index]

    def failed(self, endpoint: str) -> None:
        """Use the next endpoint if ``endpoint`` is the current one. The failure of an earlier one changes nothing."""
        if self.current == endpoint:
            self._index = (self._index + 1) % len(self._ring)
            self.current = self._ring[self._index]

    def copy(self) -> Endpoints:
        """The same ring with the same current endpoint, for a client that moves by its own failures."""
        return Endpoints(self._ring, self._index)

    def __len__(self) -> int:
        return len(self._ring)
