"""Adapters that make other libraries' loaders tunable, each by the means of its library."""

from headrace.tuning.adapters.dataloader import TunedDataLoader
from headrace.tuning.adapters.raydata import TunedRayData
from headrace.tuning.adapters.rebuilt import TunedRebuilt

__all__ = ["TunedDataLoader", "TunedRayData", "TunedRebuilt"]
