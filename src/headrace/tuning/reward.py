"""The reward of the tuning environment: throughput, reduced to 0 as memory runs out.

InTune's equation 1 is not public. Its text says that the reward (a) is a direct function of pipeline latency and memory
use only, (b) hardly depends on memory while prefetching is moderate, and (c) goes to 0 as memory use goes to 100 %. The
simplest form with all three properties is used here: r = min(1, rate / target) * (1 - m^k).
"""

from __future__ import annotations

__all__ = ["MEMORY_POWER", "reward"]

MEMORY_POWER = 8.0
"""k: the reward is reduced by 0.4 % at half of the memory, and by half at 92 %."""


def reward(rate_per_s: float, memory_ratio: float, target_per_s: float) -> float:
    """The reward of a window, from 0 to 1.

    Args:
        rate_per_s: Elements delivered per second (1 / pipeline latency).
        memory_ratio: Fraction of the memory in use.
        target_per_s: The rate that earns the full reward: that of the model, or the maximum of all CPUs.
    """
    speed = min(1.0, rate_per_s / target_per_s) if target_per_s > 0 else 0.0
    return float(speed * (1.0 - min(max(memory_ratio, 0.0), 1.0) ** MEMORY_POWER))
