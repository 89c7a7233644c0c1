"""Features: operators on log columns, compiled into plans that turn record batches into tensors."""

from headrace.features import operators as _operators  # noqa: F401  (registers them)
from headrace.features.costs import FeatureCost, measure_costs
from headrace.features.operator import Column, ColumnOperator, FusedOperator, Kind, Operator
from headrace.features.operators.lists import RowSampling
from headrace.features.plan import FeaturePlan
from headrace.features.registry import operators, register
from headrace.features.savings import Savings
from headrace.features.warm_up import warmup

__all__ = [
    "Column",
    "ColumnOperator",
    "FeatureCost",
    "FeaturePlan",
    "FusedOperator",
    "Kind",
    "Operator",
    "RowSampling",
    "Savings",
    "measure_costs",
    "operators",
    "register",
    "warmup",
]
