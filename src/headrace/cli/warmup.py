"""`headrace warmup`: compiles all kernels once, so that jobs do not have to."""

from __future__ import annotations

MAX_PROCESSES = 4
"""Maximum processes. Groups share kernels, so more processes would compile many twice, and each uses half a
gigabyte."""


def warmup() -> None:
    """Compile the kernels and store them on disk, so that later starts only load them.

    They are stored next to the package, or if that is read-only, in HEADRACE_CACHE or the user's cache folder
    (XDG_CACHE_HOME, ~/.cache).

    Example: headrace warmup
    """
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from functools import partial
    from multiprocessing import get_context
    from pathlib import Path

    from headrace.errors import ConfigError
    from headrace.kernel_folders import CACHE_VARIABLE, kernel_folders
    from headrace.lifeline import end_with_parent
    from headrace.observe.progress import Progress
    from headrace.resources import effective_cpus
    from headrace.serving.rows.cached import warm_up_cache
    from headrace.training.warm_up import compile_group, warm_up_groups

    if kernel_folders(Path(__file__).parents[1] / "features").kept is None:
        raise ConfigError(f"warmup: no writable folder for compiled kernels; set {CACHE_VARIABLE} to a writable folder")
    groups = {name: partial(compile_group, name) for name in warm_up_groups()} | {"row cache": warm_up_cache}
    processes = max(1, min(MAX_PROCESSES, int(effective_cpus().count)))
    with (
        Progress("compile kernels", total=len(groups), unit="groups") as progress,
        ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=end_with_parent) as pool,
    ):
        compiling = {pool.submit(compile_it): name for name, compile_it in groups.items()}
        for done in as_completed(compiling):
            done.result()
            progress.update(progress.done + 1, {"compiled": compiling[done]})
