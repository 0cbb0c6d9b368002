"""Write the generated blocks of the documentation anew: `python scripts/docs.py FILE...`.

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`; the names are those of `BLOCKS`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from rlmix._apply import apply
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import get, names
from rlmix.methods.table import cards, full_table, table
from rlmix.ops import rng
from rlmix.policy.artifact import DEFAULT, load
from rlmix.policy.codec import catalogue
from rlmix.policy.signals import ENTRIES
from rlmix.testing.methods import OperationCounter, batch_of

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
KEYS = range(8)
"""Enough of them to meet every grid that a method chooses among on the host."""

ITS_CHOICE = "its choice's"
RELEASE = torch.__version__.partition("+")[0]


def methods() -> str:
    """Return the full table of methods, with what was counted and what was measured."""
    columns, notes = {"operations": operations()}, [COUNTED.format(torch=RELEASE)]
    found = timings()
    if found is not None:
        columns["microseconds"], note = found
        notes.append(note)
    return "\n\n".join([full_table(columns), *notes])


COUNTED = (
    "*operations*: tensor operations (views left out) of `plan`, `apply` and `soft_targets` together, counted on 32x32 "
    "pixels on the CPU with torch {torch}. They do not depend on the number B of images, except where B stands."
)
TIMED = (
    "*microseconds*: median of a whole call of `rlmix.mix` with its checks, 128x3x32x32, one CPU thread ({processor}), "
    "maps given, torch {torch} and numba, {date}: [{file}](../benchmarks/results/{file})."
)


@cache
def operations() -> dict[str, str]:
    """Return how many tensor operations each method takes."""
    return {name: _counted(get(name)) for name in names()}


def _counted(method: AbstractMethod) -> str:
    if _chooses(method):
        return ITS_CHOICE
    rows = max(4, method.rows_together)
    with patch.object(rng, "host_integer", wraps=rng.host_integer) as choice:
        counts = {_count(method, rows, KEYS[0])}
    if method.operations_grow:
        (once,) = counts
        slope = (_count(method, 2 * rows, KEYS[0]) - once) // rows
        return f"{once - slope * rows:,} + {slope} B"
    if choice.called:
        counts |= {_count(method, rows, key) for key in KEYS[1:]}
    return " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _chooses(method: AbstractMethod) -> bool:
    """Say whether a batch is in truth mixed by another method, whose cost it has."""
    return method.settle(KEYS[0])[0] is not method


def _count(method: AbstractMethod, rows: int, key: int) -> int:
    images, labels, inputs = batch_of(rows, (32, 32))
    for _ in range(2):
        # What is kept from one call to the next, such as the areas of a grid, is made by the first.
        streams = rng.Streams([key])
        with OperationCounter() as counter:
            plan = method.plan(inputs, streams)
            apply(images, plan)
            plan.soft_targets(labels, rows)
    return sum(counter.counts.values())


def timings() -> tuple[dict[str, str], str] | None:
    """Return each method's microseconds in the newest results and where they come from; None without results."""
    read = [(file, json.loads(file.read_text(encoding="utf-8"))) for file in RESULTS.glob("*.json")]
    usable = [(result["environment"]["date"], file.name, result) for file, result in read if _candidates(result)]
    if not usable:
        return None
    date, file, result = max(usable, key=lambda found: found[:2])
    candidates = _candidates(result)
    cells = {
        name: ITS_CHOICE if _chooses(get(name)) else f"{candidates[name]['ms']['median'] * 1000:,.0f}"
        for name in names()
        if name in candidates
    }
    machine = result["environment"]
    note = TIMED.format(processor=machine["processor"], torch=machine["torch"], date=date[:10], file=file)
    return cells, note


def _candidates(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the candidates of the case that times each method, in the first run (malloc as it comes); {} without."""
    runs = result.get("runs")
    if not isinstance(runs, list):
        # Results that other programs than `python -m benchmarks` have put there have a form of their own.
        return {}
    cases = [case for case in runs[0]["cases"] if case["group"] == "methods"]
    found = [case["candidates"] for case in cases if set(case["candidates"]) & set(names())]
    return found[0] if found else {}


def observation() -> str:
    """Return one row for each entry of the observation that does not depend on the catalogue."""
    rows = [f"| `{name}` | {meaning} |" for name, meaning in ENTRIES.items()]
    return "\n".join(["| entry | value |", "| --- | --- |", *rows])


def entries() -> str:
    """Return one row for each entry of the catalogue `v0`."""
    known = catalogue("v0")
    cheap = set(catalogue("cheap").names)
    rows = [
        f"| {number} | `{name}` | `{decision.text}` | {'yes' if name in cheap else ''} |"
        for number, (name, decision) in enumerate(zip(known.names, known.decisions, strict=True))
    ]
    return "\n".join(["| action | name | Decision | in `cheap` |", "| --- | --- | --- | --- |", *rows])


BASELINES = {
    "uniform-cheap": "uniform random",
    "none": "no mixing",
    "best-fixed": "best fixed",
    "best-fixed-per-budget": "best fixed per budget",
    "oracle": "unbiased oracle",
}


def default() -> str:
    """Return what the policy of the package was measured to do, as its card has it."""
    results = load(DEFAULT).card["results"]
    head = ["level", "trainings", *BASELINES.values()]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('---' for _ in head)} |"]
    for level in results["levels"]:
        cells = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*level["to"][name]) for name in BASELINES]
        lines.append(f"| {level['name']} | {level['instances']} x {level['replicates']} | {' | '.join(cells)} |")
    note = (
        "Difference in accuracy on test images, policy minus baseline, in points, with 95 % intervals over instances, "
        f"trainings and {results['seeds']} agent seeds. Commit {results['commit'][:7]}, {results['hardware']}, "
        f"{results['date'][:10]}."
    )
    return "\n".join([*lines, "", note])


BLOCKS: Mapping[str, Callable[[], str]] = {
    "methods": table,
    "methods-in-full": methods,
    "cards": cards,
    "observation": observation,
    "catalogue": entries,
    "default": default,
}


def updated(text: str) -> str:
    """Return a document with its generated blocks written anew."""
    for name, make in BLOCKS.items():
        before, start, rest = text.partition(f"<!-- {name} -->\n")
        if start:
            end = f"<!-- /{name} -->"
            text = f"{before}{start}{make()}\n{rest[rest.index(end) :]}"
    return text


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        file.write_text(updated(file.read_text(encoding="utf-8")), encoding="utf-8")
