"""`headrace doctor`: shows the resources of this machine and installation, and problems with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from headrace.observe.environment import Environment

__all__ = ["doctor"]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show effective CPUs and memory, threads, bf16 support, versions and free disk space.

    Example:

        headrace doctor
    """
    import sys

    from rich.console import Console

    from headrace.messages import to_json
    from headrace.observe.environment import examine

    found = examine()
    if as_json:
        typer.echo(to_json(found.to_dict(), indent=2))
    else:
        _print_environment(found, Console(width=None if sys.stdout.isatty() else 110, highlight=False))


def _print_environment(found: Environment, console: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from headrace.observe.environment import find_warnings
    from headrace.resources import format_bytes

    style = box.SIMPLE_HEAD if console.is_terminal else box.ASCII2

    def table(title: str, *columns: str) -> Table:
        made = Table(box=style, title=title, title_justify="left", title_style="bold", pad_edge=False)
        for number, column in enumerate(columns):
            made.add_column(column, justify="right" if number == 1 else "left", overflow="fold")
        return made

    cpus = table(f"CPUs: {found.cpus.count:g} effective ({found.processor})", "limit", "CPUs", "read from", "")
    for limit in found.cpus.sources:
        cpus.add_row(limit.what, f"{limit.count:g}", limit.where, "<- limits" if limit == found.cpus.limiting else "")
    memory = table(
        f"Memory: {format_bytes(found.memory.limit_bytes)} effective, "
        f"{format_bytes(found.memory.available_bytes)} available",
        *("limit", "bytes", "in use", "read from", ""),
    )
    for source in found.memory.sources:
        mark = "<- limits" if source == found.memory.limiting else ""
        sizes = format_bytes(source.limit_bytes), format_bytes(source.used_bytes)
        memory.add_row(source.what, *sizes, source.where, mark)
    threads = table("Threads", "library", "threads")
    for what, count in found.threads.items():
        threads.add_row(what, str(count))
    for part in (cpus, memory, threads):
        console.print(part)
        console.print()

    speed = found.matrix_speed
    flags = ", ".join(found.flags) or "no bf16 instructions"
    lines = [f"bf16: processor has {flags}"]
    if speed.fp32 and speed.bf16:
        ratio = speed.bf16 / speed.fp32
        lines.append(
            f"      {speed.size} x {speed.size} matrices: fp32 {speed.fp32:.0f} GFLOP/s, bf16 {speed.bf16:.0f} GFLOP/s "
            f"({ratio:.2f}x)"
        )
    for what, path, free, total in found.disks:
        lines.append(f"disk: {format_bytes(free)} of {format_bytes(total)} free in {what} {path}")
    if found.shm_bytes is not None:
        lines.append(f"/dev/shm: {format_bytes(found.shm_bytes)}")
    kept = "none: no writable folder" if found.kernels is None else f"{found.kernels} (writable)"
    lines.append(f"compiled kernels: {kept}")
    lines.append("versions: " + ", ".join(f"{name} {version}" for name, version in found.versions.items()))
    for line in lines:
        console.print(Text(line))
    console.print()
    warnings = find_warnings(found)
    for warning in warnings:
        console.print(Text(f"warning: {warning}", style="yellow"))
    if not warnings:
        console.print(Text("No problems found.", style="green"))
