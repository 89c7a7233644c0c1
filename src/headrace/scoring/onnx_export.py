"""Exports the dense part of a model as ONNX: dense features and pooled embeddings in, outputs of the model out."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, embedding_bags
from headrace.errors import ConfigError, HeadraceError, MissingExtra
from headrace.tensors import Batch

__all__ = ["DenseNet", "export_onnx"]

TOLERANCE = 1e-4


class DenseNet(nn.Module):
    """A model without its tables: it takes what its `EmbeddingBags` would pool.

    Args:
        model: The model, in evaluation.

    Attributes:
        names: Names of the inputs: `dense`, then `pooled_<module>` for each `EmbeddingBags`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._bags = embedding_bags(model)
        self.names = ["dense", *(f"pooled_{name.replace('.', '_')}" for name in self._bags)]

    def forward(self, dense: Tensor, *pooled: Tensor) -> Tensor:
        """Compute outputs, float32 [B, L], of dense features, float32 [B, N], and the pooled embeddings of each module,
        float32 [B, F, D].
        """
        num_rows = dense.shape[0]  # not `len`, which would make it a constant
        batch = Batch(dense, (), dense.new_zeros(num_rows, 0), dense.new_zeros(num_rows, dtype=torch.int64))
        with contextlib.ExitStack() as stack:
            for bags, of_bags in zip(self._bags.values(), pooled, strict=True):
                stack.enter_context(_pooled_already(bags, of_bags))
            outputs: Tensor = self.model(batch)
        return outputs


@contextlib.contextmanager
def _pooled_already(bags: EmbeddingBags, pooled: Tensor) -> Iterator[None]:
    """Within this context, a module pools to a given tensor."""

    def pool(lookup: Any, out: Tensor | None = None) -> Tensor:
        return pooled if out is None else out.copy_(pooled)

    def refuse(*_: Any, **__: Any) -> Any:
        raise ConfigError("onnx: this model needs the rows of ids one by one, and not only pooled embeddings")

    given = {"lookup": lambda batch: None, "pool": pool, "forward": lambda batch, out=None: pool(None, out)}
    replaced = {**given, "sequence": refuse, "pool_unique": refuse}
    for name, function in replaced.items():
        object.__setattr__(bags, name, function)
    try:
        yield
    finally:
        for name in replaced:
            object.__delattr__(bags, name)


def export_onnx(model: nn.Module, sample: Sequence[Batch], path: Path) -> float:
    """Write the dense part of a model as ONNX, run it, and compare it with the model.

    Args:
        model: The model.
        sample: Batches on which to compare.
        path: The file.

    Returns:
        The maximum difference of outputs.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
        ConfigError: The model needs more than pooled embeddings, or cannot be written as ONNX; the text has the reason.
        HeadraceError: The outputs differ.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # the exporter of torch needs it
    except ImportError as error:
        raise MissingExtra(error.name or "onnx", "onnx") from error
    net = DenseNet(model.eval())
    inputs = [_inputs_of(model, batch) for batch in sample]
    rows = torch.export.Dim("rows", min=1, max=1 << 20)
    shapes = {"dense": {0: rows}, "pooled": tuple({0: rows} for _ in net.names[1:])}
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            net(*inputs[0])
            program = torch.onnx.export(
                net,
                inputs[0],
                input_names=net.names,
                output_names=["outputs"],
                dynamic_shapes=shapes,
                dynamo=True,
                verbose=False,
            )
        except HeadraceError:
            raise
        except Exception as error:
            raise ConfigError(f"onnx: cannot be exported: {' '.join(str(error).split())[:300]}") from error
        assert program is not None
        program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    gaps = []
    for batch, given in zip(sample, inputs, strict=True):
        fed = {name: tensor.numpy() for name, tensor in zip(net.names, given, strict=True) if name in names}
        with torch.inference_mode():
            gaps.append(float(np.abs(session.run(None, fed)[0] - model(batch).numpy()).max()))
    if not max(gaps) <= TOLERANCE:
        raise HeadraceError(f"onnx: outputs differ by {max(gaps):.3g} from the model's, expected at most {TOLERANCE:g}")
    return max(gaps)


def _inputs_of(model: nn.Module, batch: Batch) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (
            batch.dense.clone(),
            *(bags.pool(bags.lookup(batch)).clone() for bags in embedding_bags(model).values()),
        )
