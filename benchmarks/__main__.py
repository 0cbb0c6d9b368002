"""Measure, print and keep: `python -m benchmarks`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import (
    apply,
    bank,
    calls,
    comixup,
    decision,
    fine_grained,
    loss,
    methods,
    pool,
    puzzlemix,
    report,
    rmix,
)
from benchmarks.timing import measure

GROUPS = {
    "apply": apply.cases,
    "calls": calls.cases,
    "loss": loss.cases,
    "fine_grained": fine_grained.cases,
    "rmix": rmix.cases,
    "puzzlemix": puzzlemix.cases,
    "comixup": comixup.cases,
    "bank": bank.cases,
    "methods": methods.cases,
    "decision": decision.cases,
    "pool": pool.cases,
}
RESULTS = report.ROOT / "benchmarks" / "results"

# glibc gives memory of large blocks back to the system at once, and takes it again page by page at the next call.
RAISED = {"MALLOC_MMAP_THRESHOLD_": str(4 * 2**30), "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30)}
MALLOCS = {
    "default malloc": ({}, "glibc as it comes: large blocks are mapped anew, and their pages touched, at each call."),
    "raised thresholds": (
        RAISED,
        "With " + " ".join(f"{name}={value}" for name, value in RAISED.items()) + ": the heap is kept and reused, so "
        "the work itself shows.",
    ),
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS), help="some of the benchmarks")
    parser.add_argument("--quick", action="store_true", help="5 rounds each: shows that all runs, measures little")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    # What a run calls itself with, for each case.
    parser.add_argument("--case", nargs=2, metavar=("NUMBER", "FILE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _measure_here(group: str, number: int, target: Path, *, quick: bool) -> None:
    """Measure one case in this process, on one thread."""
    torch.set_num_threads(1)
    measured = measure(GROUPS[group]()[number](), quick=quick)
    target.write_text(json.dumps(measured), encoding="utf-8")


def _measure_apart(settings: dict[str, str], group: str, number: int, *, quick: bool) -> dict[str, Any]:
    """Measure one case in a process of its own.

    malloc reads its settings when a process starts, and by default it also learns from the blocks that were freed
    before: what one case did to it must not show in the next.
    """
    steered = ("MALLOC_", "GLIBC_TUNABLES")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(steered)}
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "case.json"
        words = [sys.executable, "-m", "benchmarks", "--only", group, "--case", str(number), str(target)]
        surroundings = {**inherited, **settings, "OMP_NUM_THREADS": "1"}
        subprocess.run([*words, *(["--quick"] if quick else [])], cwd=report.ROOT, env=surroundings, check=True)
        return dict(json.loads(target.read_text(encoding="utf-8")))


def main() -> int:
    """Run the benchmarks."""
    chosen = _arguments()
    if chosen.case is not None:
        number, target = chosen.case
        _measure_here(chosen.only[0], int(number), Path(target), quick=chosen.quick)
        return 0
    where = report.environment(["python", "-m", "benchmarks", *sys.argv[1:]])
    wanted = [(group, number) for group in chosen.only for number in range(len(GROUPS[group]()))]
    runs = []
    for malloc, (settings, notes) in MALLOCS.items():
        measured = []
        for done, (group, number) in enumerate(wanted):
            print(f"rlmix: {malloc}, {done + 1} of {len(wanted)}: {group}", file=sys.stderr, flush=True)
            measured.append(_measure_apart(settings, group, number, quick=chosen.quick))
        runs.append({"malloc": malloc, "malloc_notes": notes, "settings": settings, "cases": measured})
    result = {"environment": where, "quick": chosen.quick, "runs": runs}
    report.show(result)
    report.save(result, chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
