"""Policies on the engine's own rules, with a virtual clock: rates by hand, changes of the machine, order."""

from typing import Any

from headrace.simulation import published_pipeline
from headrace.testing.virtual_engine import VirtualEngine
from headrace.tuning.policies import Auto, Policy
from headrace.tuning.policies.oracle import true_rates
from headrace.tuning.rates import fluid_rate

SPEC = published_pipeline(0.25)


def tune(engine: VirtualEngine, policy: Policy, seconds: int, *, start: bool) -> list[str]:
    """Let a policy decide every second; what it said."""
    reasons = []
    for second in range(seconds):
        proposal: Any = (
            policy.start(engine.space, engine.observe()) if start and second == 0 else policy.decide(engine.observe())
        )
        engine.apply(proposal.values)
        reasons.append(proposal.reason)
        engine.run(1.0)
    return reasons


def test_auto_finds_the_rate_of_the_cpus_and_follows_a_resize_without_touching_the_order() -> None:
    engine, policy = VirtualEngine(SPEC, 4), Auto()
    for cpus in (4, 12, 3):
        before, engine.cpus = engine.cpus, cpus
        reasons = tune(engine, policy, 30, start=cpus == 4)
        assert engine.run(100.0) / 100.0 > 0.95 * fluid_rate(true_rates(SPEC), cpus), reasons
        assert cpus == before or any(f"CPUs {before} -> {cpus}" in reason for reason in reasons)
    assert engine.taken == list(range(len(engine.taken)))
