"""What a result was made with: versions, hardware, date."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

PACKAGES = ("rlmix", "torch", "torchvision", "gymnasium", "stable-baselines3", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on; absent ones are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device | str = "cpu") -> str:
    """Return in words what was computed on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processor = f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads"
    chosen = torch.device(device)
    return f"{torch.cuda.get_device_name(chosen)}; {processor}" if chosen.type == "cuda" else processor


def now() -> str:
    """Return the present time in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def command(arguments: Sequence[str] | None = None) -> str:
    """Return the command line of this process, as it can be typed again.

    Args:
        arguments: what stands after the program's name; None takes those of this process.
    """
    return shlex.join([Path(sys.argv[0]).name, *(sys.argv[1:] if arguments is None else arguments)])


def commit() -> str:
    """Return the commit of the checkout that the package lies in; "+" says that its files were changed since."""
    # An installed package may lie in a checkout of something else.
    if not _git("ls-files", "--error-unmatch", str(Path(__file__).resolve())):
        return "unknown (not a checkout)"
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return f"{_git('rev-parse', 'HEAD')}{'+' if changed else ''}"


def _git(*arguments: str) -> str:
    """Return what git says about the checkout that this file lies in, or nothing."""
    asked = ["git", "-C", str(Path(__file__).resolve().parent), *arguments]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
