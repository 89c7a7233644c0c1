"""Tensors of a batch: id lists without padding, and the batch itself."""

from headrace.tensors.batch import Batch
from headrace.tensors.keyed_jagged import KeyedJaggedTensor
from headrace.tensors.validation import validate, validate_batch

__all__ = ["Batch", "KeyedJaggedTensor", "validate", "validate_batch"]
