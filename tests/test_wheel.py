"""The built wheel: what is in it, and that it runs away from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel built from a copy of the sources, since building writes into the folder it builds from."""
    copy = tmp_path_factory.mktemp("sources") / "rlmix"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, copy)
    for name in ("rlmix", "envs", "agents", "configs", "tests"):
        shutil.copytree(project / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the `bin` folder of a new environment that holds the wheel, and sees this one's third parties."""
    environment = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    # A folder named in a .pth file comes after the environment's own, and its own .pth files (the editable rlmix) are
    # not read.
    (packages / "third-parties.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return environment / "bin"


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "PYTHONHOME"}}


def test_the_wheel_has_one_top_level_name(wheel: Path) -> None:
    """`envs` and `agents` as top-level names would collide with other projects' packages."""
    names = {Path(name).parts[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"rlmix"}


def test_the_linked_folders_are_inside(wheel: Path, project: Path) -> None:
    """A build that does not follow the links leaves them out without a word."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("envs", "agents"):
        for path in (project / folder).rglob("*.py"):
            assert f"rlmix/{path.relative_to(project)}" in names


def test_the_wheel_holds_types_and_licence_but_no_tests_and_configs(wheel: Path) -> None:
    """Without `py.typed` a user's type checker sees nothing; configurations belong to the checkout."""
    names = zipfile.ZipFile(wheel).namelist()
    assert "rlmix/py.typed" in names
    assert {"rlmix/policy/shipped/policy.json", "rlmix/policy/shipped/policy.safetensors"} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)
    assert not [name for name in names if "tests/" in name or "configs/" in name]


def test_the_installed_wheel_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """What only works beside its sources does not work for users."""
    result = subprocess.run(
        [str(installed / "rlmix"), "--help"],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for command in ("demo", "train", "agent"):
        assert command in result.stdout


def test_the_installed_wheel_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    """If the checkout were imported instead, the tests above would prove nothing."""
    code = "import rlmix, rlmix.envs, rlmix.agents; print(rlmix.__file__, rlmix.envs.__file__, rlmix.agents.__file__)"
    result = subprocess.run(
        [str(installed / "python"), "-c", code],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(path.startswith(str(installed.parent)) for path in result.stdout.split())
