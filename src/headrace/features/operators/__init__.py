"""The built-in operators; importing this package registers them."""

from headrace.features.operators.ids import (
    Hash,
    LocalHour,
    MapId,
    PositiveModulus,
)
from headrace.features.operators.joins import Cartesian, IdListTransform, NGram
from headrace.features.operators.lists import Enumerate, FirstX, Sampling
from headrace.features.operators.numbers import (
    BoxCox,
    Bucketize,
    Cast,
    Clamp,
    Fill,
    IsNull,
    Log1p,
    Logit,
    OneHot,
    Standardize,
)
from headrace.features.operators.scores import ComputeScore

__all__ = [
    "BoxCox",
    "Bucketize",
    "Cartesian",
    "Cast",
    "Clamp",
    "ComputeScore",
    "Enumerate",
    "Fill",
    "FirstX",
    "Hash",
    "IdListTransform",
    "IsNull",
    "LocalHour",
    "Log1p",
    "Logit",
    "MapId",
    "NGram",
    "OneHot",
    "PositiveModulus",
    "Sampling",
    "Standardize",
]
