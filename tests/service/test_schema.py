"""The description of the service, held against what it does by somebody who tries everything (schemathesis)."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("schemathesis", reason="the extra `dev` is not installed")
pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from rlmix.service.app import create_app
from rlmix.service.guard import Tokens
from rlmix.service.replies import PROBLEMS
from rlmix.service.storage.abstract import AbstractStorage

TOKEN = "t" * 32


@pytest.fixture
def address(
    storage: AbstractStorage, serving: Callable[[Any], contextlib.AbstractContextManager[str]]
) -> Iterator[str]:
    """Return the address of a service that needs a token, without a limit to how often it is asked."""
    with serving(create_app(storage, tokens=Tokens((TOKEN,)), rate=0)) as found:
        yield found


@pytest.mark.slow
def test_the_service_does_what_it_says_of_itself(address: str, tmp_path: Path) -> None:
    """Every check: answers that are not described, faults, wrong data that is taken, right data that is not."""
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent))
    assert program is not None
    command = [program, "run", f"{address}/v1/openapi.json", "--header", f"Authorization: Bearer {TOKEN}"]
    command += ["--checks", "all", "--max-time", os.environ.get("RLMIX_SCHEMATHESIS_SECONDS", "12"), "--seed", "1"]
    command += ["--no-color", "--wait-for-schema", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout
    assert "29 selected" in done.stdout or "Selected: " in done.stdout


def test_every_answer_is_described(storage: AbstractStorage) -> None:
    """A client that was written from the description meets no other."""
    app = create_app(storage)
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            expected = {str(status) for status in PROBLEMS} if path.startswith("/v1/") else {"400", "503"}
            answers = operation["responses"]
            assert expected <= set(answers), (method, path)
            for status in expected:
                assert list(answers[status]["content"]) == ["application/problem+json"], (method, path, status)
            for status in sorted(set(answers) - expected):
                assert status in ("200", "201", "304"), (method, path, status)
                kinds = answers[status].get("content", {})
                assert all(content.get("schema") for content in kinds.values()) or path in ("/healthz", "/readyz")
