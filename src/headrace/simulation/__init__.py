"""A pipeline on a virtual clock: where policies are compared and learners trained in seconds, not hours."""

from headrace.simulation.simulator import PipelineSimulator, SimulatedStage, SimulatedTotals
from headrace.simulation.spec import Distribution, Drift, Machine, MachinePhase, PipelineSpec, StageSpec

__all__ = [
    "Distribution",
    "Drift",
    "Machine",
    "MachinePhase",
    "PipelineSimulator",
    "PipelineSpec",
    "SimulatedStage",
    "SimulatedTotals",
    "StageSpec",
]
