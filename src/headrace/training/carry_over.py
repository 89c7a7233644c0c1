"""`carry_over_dense`: the dense parameters and optimizer state of a checkpoint, for a job with other features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from headrace.embeddings import EmbeddingsConfig
from headrace.embeddings.tables.state import Columns
from headrace.errors import ConfigError
from headrace.messages import shorten_list
from headrace.models.feature_axes import Array, FeatureAxes, FeatureAxis, carry_over, new_inputs, num_kept
from headrace.training.checkpoint import Snapshot
from headrace.training.commits import dense_parameters
from headrace.training.components import JobComponents
from headrace.training.dense_optimizer import STEP, initial_slot, optimizer_arrays, slots_of
from headrace.training.feature_changes import FeatureChanges
from headrace.training.job import JobConfig
from headrace.training.label_units import LABEL_BUFFERS

__all__ = ["DenseState", "carry_over_dense"]

OUTPUT_BIAS = "head.bias"
"""Kept even if all layers begin anew, because it holds the label rate; see `label_rate`."""


@dataclass(frozen=True)
class DenseState:
    """Dense parameters and their optimizer's state.

    Attributes:
        parameters: Parameters and buffers by name.
        optimizer: State as from `optimizer_arrays`.
        told: What was kept of the checkpoint, in one line.
    """

    parameters: Columns
    optimizer: Columns
    told: str


def carry_over_dense(
    snapshot: Snapshot, job: JobConfig, components: JobComponents, changes: FeatureChanges
) -> DenseState:
    """Keep what belongs to features that stay, as the model's `feature_axes` describe it.

    New inputs start at zero, so predictions do not change at this moment. If the model does not describe its
    parameters, they begin anew.

    Args:
        snapshot: The checkpoint.
        job: The job.
        components: Its components, not trained yet.
        changes: How the features differ.

    Raises:
        ConfigError: `feature_axes` does not fit the model's parameters.
    """
    saved, initial = snapshot.arrays.get("dense", {}), dense_parameters(components.model)
    was, now = _axes(job, changes.was), _axes(job, changes.now)
    if was is None or now is None:
        return _begun_anew(job, components, saved, initial)
    _check_entries(job, saved, was)
    _check_entries(job, initial, now)
    _check_shapes(job, saved, initial, was, now)
    values = {name: _carried(name, saved, array, was, now) for name, array in initial.items()}
    optimizer = _carried_optimizer(snapshot, job, components, changes, was, now)
    return DenseState(values, optimizer, _told(saved, initial, was, now))


def _axes(job: JobConfig, names: Mapping[str, tuple[str, ...]]) -> FeatureAxes | None:
    return job.model.feature_axes(dense_names=names["dense"], sparse_keys=names["sparse"])


def _begun_anew(job: JobConfig, components: JobComponents, saved: Columns, initial: Columns) -> DenseState:
    names = [name for name in (OUTPUT_BIAS, *LABEL_BUFFERS) if name in saved and name in initial]
    kept = {name: saved[name] for name in names if saved[name].shape == initial[name].shape}
    unless = f" except for {OUTPUT_BIAS}, the label rate" if OUTPUT_BIAS in kept else ""
    told = f"dense layers: begin anew{unless}, because model {job.model.kind} does not say what its weights belong to"
    return DenseState(initial | kept, optimizer_arrays(components.optimizer), told)


def _carried(name: str, saved: Columns, initial: Array, was: FeatureAxes, now: FeatureAxes) -> Array:
    """A parameter whose new inputs are zero."""
    if name not in saved:
        return initial
    before, after = was.get(name, ()), now.get(name, ())
    start = np.where(new_inputs(initial.shape, before, after), np.zeros_like(initial), initial)
    return carry_over(saved[name], start, before, after)


def _carried_optimizer(
    snapshot: Snapshot,
    job: JobConfig,
    components: JobComponents,
    changes: FeatureChanges,
    was: FeatureAxes,
    now: FeatureAxes,
) -> Columns:
    """The optimizer's state for the parameters that are kept; others begin with that of a new optimizer."""
    saved, optimizer = snapshot.arrays.get("dense", {}), snapshot.arrays.get("optimizer", {})
    fresh = optimizer_arrays(components.optimizer)
    numbers = {name: number for number, name in enumerate(_parameter_names(job, components, changes))}
    result: Columns = {}
    for number, (name, parameter) in enumerate(components.model.named_parameters()):
        slots, new = slots_of(optimizer, numbers.get(name)), slots_of(fresh, number)
        if not slots or not saved[name].size:  # it is new, or has had no entries so far
            result |= {f"{number}.{slot}": array for slot, array in new.items()}
            continue
        for slot, array in slots.items():
            if slot != STEP:
                start = initial_slot(slot, array, tuple(parameter.shape), new.get(slot))
                array = carry_over(array.reshape(saved[name].shape), start, was.get(name, ()), now.get(name, ()))
            result[f"{number}.{slot}"] = array
    return result


def _parameter_names(job: JobConfig, components: JobComponents, changes: FeatureChanges) -> list[str]:
    """Names of the parameters of the checkpoint's model, in the order in which its optimizer numbers them."""
    model = job.model.build(
        num_dense=len(changes.was["dense"]),
        sparse_keys=changes.was["sparse"],
        num_labels=len(components.label_names),
        embeddings=EmbeddingsConfig(),  # no table is created before it is used
        seed=job.training.seed,
    )
    return [name for name, _ in model.named_parameters()]


def _hook(job: JobConfig) -> str:
    return f"feature_axes of model {job.model.kind}"


def _check_entries(job: JobConfig, arrays: Columns, axes: FeatureAxes) -> None:
    """Check that a model's axes fit its parameters.

    Raises:
        ConfigError: A parameter does not exist, or an axis has another number of entries, or one of them twice.
    """
    for name, of_parameter in axes.items():
        if name not in arrays:
            raise ConfigError(f"{_hook(job)}: given {name}, expected parameters of the model: {shorten_list(arrays)}")
        shape = arrays[name].shape
        for axis in of_parameter:
            size = shape[axis.axis] if 0 <= axis.axis < len(shape) else 0
            num_different = len(set(axis.entries))
            if not size == num_different == len(axis.entries):
                raise ConfigError(
                    f"{_hook(job)}: {name}: given {len(axis.entries)} entries, {num_different} of them different, for "
                    f"axis {axis.axis} of shape {shape}, expected {size} different ones"
                )


def _check_shapes(job: JobConfig, saved: Columns, initial: Columns, was: FeatureAxes, now: FeatureAxes) -> None:
    """Check that parameters have the same shape but for the axes that depend on features.

    Raises:
        ConfigError: A parameter does not.
    """
    for name in (name for name in initial if name in saved):
        axes = [[axis.axis for axis in of.get(name, ())] for of in (was, now)]
        others = [
            [size for axis, size in enumerate(array.shape) if axis not in axes[0]]
            for array in (saved[name], initial[name])
        ]
        if axes[0] != axes[1] or others[0] != others[1]:
            raise ConfigError(
                f"{_hook(job)}: {name}: given axes {axes[0]} before and {axes[1]} now, but its shape was "
                f"{saved[name].shape} and is now {initial[name].shape}; expected the axes that depend on features"
            )


def _told(saved: Columns, initial: Columns, was: FeatureAxes, now: FeatureAxes) -> str:
    """What was kept of the dense layers, and what was not."""
    inputs = [
        f"{name} {num_kept(before, after):,} of {len(before.entries):,} inputs kept, "
        f"{len(after.entries) - num_kept(before, after):,} new at zero"
        for name, before, after in _changed_inputs(was, now)
    ]
    others = {
        "new": [name for name in initial if name not in saved],
        "dropped": [name for name in saved if name not in initial],
    }
    return "; ".join(
        ["dense layers: kept", *inputs, *(f"{what}: {shorten_list(of)}" for what, of in others.items() if of)]
    )


def _changed_inputs(was: FeatureAxes, now: FeatureAxes) -> list[tuple[str, FeatureAxis, FeatureAxis]]:
    """The input axes of parameters that exist before and after, if their entries differ."""
    return [
        (name, before, after)
        for name in now
        for before, after in zip(was.get(name, ()), now[name], strict=False)
        if after.is_input and list(before.entries) != list(after.entries)
    ]
