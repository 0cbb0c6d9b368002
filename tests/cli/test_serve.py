"""`rlmix serve`: what it refuses before it serves."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rlmix.cli.main import main


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_missing_extra_is_named(capsys: pytest.CaptureFixture[str], without: Callable[..., None]) -> None:
    """Whoever has installed the library alone must learn what to install."""
    without("fastapi", "uvicorn", "sqlalchemy", "starlette")
    assert "pip install 'rlmix[serve]'" in refused(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--host", "0.0.0.0"), "--token-file"),
        (("--db", "mysql://x"), "no address of a database"),
        (("--durability", "some"), "normal or full"),
        (("--token-file", "absent"), "cannot be read"),
        (("--db", "sqlite://", "--policy", "absent"), "absent"),
    ],
)
def test_what_cannot_be_served_is_said(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    """A service that starts all the same serves something else than was meant, or to somebody else."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert message in refused(capsys, "--port", str(port), *arguments)


def test_a_port_that_is_taken_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Nothing may be made before that is known."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ("--port", str(taken.getsockname()[1]), "--db", f"sqlite:///{tmp_path}/x.db")
        assert "cannot be served" in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())
