"""`TrainingStep`: one training step, which predicts and then trains, timing each phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.embeddings import apply_gradients, embedding_bags
from headrace.errors import HeadraceError
from headrace.models.layers import set_precision
from headrace.tensors import Batch
from headrace.training.dense_optimizer import clip_gradients
from headrace.training.learning_rate import LearningRateScheduleConfig
from headrace.training.loss import LabelLoss
from headrace.training.precision import AskedPrecision, PrecisionChoice, choose_precision

__all__ = ["StepResult", "TrainingStep"]


@dataclass(frozen=True)
class StepResult:
    """Predictions of a step, made before training on the batch.

    Attributes:
        logits: float32 [B, L], from which the loss was computed, so metrics need no second pass.
        loss: Weighted mean loss over rows and labels; for a micro-batch, its share of the batch's loss.
        seconds: Wall time by phase: forward, backward, push (of gradients to the embedding store), dense_optimizer;
            with a scheduler, or rows kept in the trainer, also pull, the wait for rows from the store.
    """

    logits: NDArray[np.float32]
    loss: float
    seconds: dict[str, float] = field(default_factory=dict)


class TrainingStep:
    """Predicts a batch with the current parameters, then trains on it.

    Call it as a whole, or phase by phase if a scheduler runs other work in between: `forward_backward`, `push`,
    `update`.

    Each row is predicted before any step trains on it, so metrics over these predictions are as good as on a test set
    (progressive validation: Blum, Kalai and Langford, COLT 1999).

    Attributes:
        num_rows: Rows that all trainers have trained on before the next step; a resumed run sets it.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        loss: LabelLoss | None = None,
        clip_grad_norm: float | None = None,
        precision: AskedPrecision = "fp32",
        schedule: LearningRateScheduleConfig | None = None,
        average: Callable[[Sequence[Tensor], int], int] | None = None,
    ) -> None:
        """Prepare the step.

        Args:
            model: Batch -> logits, float32 [B, L].
            optimizer: Optimizer of the dense parameters.
            loss: Loss of the labels; None for the log loss of all.
            clip_grad_norm: Maximum norm of the dense gradients; None for no clipping.
            precision: Precision of matrix products; "auto" is decided at the first batch, see `choose_precision`.
            schedule: Factor of all learning rates, dense and sparse; None for constant rates.
            average: Averages the gradients of the dense parameters over all trainers, given the rows of this trainer's
                batch; returns the rows of all.
        """
        self.model = model
        self.optimizer = optimizer
        self.loss = loss or LabelLoss()
        self.clip_grad_norm = clip_grad_norm
        self.precision: PrecisionChoice | None = None
        self.average = average
        self.schedule = schedule
        self.num_rows = 0
        self._rates = [group["lr"] for group in optimizer.param_groups] if schedule is not None else []
        self._dense = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._seconds: dict[str, float] = {}
        self._num_rows = 0  # of the batch
        self._asked: AskedPrecision = precision

    @property
    def lr_factor(self) -> float:
        """Factor of the learning rates in the next step."""
        return 1.0 if self.schedule is None else self.schedule.factor(self.num_rows)

    def settle_precision(self, num_rows: int, kept: AskedPrecision | None = None) -> PrecisionChoice:
        """Decide the precision of matrix products.

        Args:
            num_rows: Rows per batch.
            kept: An earlier "auto" decision of the run, or None.
        """
        if self._asked == "auto" and kept is not None:
            self.precision = PrecisionChoice(
                "fp32" if kept == "fp32" else "bf16", f"{kept}: decided when the run started"
            )
        else:
            self.precision = choose_precision(self.model, num_rows, self._asked)
        set_precision(self.model, self.precision.precision)
        return self.precision

    def __call__(self, batch: Batch) -> StepResult:
        """Predict a batch and train on it.

        Raises:
            HeadraceError: The loss is not finite; parameters are unchanged.
        """
        ((_, result),) = self.train_parts([batch], len(batch))
        return result

    def train_parts(self, parts: Iterable[Batch], num_rows: int) -> tuple[tuple[Batch, StepResult], ...]:
        """Predict the micro-batches of a batch and train on them, in one update.

        Args:
            parts: The micro-batches. Each is taken once those before it have their gradients.
            num_rows: Number of rows of the batch.

        Returns:
            Each with its result; the times of push and update are in the last one.

        Raises:
            HeadraceError: The loss is not finite, or micro-batches have more or fewer rows than the batch; parameters
                are unchanged.
        """
        trained = tuple((part, self.forward_backward(part, num_rows)) for part in parts)
        num_trained = sum(len(part) for part, _ in trained)
        if num_trained != num_rows:
            self._drop_gradients()
            raise HeadraceError(f"micro-batches have {num_trained:,} rows together, expected {num_rows:,}")
        self.push()
        self.update()
        return trained

    def forward_backward(self, batch: Batch, num_rows: int | None = None) -> StepResult:
        """The first phase: predict and accumulate gradients; `push` and `update` follow and add their seconds.

        If called once per micro-batch, gradients accumulate to those of the whole batch, and the losses of the results
        add up to its loss.

        Args:
            batch: A batch or a micro-batch.
            num_rows: Rows of the whole batch; None if this is the whole batch.

        Raises:
            HeadraceError: The loss is not finite; parameters are unchanged.
        """
        start = perf_counter()
        self._num_rows = len(batch) if num_rows is None else num_rows
        if self.precision is None:
            self.settle_precision(self._num_rows)
        logits = self.model(batch)
        where = logits.device
        weights = None if batch.weights is None else batch.weights.to(where)
        value, gradient = self.loss(logits, batch.labels.to(where), weights, num_rows=self._num_rows)
        forward = perf_counter()
        if not np.isfinite(value):
            self._drop_gradients()
            impossible = self.loss.impossible(batch.labels)
            if len(impossible):
                raise HeadraceError(
                    f"a label is {impossible[0]:g}, expected a number from 0 to 1, because it is binary and models "
                    "predict its probability; give it kind: regression in the schema, or convert it in pipeline.map"
                )
            raise HeadraceError(f"the loss is {value}; lower the learning rates, or clip_grad_norm, and train again")
        # The same as `logits.backward(gradient)`, which imports SymPy and parts of torch's compiler: half a second.
        (logits * gradient).sum().backward()
        self._seconds = {"forward": forward - start, "backward": perf_counter() - forward}
        return StepResult(logits.detach().cpu().numpy(), value, self._seconds)

    def _drop_gradients(self) -> None:
        for bags in embedding_bags(self.model).values():
            bags.drop_gradients()
        self.optimizer.zero_grad()

    def push(self) -> None:
        """The second phase: send the gradients of embedding rows to their stores."""
        start = perf_counter()
        apply_gradients(self.model, self._num_rows, lr_factor=self.lr_factor)
        self._seconds["push"] = perf_counter() - start

    def update(self) -> None:
        """The last phase: run the dense optimizer."""
        start = perf_counter()
        num_rows = self._num_rows
        if self.average is not None:
            num_rows = self.average(self._dense, num_rows)
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=False):
            group["lr"] = rate * self.lr_factor
        if self.clip_grad_norm is not None:
            clip_gradients(self.optimizer, self._dense, self.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_rows += num_rows
        self._seconds["dense_optimizer"] = perf_counter() - start
