"""`Traffic`: which model answers a request, and which ones only score it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.messages import shorten_list

__all__ = ["Traffic"]


@dataclass(frozen=True)
class Traffic:
    """How requests are divided between models.

    Attributes:
        main: Name of the model that answers what no other does.
        shares: Names of candidates, and the part of the requests that each answers.
        shadows: Models that score every request, and whose scores are only compared with labels.
    """

    main: str
    shares: tuple[tuple[str, float], ...] = ()
    shadows: tuple[str, ...] = ()

    @classmethod
    def of(cls, names: Iterable[str], split: Iterable[str], shadows: Iterable[str]) -> Traffic:
        """The division from the options of a command.

        Args:
            names: Names of all models, the main one first.
            split: Parts such as `candidate=0.1`.
            shadows: Names.

        Raises:
            ConfigError: A name is unknown or given twice, or the shares are more than all.
        """
        known, shares = list(names), []
        for text in split:
            match = re.fullmatch(r"(.+)=(0?\.[0-9]+|[01](?:\.0*)?)", text)
            if match is None:
                raise ConfigError(f"--split: given {text!r}, expected NAME=SHARE with a share from 0 to 1")
            shares.append((match[1], float(match[2])))
        shadowed = tuple(shadows)
        for option, used in (("--split", [name for name, _ in shares]), ("--shadow", list(shadowed))):
            for name in used:
                if name not in known[1:] or used.count(name) > 1:
                    others = shorten_list(known[1:]) or "none: add --model"
                    raise ConfigError(f"{option}: given {name}, expected different ones of: {others}")
        if sum(share for _, share in shares) > 1:
            raise ConfigError("--split: the shares are more than 1 together")
        return cls(known[0], tuple(shares), shadowed)

    def model_of(self, key: bytes) -> str:
        """The model that answers a request, always the same one for a key."""
        if not self.shares:
            return self.main
        place = int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "little") / 2**56
        for name, share in self.shares:
            if place < share:
                return name
            place -= share
        return self.main
