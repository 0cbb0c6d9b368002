"""Work divided among processes: in order, with errors raised where it was asked for."""

from __future__ import annotations

import os
import signal

import pytest

from rlmix._workers import Workers
from rlmix.errors import EnvError, InputError

KEPT: list[int] = []


def keep(number: int) -> None:
    KEPT.append(number)


def there(task: int) -> tuple[int, int, list[int]]:
    if task == 99:
        raise ValueError("no such task")
    if task == 100:
        os.kill(os.getpid(), signal.SIGKILL)
    return task * task, os.getpid(), KEPT


def here(task: int) -> tuple[int, int, list[int]]:
    return task * task, os.getpid(), []


def test_results_come_in_the_order_of_the_tasks_from_prepared_processes() -> None:
    """Who divides work must not have to sort what comes back."""
    with Workers(2, keep, 7) as workers:
        found = list(workers.map(iter(range(9)), here=here, there=there))
        assert [square for square, _, _ in found] == [number * number for number in range(9)]
        assert os.getpid() not in {process for _, process, _ in found}
        assert all(kept == [7] for _, _, kept in found)
        with pytest.raises(ValueError, match="no such task"):
            list(workers.map([1, 99, 2], here=here, there=there))
        # One task that fails does not end the workers.
        assert [square for square, _, _ in workers.map([3], here=here, there=there)] == [9]
        with pytest.raises(EnvError, match="ended before its time"):
            list(workers.map([1, 100], here=here, there=there))


def test_one_process_is_this_one() -> None:
    """Nothing is started, sent or prepared."""
    with Workers(1, keep, 7) as workers:
        assert [process for _, process, _ in workers.map([1, 2], here=here, there=there)] == [os.getpid()] * 2
    assert KEPT == []
    with pytest.raises(InputError, match="`processes` must be at least 1, got 0"):
        Workers(0)
