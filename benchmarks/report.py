"""What was measured where, as a table on the terminal, as Markdown and as JSON."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent


def _git(*words: str) -> str | None:
    try:
        return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text(encoding="utf-8")) if info.exists() else []
    return names[0].strip() if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def environment(command: Sequence[str]) -> dict[str, Any]:
    """Return where and when the figures were measured: commit, hardware, versions, date, command."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    changed = _git("status", "--porcelain", "--", ".", ":!benchmarks/results")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(command),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if changed is None else bool(changed),
        "processor": _processor(),
        "cores": cores,
        "threads": 1,
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "timm", "kornia", "mixup", "gco-wrapper", "numba")},
    }


def file_name(where: dict[str, Any]) -> str:
    """Return the name of a result: the date and the kind of machine."""
    kind = re.sub(r"[^a-z0-9]+", "-", f"{where['processor']} {where['cores']} cores".lower()).strip("-")
    return f"{where['date'][:10]}-{kind}"


def _quartiles(figures: dict[str, float], digits: int = 2) -> str:
    return f"{figures['median']:.{digits}f} [{figures['q1']:.{digits}f}, {figures['q3']:.{digits}f}]"


def rows(case: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (candidate, milliseconds, ratio to the first candidate) of a case."""
    return [
        (name, _quartiles(figures["ms"], 3), _quartiles(figures["ratio"], 3 if figures["ratio"]["median"] < 0.1 else 2))
        for name, figures in case["candidates"].items()
    ]


def goal_text(goal: dict[str, Any]) -> str:
    """Return one goal, what was measured, and whether it is met."""
    verdict = "met" if goal["met"] else "MISSED"
    middle = goal["measured"]["median"]
    if goal["unit"] == "us":
        return f"{verdict}: {goal['text']}; measured {middle:.0f}"
    times = f"{middle:.2f} times the time of {goal['baseline']}"
    return f"{verdict}: {goal['text']}; measured {times}" + (f", 1/{1 / middle:.1f}" if middle < 0.5 else "")


def show(result: dict[str, Any]) -> None:
    """Print the result as tables."""
    console = Console(highlight=False)
    for run in result["runs"]:
        for case in run["cases"]:
            table = Table(title=escape(f"{case['name']} ({run['malloc']})"), title_justify="left")
            table.add_column("candidate")
            table.add_column(escape("ms, median [quartiles]"), justify="right")
            table.add_column(escape(f"times {case['baseline']}"), justify="right")
            for row in rows(case):
                table.add_row(*map(escape, row))
            console.print(table)
            for goal in case["goals"]:
                console.print(escape(goal_text(goal)))
            console.print()


def markdown(result: dict[str, Any]) -> str:
    """Return the result as Markdown."""
    where = result["environment"]
    lines = [f"# Benchmarks, {where['date'][:10]}", ""]
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in where.items()]
    lines += [
        "",
        "Every candidate runs once a round, in a new order each round. Times are medians with quartiles; a ratio is "
        "formed within each round, and its median and quartiles are given.",
        "",
        "## Goals",
        "",
        "| job | malloc | goal | measured |",
        "|---|---|---|---|",
    ]
    for run in result["runs"]:
        for case in run["cases"]:
            for goal in case["goals"]:
                verdict, text = goal_text(goal).split(": ", 1)
                wanted, measured = text.split("; measured ")
                lines.append(f"| {case['name']} | {run['malloc']} | {wanted} | **{verdict}**: {measured} |")
    for run in result["runs"]:
        lines += ["", f"## {run['malloc']}", "", f"{run['malloc_notes']}"]
        for case in run["cases"]:
            lines += ["", f"### {case['name']}", "", f"{case['rounds']} rounds. {case['notes']}", ""]
            lines += [f"| candidate | ms | times {case['baseline']} |", "|---|---:|---:|"]
            lines += ["| " + " | ".join(row) + " |" for row in rows(case)]
    return "\n".join(lines) + "\n"


def save(result: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write the JSON and the Markdown and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    stem = folder / file_name(result["environment"])
    data, text = stem.with_suffix(".json"), stem.with_suffix(".md")
    data.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text.write_text(markdown(result), encoding="utf-8")
    print(f"rlmix: written {text} and {data}", file=sys.stderr)
    return data, text
