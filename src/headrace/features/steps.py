"""Splits a plan's features into chains of fused operators and steps between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from headrace.features.kernels import interpret
from headrace.features.operator import ColumnOperator, FusedOperator, Kind
from headrace.features.operators import FirstX, OneHot
from headrace.features.program import ALL_ELEMENTS, Program, ProgramBuilder
from headrace.features.spec import FeatureSpec

__all__ = ["Chains", "OneHotRun", "Step", "Steps", "build_steps"]

Chains = NDArray[np.int64]  # [N, 6]: source, first operator, end, starts with ids, elements to read, weights


@dataclass(frozen=True, eq=False)
class Step:
    """A column operator whose result becomes a new source.

    Attributes:
        operator: The operator.
        where: Feature and operator, for error messages.
        inputs: One chain per input.
        kinds: Kinds of the inputs.
        output: Number of the resulting source.
        returns: Kind of the result.
    """

    operator: ColumnOperator
    where: str
    inputs: Chains
    kinds: tuple[Kind, ...]
    output: int
    returns: Kind


@dataclass(frozen=True, eq=False)
class OneHotRun:
    """A one-hot feature: the chain that computes the bucket, and the columns it fills."""

    chain: Chains
    first_column: int
    num_columns: int


@dataclass(frozen=True, eq=False)
class Steps:
    """A compiled plan, independent of column types.

    Attributes:
        program: Opcodes of all chains.
        columns: Source columns by number.
        num_sources: Number of columns and results of steps.
        steps: Steps in execution order.
        dense: Runs of adjacent dense columns: first column and chains.
        one_hots: Dense columns made by `one_hot`.
        dense_names: Names of all dense columns.
        sparse: int64 [F, 6], one chain per key without weights.
        shareable: Bool [F], whether ids may be computed independently of their lists.
        weighted: int64 [W, 6], one chain per key with weights.
        sparse_keys: Names of the keys; keys with weights are last.
    """

    program: Program
    columns: tuple[str, ...]
    num_sources: int
    steps: tuple[Step, ...]
    dense: tuple[tuple[int, Chains], ...]
    one_hots: tuple[OneHotRun, ...]
    dense_names: tuple[str, ...]
    sparse: Chains
    shareable: NDArray[np.bool_]
    weighted: Chains
    sparse_keys: tuple[str, ...]

    @property
    def num_features(self) -> int:
        """Number of dense columns plus keys."""
        return len(self.dense_names) + len(self.sparse_keys)


def build_steps(specs: Sequence[FeatureSpec], kinds: dict[str, Kind], places: Mapping[str, int] | None = None) -> Steps:
    """Split features into chains and steps; consecutive fused operators become one chain.

    Args:
        specs: The features.
        kinds: Kind of each column.
        places: First matrix column of each dense feature; None for consecutive columns.
    """
    return _Builder(specs, kinds, places).build()


@dataclass
class _Pending:
    """A source with pending fused operators."""

    source: int
    kind: Kind
    operators: list[FusedOperator]

    @property
    def result(self) -> Kind:
        kind = self.kind
        for operator in self.operators:
            kind = operator.returns([kind])
        return kind


class _Builder:
    def __init__(self, specs: Sequence[FeatureSpec], kinds: dict[str, Kind], places: Mapping[str, int] | None) -> None:
        self.specs = specs
        self.kinds = kinds
        self.places = places
        names = [name for spec in specs for name in (*spec.sources, spec.weights) if name is not None]
        self.columns = tuple(dict.fromkeys(names))
        self.num_sources = len(self.columns)
        self.program = ProgramBuilder()
        self.steps: list[Step] = []

    def build(self) -> Steps:
        dense, one_hots, names = self._dense()
        plain = [spec for spec in self.specs if spec.section == "sparse" and spec.weights is None]
        weighted = [spec for spec in self.specs if spec.weights is not None]
        branches = [self._run_steps(spec) for spec in plain]
        sparse = _stack([self._chain(branch) for branch in branches])
        with_weights = _stack([self._chain(self._run_steps(spec), weights=spec.weights) for spec in weighted])
        return Steps(
            program=self.program.build(),
            columns=self.columns,
            num_sources=self.num_sources,
            steps=tuple(self.steps),
            dense=dense,
            one_hots=one_hots,
            dense_names=names,
            sparse=sparse,
            shareable=np.array([_is_shareable(branch) for branch in branches], np.bool_),
            weighted=with_weights,
            sparse_keys=tuple(spec.name for spec in [*plain, *weighted]),
        )

    def _dense(self) -> tuple[tuple[tuple[int, Chains], ...], tuple[OneHotRun, ...], tuple[str, ...]]:
        runs: list[tuple[int, list[Chains]]] = []
        one_hots: list[OneHotRun] = []
        names: list[str] = []
        for spec in self.specs:
            if spec.section != "dense":
                continue
            chain = self._chain(self._run_steps(spec))
            place = len(names) if self.places is None else self.places[spec.name]
            last = spec.operators[-1] if spec.operators else None
            if isinstance(last, OneHot):
                one_hots.append(OneHotRun(_stack([chain]), place, last.num_columns))
                names += [f"{spec.name}_{bucket}" for bucket in range(last.num_columns)]
                continue
            if not runs or runs[-1][0] + len(runs[-1][1]) != place:
                runs.append((place, []))
            runs[-1][1].append(chain)
            names.append(spec.name)
        return tuple((first, _stack(chains)) for first, chains in runs), tuple(one_hots), tuple(names)

    def _run_steps(self, spec: FeatureSpec) -> _Pending:
        """Turn all column operators of a feature into steps; the remainder is one chain."""
        pending = [_Pending(self.columns.index(name), self.kinds[name], []) for name in spec.sources]
        for number, operator in enumerate(spec.operators, start=1):
            if isinstance(operator, FusedOperator):
                for branch in pending:
                    branch.operators.append(operator)
                continue
            assert isinstance(operator, ColumnOperator)
            where = f"{spec.where}, operator {number} ({operator.name})"
            kinds = tuple(branch.result for branch in pending)
            inputs = _stack([self._chain(branch, keep_numbers=True) for branch in pending])
            returns = operator.returns(kinds)
            self.steps.append(Step(operator, where, inputs, kinds, self.num_sources, returns))
            pending = [_Pending(self.num_sources, returns, [])]
            self.num_sources += 1
        return pending[0]

    def _chain(self, branch: _Pending, *, keep_numbers: bool = False, weights: str | None = None) -> Chains:
        """Emit a chain; with `keep_numbers`, numbers are stored as float64 bits so that they travel like ids."""
        limit, operators = _hoist_first_x(branch)
        start = self.program.position
        if limit is not None:
            self.program.add(interpret.FIRST_X, limit)
        kind = branch.kind
        for operator in operators:
            operator.emit(self.program, kind)
            kind = operator.returns([kind])
        if keep_numbers and not kind.has_ids:
            self.program.add(interpret.NUMBER_BITS)
        read = ALL_ELEMENTS if limit is None else limit
        weight = -1 if weights is None else self.columns.index(weights)
        return np.array([branch.source, start, self.program.position, branch.kind.has_ids, read, weight], np.int64)


def _hoist_first_x(branch: _Pending) -> tuple[int | None, list[FusedOperator]]:
    """Extract the smallest `first_x` that may be applied while reading; returns it and the other operators.

    A `first_x` may move before elementwise operators that drop no ids.
    """
    limit: int | None = None
    rest: list[FusedOperator] = []
    kind, dropped = branch.kind, False
    for operator in branch.operators:
        if isinstance(operator, FirstX) and not dropped:
            limit = operator.count if limit is None else min(limit, operator.count)
        else:
            # A null in a list of numbers counts as an element, but not after it became a missing id.
            dropped = dropped or operator.drops_ids(kind) or (operator.returns([kind]).has_ids and not kind.has_ids)
            rest.append(operator)
        kind = operator.returns([kind])
    return limit, rest


def _is_shareable(branch: _Pending) -> bool:
    """Whether each result depends only on its id, not on its list, and ids are dropped only after a `first_x`."""
    kind = branch.kind
    for operator in _hoist_first_x(branch)[1]:
        if not (kind.has_ids and operator.elementwise) or operator.drops_ids(kind):
            return False
        kind = operator.returns([kind])
    return branch.kind.has_ids


def _stack(chains: Sequence[Chains]) -> Chains:
    return np.array(chains, dtype=np.int64).reshape(-1, 6)
