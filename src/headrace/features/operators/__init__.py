"""The operators headrace brings; importing this registers them."""

from headrace.features.operators.ids import (
    Hash,
    LocalHour,
    MapId,
    PositiveModulus,
)
from headrace.features.operators.lists import Enumerate, FirstX, Sampling
from headrace.features.operators.numbers import BoxCox, Bucketize, Cast, Clamp, Fill, Log1p, Logit, OneHot

__all__ = [
    "BoxCox",
    "Bucketize",
    "Cast",
    "Clamp",
    "Enumerate",
    "Fill",
    "FirstX",
    "Hash",
    "LocalHour",
    "Log1p",
    "Logit",
    "MapId",
    "OneHot",
    "PositiveModulus",
    "Sampling",
]
