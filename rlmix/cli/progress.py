"""What commands that run for minutes have in common: a bar, threads, the exit code after Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# What shells give for a command that SIGINT ended.
INTERRUPTED = 130

# Threads cost small trainings more than they bring, and with one the result does not depend on the machine's cores.
THREADS = "Threads of torch on the CPU; more than one helps large classifiers only."

PROCESSES = "Processes that the trainings are divided among; the result is the same for any number."


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def counting_bar(console: Console, what: str = "trainings") -> Iterator[Callable[[int, int], None]]:
    """Give a hook that shows how many trainings are finished, where somebody can see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
