"""`Program`: a plan's operators as arrays that the kernels interpret."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["ALL_ELEMENTS", "Program", "ProgramBuilder"]

ALL_ELEMENTS = 1 << 62
"""`limit` of a chain that reads all elements of a row."""

_WORDS = 7


@dataclass(frozen=True, eq=False)
class Program:
    """All chains of a plan in compiled form.

    Attributes:
        ops: int64 [N, 7]: opcode, integers or a position in `floats`, and positions of tables.
        integers: int64, concatenated integer tables.
        floats: float64, concatenated parameters and float tables.
    """

    ops: NDArray[np.int64]
    integers: NDArray[np.int64]
    floats: NDArray[np.float64]


class ProgramBuilder:
    """Collects the opcodes that the `emit` methods of fused operators add."""

    def __init__(self) -> None:
        self._ops: list[list[int]] = []
        self._integers: list[NDArray[np.int64]] = []
        self._floats: list[NDArray[np.float64]] = []
        self._num_integers = 0
        self._num_floats = 0

    @property
    def position(self) -> int:
        """Position of the next operator."""
        return len(self._ops)

    def add(
        self,
        code: int,
        *numbers: int,
        floats: Sequence[float] | NDArray[np.float64] = (),
        table: NDArray[np.int64] | None = None,
    ) -> None:
        """Add an operator.

        Args:
            code: An opcode of `headrace.features.kernels.interpret`.
            numbers: Up to four integers (two if there are floats), stored in words 1 to 4; uint64 values keep their
                bits.
            floats: Float parameters and tables; their position and size are stored in words 3 and 4.
            table: An integer table; its position and size are stored in words 5 and 6.
        """
        words = [code, *(_signed(number) for number in numbers)]
        words += [0] * (_WORDS - len(words))
        if len(floats):
            words[3], words[4] = self._num_floats, len(floats)
            self._floats.append(np.asarray(floats, dtype=np.float64))
            self._num_floats += len(floats)
        if table is not None:
            words[5], words[6] = self._num_integers, table.size
            self._integers.append(table.astype(np.int64, copy=False))
            self._num_integers += table.size
        self._ops.append(words)

    def build(self) -> Program:
        """Concatenate everything into arrays."""
        return Program(
            np.array(self._ops, dtype=np.int64).reshape(-1, _WORDS),
            np.concatenate([np.zeros(0, np.int64), *self._integers]),
            np.concatenate([np.zeros(0, np.float64), *self._floats]),
        )


def _signed(number: int) -> int:
    """The int64 with the same bits as a uint64."""
    return number - (1 << 64) if number >= 1 << 63 else number
