"""`import rlmix` is light, and the linked folders cannot be imported under a second name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {
    "PIL",
    "cv2",
    "gymnasium",
    "matplotlib",
    "pydantic",
    "rich",
    "safetensors",
    "sklearn",
    "stable_baselines3",
    "tensorboard",
    "torchvision",
    "typer",
    "yaml",
}


def loaded(code: str, folder: Path) -> set[str]:
    """Return the top-level names in `sys.modules` after `code` ran in a fresh process."""
    report = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    result = subprocess.run([sys.executable, "-c", report], cwd=folder, capture_output=True, text=True, check=True)
    return set(json.loads(result.stdout))


def test_importing_rlmix_imports_only_torch_and_the_standard_library(tmp_path: Path) -> None:
    """Whoever deploys a policy in a training script must not pay for the environment, the agents or the commands."""
    added = loaded("import rlmix, rlmix.methods, rlmix.saliency", tmp_path) - loaded("import torch", tmp_path)
    assert added - set(sys.stdlib_module_names) == {"rlmix"}
    assert not added & HEAVY


def test_the_agents_and_environment_are_not_imported_with_rlmix(tmp_path: Path) -> None:
    """Registering the environment is the business of `import rlmix.envs`."""
    code = "import rlmix, sys; print([name for name in sys.modules if name.startswith(('rlmix.envs', 'rlmix.agents'))])"
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("folder", ["envs", "agents"])
def test_a_linked_folder_cannot_be_imported_under_its_short_name(folder: str, project: Path) -> None:
    """From a checkout `import envs` would load a second copy of every class, and `isinstance` would fail."""
    result = subprocess.run(
        [sys.executable, "-c", f"import {folder}"], cwd=project, capture_output=True, text=True, check=False
    )
    assert result.returncode != 0
    assert f"rlmix.{folder}" in result.stderr.splitlines()[-1]
    assert result.stderr.splitlines()[-1].startswith("ImportError")


@pytest.mark.parametrize(
    "line",
    [
        "import envs",
        "from envs import pool",
        "from envs.pool import Pool",
        "import agents",
        "from agents.ppo import train_ppo",
        "import random",
        "from random import choice",
    ],
)
def test_ruff_refuses_the_banned_imports(line: str, project: Path) -> None:
    """A lint rule that nothing tests is one typing error away from checking nothing."""
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "rlmix/sample.py", "-"],
        cwd=project,
        input=f"{line}\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert "TID251" in result.stdout


def test_ruff_lets_the_long_names_pass(project: Path) -> None:
    """The ban must not hit the names that it recommends."""
    result = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--stdin-filename", "rlmix/sample.py", "-"],
        cwd=project,
        input="import rlmix.envs\nfrom rlmix.agents.ppo import train_ppo\nfrom rlmix.envs.pool import Pool\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
