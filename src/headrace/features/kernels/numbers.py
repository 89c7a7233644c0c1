"""In-place operators on a block of numbers; null is NaN and stays NaN unless filled."""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["box_cox", "clamp", "fill", "is_null", "log1p", "logit", "standardize"]

_MANTISSA_32 = np.int32(23)
_ROOT_HALF_32 = np.int32(0x3F3504F3)  # the bits of sqrt(0.5), where the mantissa's range is centred on 1
_LN_2 = np.float32(0.6931471805599453)


@kernel()
def fill(block: Any, count: int, value: float) -> None:
    """Replace NaN with a value."""
    replacement = block.dtype.type(value)
    for index in range(count):
        number = block[index]
        block[index] = number if number == number else replacement


@kernel()
def is_null(block: Any, count: int) -> None:
    """1 for NaN, else 0."""
    for index in range(count):
        number = block[index]
        block[index] = 0.0 if number == number else 1.0


@kernel()
def standardize(block: Any, count: int, mean: float, std: float) -> None:
    """(x - mean) / std; NaN stays."""
    centre, width = block.dtype.type(mean), block.dtype.type(std)
    for index in range(count):
        block[index] = (block[index] - centre) / width


@kernel()
def clamp(block: Any, count: int, low: float, high: float) -> None:
    """Clamp to [low, high]; NaN stays."""
    minimum, maximum = block.dtype.type(low), block.dtype.type(high)
    for index in range(count):
        number = block[index]
        number = minimum if number < minimum else number
        block[index] = maximum if number > maximum else number


@kernel()
def _log1p_32(number: Any) -> Any:
    """log(1 + x) of a float32 x >= 0 within 2 units in the last place, without calls or branches so that it vectorises.

    1 + x = 2^e (1 + f) with 1 + f in [sqrt(0.5), sqrt(2)); f is x itself where e = 0, so nothing cancels for small x.
    The polynomial is that of Cephes' logf.
    """
    total = np.float32(number + np.float32(1))
    bits = total.view(np.int32)
    exponent = (bits - _ROOT_HALF_32) >> _MANTISSA_32
    fraction = np.int32(bits - (exponent << _MANTISSA_32)).view(np.float32) - np.float32(1)
    fraction = number if exponent == 0 else fraction
    square = fraction * fraction
    sum_ = np.float32(7.0376836292e-2)
    sum_ = sum_ * fraction - np.float32(1.1514610310e-1)
    sum_ = sum_ * fraction + np.float32(1.1676998740e-1)
    sum_ = sum_ * fraction - np.float32(1.2420140846e-1)
    sum_ = sum_ * fraction + np.float32(1.4249322787e-1)
    sum_ = sum_ * fraction - np.float32(1.6668057665e-1)
    sum_ = sum_ * fraction + np.float32(2.0000714765e-1)
    sum_ = sum_ * fraction - np.float32(2.4999993993e-1)
    sum_ = sum_ * fraction + np.float32(3.3333331174e-1)
    return fraction - np.float32(0.5) * square + fraction * square * sum_ + np.float32(exponent) * _LN_2


@kernel()
def log1p(block: Any, count: int, signed: bool) -> None:
    """sign(x) log(1 + |x|), or log(1 + x) with NaN below -1; computed in float32."""
    if signed:
        for index in range(count):
            number = np.float32(block[index])
            result = _log1p_32(abs(number))
            result = result if abs(number) < np.float32(np.inf) else abs(number)
            block[index] = -result if number < 0 else result
    else:
        for index in range(count):
            block[index] = np.log1p(block[index])


@kernel()
def box_cox(block: Any, count: int, power: float) -> None:
    """(x^power - 1) / power, or log(x) for power 0; NaN below 0."""
    for index in range(count):
        number = np.float64(block[index])
        if power == 0.0:
            block[index] = np.log(number)
        elif number < 0:
            block[index] = np.nan
        else:
            block[index] = (number**power - 1.0) / power


@kernel()
def logit(block: Any, count: int, epsilon: Any) -> None:
    """log(p / (1 - p)) of p clamped to [epsilon, 1 - epsilon]; NaN stays."""
    for index in range(count):
        share: Any = np.float64(block[index])
        share = epsilon if share < epsilon else share
        share = 1.0 - epsilon if share > 1.0 - epsilon else share
        block[index] = np.log(share / (1.0 - share))
