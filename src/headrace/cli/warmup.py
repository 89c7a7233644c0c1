"""`headrace warmup`: compile once, so that no job waits for it."""

from __future__ import annotations


def warmup() -> None:
    """Compile the kernels; they are kept on disk beside the package, and later starts only load them.

    Example: headrace warmup
    """
    from headrace.observe.progress import Progress
    from headrace.training.warm_up import warm_up_steps

    steps = list(warm_up_steps())
    with Progress("compile kernels", total=len(steps), unit="groups") as progress:
        for name, compile_group in steps:
            progress.update(progress.done, {"now": name})
            compile_group()
            progress.advance()
