"""Decides from whom a replica fetches which version: peers that have a newer one, and the publisher in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Choice", "SourceState", "choose_source", "newest_known", "patience_of", "turn_of"]

VERSIONS_PER_TURN = 16
"""Versions for which one replica asks the publisher. With another one for each version, replicas that are fetching
would overlap whenever a version takes longer to send than the time until the next, and the publisher would send
segments twice; now this can happen once per turn."""

LONGEST_PATIENCE = 4
"""Largest multiple of the patience that was asked for."""


@dataclass(frozen=True)
class SourceState:
    """What a replica knows of a source.

    Attributes:
        address: Address "host:port".
        is_publisher: Whether it does not fetch versions from others.
        newest: Its newest version, when it last answered; 0 for none.
        is_up: Whether it answered the last call.
        bad: Versions that were damaged when they were fetched from it.
        missed: A version for which this replica waited in vain; it is not waited for again until it has this one.
    """

    address: str
    is_publisher: bool
    newest: int = 0
    is_up: bool = True
    bad: frozenset[int] = frozenset()
    missed: int = 0

    @property
    def is_usable(self) -> bool:
        """Whether its newest version can be fetched from it."""
        return self.is_up and self.newest > 0 and self.newest not in self.bad


@dataclass(frozen=True)
class Choice:
    """Whom to ask for which version now; no source to wait for at most `wait_s`, 0 if there is nothing to wait for.

    Attributes:
        source: Its address.
        version: The version to fetch from it.
        reason: Why.
        wait_s: How long to wait.
        missed: Replicas that were waited for in vain.
    """

    source: str | None
    version: int
    reason: str
    wait_s: float = 0.0
    missed: tuple[str, ...] = ()


def newest_known(sources: Sequence[SourceState]) -> int:
    """The newest version that any source offers; 0 if none does."""
    return max((source.newest for source in sources if source.is_usable), default=0)


def turn_of(turn: int | str, addresses: Sequence[str]) -> list[str]:
    """Replicas in an order that is the same everywhere, and another one for each turn.

    Highest random weight hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
    """
    weights = {each: hashlib.blake2b(f"{turn} {each}".encode(), digest_size=8).digest() for each in addresses}
    return sorted(weights, key=lambda each: (weights[each], each))


def patience_of(patience_s: float, took_s: float) -> float:
    """Seconds to wait for a replica: as asked, but twice the time that the last version took to be fetched, if it was
    longer; a replica that is still fetching is slow for the same reason, and the publisher's link would be slower yet.
    """
    return min(LONGEST_PATIENCE * patience_s, max(patience_s, 2 * took_s))


def choose_source(mine: int, me: str, sources: Sequence[SourceState], *, waited_s: float, patience_s: float) -> Choice:
    """From whom to fetch which version.

    A replica that has a newer version than this one is asked first, also if the publisher has a still newer one. So
    only the first replica in turn fetches from the publisher, and the publisher sends each version about once. If no
    replica gets a version for some time, because the first one or its link is slow, the next ones ask the publisher,
    too.

    Args:
        mine: Version of this replica; 0 for none.
        me: Address of this replica, as the others know it.
        sources: What is known of the sources.
        waited_s: Seconds since this replica first heard of a version after its own.
        patience_s: Seconds to wait for each replica that is earlier in turn.
    """
    newer = [source for source in sources if source.is_usable and source.newest > mine]
    peers = [source for source in newer if not source.is_publisher]
    if peers:
        version = max(peer.newest for peer in peers)
        having = [peer.address for peer in peers if peer.newest == version]
        return Choice(turn_of(f"{version} {me}", having)[0], version, "a replica has it")
    if not newer:
        return Choice(None, mine, "no source has a newer version")
    version = max(source.newest for source in newer)
    awaited = [
        source.address
        for source in sources
        if source.is_up and not source.is_publisher and source.newest >= source.missed
    ]
    order = turn_of(version // VERSIONS_PER_TURN, [me, *awaited])
    earlier = tuple(order[: order.index(me)])
    left_s = len(earlier) * patience_s - waited_s
    if left_s > 0:
        return Choice(None, version, f"waits for {order[0]}, which is first in turn", left_s)
    reason = f"no replica had it after {waited_s:.1f} s" if earlier else "first in turn"
    having = [source.address for source in newer if source.newest == version]
    return Choice(turn_of(version, having)[0], version, reason, missed=earlier)
