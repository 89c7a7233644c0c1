"""`ToDevice`: copies batches of tensors to a device ahead of the consumer.

Memory: a batch on the device is charged like one on the host, because the ledger has a single budget.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, ClassVar

from headrace.pipeline.transformations.transformation import Transformation

__all__ = ["ToDevice"]


@dataclass(frozen=True)
class ToDevice(Transformation):
    """Copies a batch of tensors to a device; to CUDA through page-locked memory, on a separate stream."""

    device: str

    kind: ClassVar[str] = "to_device"

    def __call__(self, payload: Any, seed: tuple[int, ...]) -> Any:
        if not self.device.startswith("cuda"):
            return payload.to(self.device)
        import torch  # pipelines of rows do not need torch

        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            moved = payload.pin_memory().to(self.device, non_blocking=True)
        stream.synchronize()
        # The consumer computes on the default stream; until it is done, the memory must not be reused for the next
        # copy.
        for tensor in _tensors_of(moved):
            tensor.record_stream(torch.cuda.default_stream(self.device))
        return moved


def _tensors_of(value: Any) -> Iterator[Any]:
    """All tensors on a CUDA device in a (nested) batch."""
    if getattr(value, "is_cuda", False):
        yield value
    elif is_dataclass(value):
        for part in fields(value):
            yield from _tensors_of(getattr(value, part.name))
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors_of(part)
