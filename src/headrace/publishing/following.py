"""Decides from whom a replica fetches a version: from peers that have it, and from the publisher in turn."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Choice", "SourceState", "choose_source", "newest_known", "turn_of"]


@dataclass(frozen=True)
class SourceState:
    """What a replica knows of a source.

    Attributes:
        address: Address "host:port".
        is_publisher: Whether it does not fetch versions from others.
        newest: Its newest version, when it last answered; 0 for none.
        is_up: Whether it answered the last call.
        bad: Versions that were damaged when they were fetched from it.
    """

    address: str
    is_publisher: bool
    newest: int = 0
    is_up: bool = True
    bad: frozenset[int] = frozenset()

    def has(self, version: int) -> bool:
        """Whether the version, or a later one, can be fetched from it."""
        return self.is_up and self.newest >= version and version not in self.bad


@dataclass(frozen=True)
class Choice:
    """Whom to ask now; None to wait for at most `wait_s`, 0 if there is nothing to wait for."""

    source: str | None
    reason: str
    wait_s: float = 0.0


def newest_known(sources: Sequence[SourceState]) -> int:
    """The newest version that any source offers; 0 if none does."""
    return max((source.newest for source in sources if source.has(source.newest)), default=0)


def turn_of(version: int, addresses: Sequence[str]) -> list[str]:
    """Replicas in the order in which they fetch a version, the same everywhere and another one for each version.

    Highest random weight hashing (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998).
    """
    weights = {each: hashlib.blake2b(f"{version} {each}".encode(), digest_size=8).digest() for each in addresses}
    return sorted(weights, key=lambda each: (weights[each], each))


def choose_source(
    version: int, me: str, sources: Sequence[SourceState], *, waited_s: float, patience_s: float
) -> Choice:
    """From whom to fetch a version.

    The first replica in turn takes it from the publisher, and the others from it, so that the publisher sends each
    version about once. If no replica has it after some time, because the first one or its link is slow, the next ones
    ask the publisher, too.

    Args:
        version: The version.
        me: Address of this replica, as the others know it.
        sources: What is known of the sources.
        waited_s: Seconds since the version was first heard of.
        patience_s: Seconds to wait for each replica that is earlier in turn.
    """
    having = [source for source in sources if source.has(version)]
    peers = [source.address for source in having if not source.is_publisher]
    if peers:
        return Choice(turn_of(version, peers)[0], "a replica has it")
    if not having:
        return Choice(None, "no source has it")
    alive = [source.address for source in sources if source.is_up and not source.is_publisher]
    order = turn_of(version, [me, *alive])
    left_s = order.index(me) * patience_s - waited_s
    if left_s > 0:
        return Choice(None, f"waits for {order[0]}, which is first in turn", left_s)
    reason = "first in turn" if order[0] == me else f"no replica had it after {waited_s:.1f} s"
    return Choice(turn_of(version, [source.address for source in having])[0], reason)
