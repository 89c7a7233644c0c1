"""`Tunable`: one thing about a running pipeline that may be changed."""

from __future__ import annotations

from collections.abc import Callable

from headrace.errors import ConfigError

__all__ = ["Tunable"]


class Tunable:
    """A number with limits that takes effect as soon as it is set, from any thread.

    Attributes:
        name: For instance "transform.workers".
        min: Smallest value.
        max: Largest value.
        unit: "workers", "elements" or "bytes".
    """

    def __init__(
        self, name: str, *, min: int, max: int, unit: str, get: Callable[[], int], set: Callable[[int], None]
    ) -> None:
        """Describe a number that is kept elsewhere: `get` reads it, `set` changes it."""
        self.name = name
        self.min = min
        self.max = max
        self.unit = unit
        self._get = get
        self._set = set

    @property
    def value(self) -> int:
        """The value now."""
        return self._get()

    def set(self, value: int) -> None:
        """Change it.

        Raises:
            ConfigError: The value is not a whole number within the limits.
        """
        if isinstance(value, bool) or int(value) != value or not self.min <= value <= self.max:
            raise ConfigError(f"{self.name}: given {value!r}, expected a whole number from {self.min} to {self.max}")
        self._set(int(value))

    def __repr__(self) -> str:
        return f"Tunable({self.name} = {self.value} {self.unit}, {self.min}..{self.max})"
