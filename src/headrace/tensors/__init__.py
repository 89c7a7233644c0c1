"""Tensors of a batch: id lists without padding, plain or with repeated rows stored once, and the batch itself."""

from headrace.tensors.batch import Batch
from headrace.tensors.inverse_keyed_jagged import InverseKeyedJaggedTensor
from headrace.tensors.keyed_jagged import KeyedJaggedTensor
from headrace.tensors.validation import validate, validate_batch

__all__ = ["Batch", "InverseKeyedJaggedTensor", "KeyedJaggedTensor", "validate", "validate_batch"]
