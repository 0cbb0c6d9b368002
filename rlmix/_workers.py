"""Work that is divided among processes, in order, and stops with the one that asked for it."""

from __future__ import annotations

import collections
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Self, TypeVar, final

import torch

from rlmix.errors import EnvError, InputError

Task = TypeVar("Task")
Result = TypeVar("Result")

# Tasks that wait for each process: enough that none is idle, few enough that an interruption costs little.
_AHEAD = 2


@final
class Workers:
    """Processes that wait for tasks; a context manager, since they must end.

    Args:
        processes: how many, at least 1; 1 does everything in this one.
        prepare: called in each new process, a function of a module.
        arguments: what it is called with.

    Raises:
        InputError: `processes` is below 1.
    """

    def __init__(self, processes: int, prepare: Callable[..., None] | None = None, *arguments: Any) -> None:
        if processes < 1:
            raise InputError(f"`processes` must be at least 1, got {processes}.")
        self._processes, self._executor = processes, None
        if processes > 1:
            # A child of `fork` would share locks and threads of torch with its parent.
            self._executor = ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(prepare, arguments)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._executor is None:
            return
        if kind is not None:
            # After an interruption nobody waits for the tasks in progress.
            for process in (self._executor._processes or {}).values():
                process.terminate()
        self._executor.shutdown(cancel_futures=True)

    def map(
        self, tasks: Iterable[Task], *, here: Callable[[Task], Result], there: Callable[[Task], Result]
    ) -> Iterator[Result]:
        """Yield the result of each task, in the tasks' order, as soon as it is there.

        Args:
            tasks: what is to be done.
            here: does a task in this process, if there are no others.
            there: does a task in another process, a function of a module.

        Raises:
            EnvError: a process ended before its time.
        """
        if self._executor is None:
            yield from map(here, tasks)
            return
        waiting: collections.deque[Future[Result]] = collections.deque()
        try:
            for task in tasks:
                waiting.append(self._executor.submit(there, task))
                if len(waiting) >= _AHEAD * self._processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise EnvError("a process ended before its time. Was it out of memory? Use fewer `processes`.") from error


def as_worker() -> None:
    """Make this process one that works for another: one thread, and Ctrl-C left to the one that asks."""
    # Ctrl-C reaches every process of a terminal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _begin(prepare: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    as_worker()
    if prepare is not None:
        prepare(*arguments)
