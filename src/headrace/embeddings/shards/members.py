"""`SessionMembers`: which client is which trainer of a session, so that no other client can act as a trainer."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.errors import ShardError

__all__ = ["Seat", "SessionMembers"]

MAX_UNNUMBERED = 64
"""Maximum number of clients that joined without a trainer number; older ones are dropped."""


@dataclass
class Seat:
    """One trainer of a session.

    Attributes:
        client: Client process of the trainer.
        num_streams: Number of open streams.
        has_had_streams: Whether a stream was ever open.
    """

    client: str
    num_streams: int = 0
    has_had_streams: bool = False

    @property
    def is_left(self) -> bool:
        """Whether the client has closed all streams or died."""
        return self.has_had_streams and self.num_streams == 0


@dataclass
class SessionMembers:
    """The clients of one session. Uses no threads or clocks.

    A trainer number belongs to the first client that takes it. Another client can take it once all streams of the first
    are closed, which the operating system does for a process that dies.

    Attributes:
        num_trainers: Number of trainers, which are numbered from 0.
    """

    num_trainers: int
    _seats: dict[int, Seat] = field(init=False, default_factory=dict)
    _unnumbered: dict[str, None] = field(init=False, default_factory=dict)

    @property
    def num_streams(self) -> int:
        """Number of open streams."""
        return sum(seat.num_streams for seat in self._seats.values())

    def join(self, client: str, trainer: int | None) -> None:
        """Add a client that opened the session.

        Raises:
             ShardError: The trainer number is taken by another client.
        """
        if trainer is not None:
            self._take(client, trainer)
            return
        self._unnumbered[client] = None
        if len(self._unnumbered) > MAX_UNNUMBERED:
            del self._unnumbered[next(iter(self._unnumbered))]

    def enter(self, client: str, trainer: int) -> Seat:
        """Register a stream that a client opens as a trainer; call `leave` when it ends.

        Raises:
            ShardError: The trainer number is out of range or taken by another client.
        """
        seat = self._take(client, trainer)
        seat.num_streams += 1
        seat.has_had_streams = True
        return seat

    def leave(self, seat: Seat) -> None:
        """Unregister a stream that ended."""
        seat.num_streams -= 1

    def check(self, client: str, what: str) -> None:
        """Check that a client is a member.

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
