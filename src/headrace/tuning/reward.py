"""The reward of the tuning environment: throughput, worth nothing as memory runs out.

InTune's equation 1 is not public. Its text says that the reward (a) is a direct function of pipeline latency and
memory use only, (b) hardly depends on memory while prefetching is moderate, and (c) goes to 0 as memory use goes to
100 %. The simplest form with all three is used here: r = min(1, rate / target) * (1 - m^k).
"""

from __future__ import annotations

__all__ = ["MEMORY_POWER", "reward"]

MEMORY_POWER = 8.0
"""k: at half the memory 0.4 % are taken off, at 92 % half."""


def reward(rate_per_s: float, memory_ratio: float, target_per_s: float) -> float:
    """The reward of a window, from 0 to 1.

    Args:
        rate_per_s: Elements delivered a second (1 / pipeline latency).
        memory_ratio: Share of the memory in use.
        target_per_s: A rate that would be as good as any: what the model takes, or what all CPUs together could give.
    """
    speed = min(1.0, rate_per_s / target_per_s) if target_per_s > 0 else 0.0
    return float(speed * (1.0 - min(max(memory_ratio, 0.0), 1.0) ** MEMORY_POWER))
