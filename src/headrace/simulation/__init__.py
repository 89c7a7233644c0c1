"""Simulates pipelines on a virtual clock, to compare policies and train learners in seconds instead of hours."""

from headrace.simulation.calibrate import calibrate
from headrace.simulation.published import LATENCY_SPLIT, PUBLISHED_CPUS, published_machine, published_pipeline
from headrace.simulation.simulator import PipelineSimulator, SimulatedStage, SimulatedTotals
from headrace.simulation.spec import Distribution, Drift, Machine, MachinePhase, PipelineSpec, StageSpec

__all__ = [
    "LATENCY_SPLIT",
    "PUBLISHED_CPUS",
    "Distribution",
    "Drift",
    "Machine",
    "MachinePhase",
    "PipelineSimulator",
    "PipelineSpec",
    "SimulatedStage",
    "SimulatedTotals",
    "StageSpec",
    "calibrate",
    "published_machine",
    "published_pipeline",
]
