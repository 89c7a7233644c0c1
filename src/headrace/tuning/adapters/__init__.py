"""Other libraries' loaders as jobs: the same tuner sets their workers, each by the means that its library has."""

from headrace.tuning.adapters.dataloader import TunedDataLoader
from headrace.tuning.adapters.raydata import TunedRayData
from headrace.tuning.adapters.rebuilt import TunedRebuilt

__all__ = ["TunedDataLoader", "TunedRayData", "TunedRebuilt"]
