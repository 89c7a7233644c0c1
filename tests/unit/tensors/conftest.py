"""The kernels are compiled before the first test: hypothesis measures how long examples take."""

from headrace.tensors import InverseKeyedJaggedTensor, KeyedJaggedTensor

InverseKeyedJaggedTensor.from_keyed_jagged(KeyedJaggedTensor.from_lists({"a": [[1], [1]]})).expand()
