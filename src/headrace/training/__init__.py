"""Incremental training: one pass over new data, with checkpoints and metrics."""

from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.dense_optimizer import load_optimizer_arrays, optimizer_arrays
from headrace.training.job import JobConfig
from headrace.training.learning_rate import LearningRateScheduleConfig
from headrace.training.metrics import BinaryMetrics, RegressionMetrics, Scores
from headrace.training.results import RunTotals, TrainResult, WindowResult
from headrace.training.run_folder import RunFolder
from headrace.training.step import StepResult, TrainingStep
from headrace.training.trainer import Trainer

__all__ = [
    "BinaryMetrics",
    "CheckpointFolder",
    "JobConfig",
    "LearningRateScheduleConfig",
    "RegressionMetrics",
    "RunFolder",
    "RunTotals",
    "Scores",
    "Snapshot",
    "StepResult",
    "TrainResult",
    "Trainer",
    "TrainingStep",
    "WindowResult",
    "load_optimizer_arrays",
    "optimizer_arrays",
]
