"""Batches of tensors: id lists without padding, plain or deduplicated, and unique keys."""

from headrace.tensors.batch import Batch
from headrace.tensors.inverse_keyed_jagged import InverseKeyedJaggedTensor
from headrace.tensors.jagged_ids import Group
from headrace.tensors.keyed_jagged import KeyedJaggedTensor
from headrace.tensors.keys import BatchKeys, KeyFinder, Keys
from headrace.tensors.validation import validate, validate_batch

__all__ = [
    "Batch",
    "BatchKeys",
    "Group",
    "InverseKeyedJaggedTensor",
    "KeyFinder",
    "KeyedJaggedTensor",
    "Keys",
    "validate",
    "validate_batch",
]
