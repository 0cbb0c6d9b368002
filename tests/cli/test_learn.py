"""`rlmix learn`: what it refuses, and what it says. What it learns is tested with the service."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlmix.cli.main import main


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["learn", *arguments])
    return int(ended.value.code or 0)


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], without: Callable[..., None]) -> None:
    """Whoever has installed the library alone must learn what to install."""
    without("sqlalchemy")
    assert run() == 2
    assert "pip install 'rlmix[serve]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--db", "sqlite:///absent.db"), "there is no database"),
        (("--db", "mysql://x"), "no address of a database"),
        (("--learning-rate", "0", "--db", "sqlite:///x.db"), "learning_rate"),
        (("--entropy", "-1"), "entropy"),
        (("--db", "sqlite:///x.db", "--project", "nobody"), "no project"),
        (("--db", "sqlite:///x.db", "--alias", "nobody"), "no alias"),
    ],
)
def test_what_cannot_be_learned_is_said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    """A misspelt name must not make an empty database, and wait for ever for trainings in it."""
    pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
    pytest.importorskip("alembic", reason="the extra `serve` is not installed")
    storage_with_policy(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
    assert not {path.name for path in set(tmp_path.iterdir()) - before} - {"x.db-wal", "x.db-shm"}


def test_nothing_to_learn_from_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """An empty screen would leave open whether it works."""
    pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
    pytest.importorskip("alembic", reason="the extra `serve` is not installed")
    url = storage_with_policy(tmp_path)
    assert run("--db", url) == 0
    shown = capsys.readouterr().out
    assert "update 0: 0 trainings read" in shown
    assert "an update takes 16 trainings" in shown


def storage_with_policy(folder: Path) -> str:
    """Make a database with an untrained policy, and return its address."""
    from rlmix.policy.artifact import DOCUMENT, TENSORS, save
    from rlmix.policy.codec import catalogue
    from rlmix.policy.untrained import untrained
    from rlmix.service.storage.opening import open_storage

    url = f"sqlite:///{folder}/x.db"
    save(folder / "policy", untrained(catalogue("cheap"), hidden=(8, 8)))
    storage = open_storage(url)
    storage.create_project("default")
    document, tensors = (storage.put_blob((folder / "policy" / name).read_bytes())[0] for name in (DOCUMENT, TENSORS))
    storage.add_version("default", "default", document, tensors)
    storage.set_alias("default", "default", "default", 1, 0)
    storage.close()
    return url
