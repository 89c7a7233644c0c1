"""`SessionMembers`: which client is which trainer of a session, so that nobody else speaks in its place."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.errors import ShardError

__all__ = ["Seat", "SessionMembers"]

MAX_UNNUMBERED = 64
"""Clients that have joined and not yet said which trainer they are; older ones are forgotten."""


@dataclass
class Seat:
    """One trainer of a session.

    Attributes:
        client: The process that has it.
        num_streams: Streams it has open.
        has_had_streams: Whether it ever had one.
    """

    client: str
    num_streams: int = 0
    has_had_streams: bool = False

    @property
    def is_left(self) -> bool:
        """Whether its client has gone: closed all streams, or died."""
        return self.has_had_streams and self.num_streams == 0


@dataclass
class SessionMembers:
    """The clients of one session; no threads, no clocks.

    A trainer's number belongs to the first client that takes it. Another one gets it once all streams of the first are
    closed, as the system does for a process that dies.

    Attributes:
        num_trainers: Trainers, numbered from 0.
    """

    num_trainers: int
    _seats: dict[int, Seat] = field(init=False, default_factory=dict)
    _unnumbered: dict[str, None] = field(init=False, default_factory=dict)

    @property
    def num_streams(self) -> int:
        """Streams that trainers have open."""
        return sum(seat.num_streams for seat in self._seats.values())

    def join(self, client: str, trainer: int | None) -> None:
        """A client has opened the session.

        Raises:
            ShardError: Another client is this trainer.
        """
        if trainer is not None:
            self._take(client, trainer)
            return
        self._unnumbered[client] = None
        if len(self._unnumbered) > MAX_UNNUMBERED:
            del self._unnumbered[next(iter(self._unnumbered))]

    def enter(self, client: str, trainer: int) -> Seat:
        """A client opens a stream as a trainer; to be followed by `leave`.

        Raises:
            ShardError: There is no such trainer, or another client is this trainer.
        """
        seat = self._take(client, trainer)
        seat.num_streams += 1
        seat.has_had_streams = True
        return seat

    def leave(self, seat: Seat) -> None:
        """A stream has ended."""
        seat.num_streams -= 1

    def check(self, client: str, what: str) -> None:
        """Refuse what only members may ask for.

        Raises:
            ShardError: The client has not joined.
        """
        if client not in self._unnumbered and all(seat.client != client for seat in self._seats.values()):
            raise ShardError(f"{what}: requested by a client that is not a trainer of this session")

    def _take(self, client: str, trainer: int) -> Seat:
        if not 0 <= trainer < self.num_trainers:
            raise ShardError(f"trainer {trainer}: expected 0 <= trainer < {self.num_trainers}")
        seat = self._seats.get(trainer)
        if seat is None or (seat.client != client and seat.is_left):
            seat = self._seats[trainer] = Seat(client)
        if seat.client != client:
            raise ShardError(
                f"trainer {trainer}: is already taken by another client of this session; "
                "each trainer needs its own number"
            )
        return seat
