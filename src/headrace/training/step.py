"""One training step: predict, then train, with the time of each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.embeddings import apply_gradients, embedding_bags
from headrace.errors import HeadraceError
from headrace.tensors import Batch

__all__ = ["StepResult", "TrainingStep"]


@dataclass(frozen=True)
class StepResult:
    """What a step predicted before it trained.

    Attributes:
        logits: float32 [B, L].
        loss: Weighted mean log loss over rows and labels.
        seconds: Wall time by part: forward, backward, push, dense_optimizer; pull is the part of forward and push
            the part of training that the embedding store took.
    """

    logits: NDArray[np.float32]
    loss: float
    seconds: dict[str, float] = field(default_factory=dict)


class TrainingStep:
    """Predicts a batch with the parameters as they are, then trains on it.

    Because each row is predicted before any step has seen it, metrics over these predictions are those of a test set
    (progressive validation: Blum, Kalai and Langford, COLT 1999).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip_grad_norm: float | None = None,
        average: Callable[[Sequence[Tensor], int], None] | None = None,
        announce_rows: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare for batches.

        Args:
            model: Batch -> logits float32 [B, L].
            optimizer: Of the dense parameters.
            clip_grad_norm: Greatest norm of the dense gradient; None for any.
            average: Given the dense parameters and the rows of a batch, makes their gradients those of all trainers.
            announce_rows: Given the rows of a batch before its gradients are pushed.
        """
        self.model = model
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm
        self.average = average
        self.announce_rows = announce_rows
        self._dense = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._seconds: dict[str, float] = {}
        self._num_rows = 0

    def __call__(self, batch: Batch) -> StepResult:
        """Predict and train.

        Raises:
            HeadraceError: The loss is not finite; parameters are left as they were.
        """
        result = self.forward_backward(batch)
        self.push()
        self.update()
        return result

    def forward_backward(self, batch: Batch) -> StepResult:
        """The first phase: predict, and find all gradients; `push` and `update` follow, and add their seconds.

        Raises:
            HeadraceError: The loss is not finite; parameters are left as they were.
        """
        start = perf_counter()
        self._num_rows = len(batch)
        logits = self.model(batch)
        weights = None if batch.weights is None else batch.weights[:, None]
        loss = binary_cross_entropy_with_logits(logits, batch.labels, weight=weights)
        value = loss.item()
        forward = perf_counter()
        if not np.isfinite(value):
            for bags in embedding_bags(self.model).values():
                bags.drop_gradients()
            raise HeadraceError(f"the loss is {value}; lower the learning rates, or clip_grad_norm, and train again")
        loss.backward()  # type: ignore[no-untyped-call]
        self._seconds = {"forward": forward - start, "backward": perf_counter() - forward}
        return StepResult(logits.detach().numpy(), value, self._seconds)

    def push(self) -> None:
        """The second phase: rows learn."""
        start = perf_counter()
        if self.announce_rows is not None:
            self.announce_rows(self._num_rows)
        apply_gradients(self.model)
        self._seconds["push"] = perf_counter() - start

    def update(self) -> None:
        """The last phase: dense parameters learn."""
        start = perf_counter()
        if self.average is not None:
            self.average(self._dense, self._num_rows)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self._dense, self.clip_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._seconds["dense_optimizer"] = perf_counter() - start
