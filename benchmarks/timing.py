"""Interleaved timing: every candidate once a round, in a new order each round, compared within the round.

A machine that others use is slow in some moments. A ratio of two times from the same round sees mostly the same moment,
so the median of these ratios says more than the ratio of two medians taken one after the other.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlmix.ops import compiled

WARM_UP = 5
TENSOR_CODE = "without numba"
"""What the name of a candidate ends with that `tensor_code` made."""


def tensor_code(run: Callable[..., Any]) -> Callable[..., Any]:
    """Return what runs a function of rlmix as on a machine without numba."""

    def unaided(*given: Any) -> Any:
        kept, compiled.serves = compiled.serves, lambda *tensors: False
        try:
            return run(*given)
        finally:
            compiled.serves = kept

    return unaided


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to do the job.

    Args:
        name: as it stands in the table.
        run: what is timed; takes what `prepare` returned.
        prepare: makes the argument, outside the timed part.
    """

    name: str
    run: Callable[[Any], object]
    prepare: Callable[[], Any] = nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A ratio of times that is to be reached.

    Args:
        candidate: whose time is divided.
        baseline: by whose time.
        limit: what the median of the ratio may be at most.
        text: the goal in words.
    """

    candidate: str
    baseline: str
    limit: float
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Candidates for one job at one size.

    Args:
        group: what the benchmark is called on the command line.
        name: the job and its size.
        candidates: at least one.
        rounds: how often each is timed.
        goals: ratios within the case.
        ceilings: candidate -> microseconds that its median may take at most.
        check: raises AssertionError where candidates do not compute what they should; run before the timing.
        notes: what a reader of the figures must know.
    """

    group: str
    name: str
    candidates: Sequence[Candidate]
    rounds: int
    goals: Sequence[Goal] = ()
    ceilings: Sequence[tuple[str, float]] = ()
    check: Callable[[], None] = nothing
    notes: str = ""


def interleave(candidates: Sequence[Candidate], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Return the seconds that each candidate took in each round.

    What a candidate returns is freed after its clock has stopped, and what it works on is made before it starts: both
    hold for all alike.
    """
    order = torch.Generator().manual_seed(seed)
    seconds: dict[str, list[float]] = {candidate.name: [] for candidate in candidates}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for turn in range(WARM_UP + rounds):
            for position in torch.randperm(len(candidates), generator=order).tolist():
                candidate = candidates[position]
                given = candidate.prepare()
                start = time.perf_counter()
                result = candidate.run(given)
                taken = time.perf_counter() - start
                del given, result
                if turn >= WARM_UP:
                    seconds[candidate.name].append(taken)
    finally:
        if collecting:
            gc.enable()
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the quartiles and the median."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"q1": low, "median": middle, "q3": high}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return the quartiles of the ratio, formed round by round."""
    return spread([one / two for one, two in zip(above, below, strict=True)])


def measure(case: Case, *, quick: bool = False) -> dict[str, Any]:
    """Check a case, time it and return the figures as plain data.

    Args:
        case: what is timed.
        quick: only a few rounds, to see that everything runs.
    """
    case.check()
    rounds = min(case.rounds, 5) if quick else case.rounds
    seconds = interleave(case.candidates, rounds)
    goals = []
    for goal in case.goals:
        ratio = ratios(seconds[goal.candidate], seconds[goal.baseline])
        goals.append({
            "text": goal.text, "candidate": goal.candidate, "baseline": goal.baseline, "limit": goal.limit,
            "unit": "ratio", "measured": ratio, "met": ratio["median"] <= goal.limit,
        })  # fmt: skip
    for name, limit in case.ceilings:
        taken = spread([1e6 * value for value in seconds[name]])
        goals.append({
            "text": f"{name}: at most {limit:g} microseconds", "candidate": name, "baseline": None, "limit": limit,
            "unit": "us", "measured": taken, "met": taken["median"] <= limit,
        })  # fmt: skip
    first = case.candidates[0].name
    return {
        "group": case.group,
        "name": case.name,
        "rounds": rounds,
        "notes": case.notes,
        "baseline": first,
        "candidates": {
            name: {"ms": spread([1e3 * value for value in taken]), "ratio": ratios(taken, seconds[first])}
            for name, taken in seconds.items()
        },
        "goals": goals,
    }
