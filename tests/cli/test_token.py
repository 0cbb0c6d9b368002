"""`rlmix token`, beside a service that runs and without one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from rlmix.cli.main import main
from rlmix.service.storage.opening import open_storage
from rlmix.service.tokens import digest_of


@pytest.fixture
def db(tmp_path: Path) -> str:
    """Return the address of a database with the project `p`."""
    url = f"sqlite:///{tmp_path}/rlmix.db"
    storage = open_storage(url)
    storage.create_project("p")
    storage.close()
    return url


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Return a function that runs `rlmix token`, and returns the exit code and what it wrote."""

    def called(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["token", *arguments])
        written = capsys.readouterr()
        return int(ended.value.code or 0), written.out, written.err

    return called


def test_a_token_is_shown_once_and_kept_as_its_digest(db: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """Whoever reads the database, or a copy of it, must not be able to use the service."""
    code, out, told = run("create", "cluster", "--db", db, "--project", "p", "--expires", "90d")
    assert code == 0
    secret = out.strip()
    assert re.fullmatch(r"rlmix_[A-Za-z0-9_-]{43}", secret)
    assert "the project p for read, decide, until 2" in told
    files = b"".join(path.read_bytes() for path in Path(db.removeprefix("sqlite:///")).parent.iterdir())
    assert secret.encode() not in files
    storage = open_storage(db)
    token = storage.token(digest_of(secret))
    storage.close()
    assert token is not None
    assert (token.name, token.project, token.scopes) == ("cluster", "p", ("read", "decide"))
    assert token.expires == token.created + 90 * 86400 * 1_000_000
    assert secret != run("create", "other", "--db", db)[1].strip()
    assert digest_of(secret) not in run("list", "--db", db)[1]


def test_tokens_are_listed_and_revoked_beside_a_service(db: str, run: Callable[..., tuple[int, str, str]]) -> None:
    """A token that leaked must be closed at once, not when the service can be stopped."""
    serving = open_storage(db)
    try:
        run("create", "a", "--db", db, "--scopes", "admin")
        run("create", "b", "--db", db)
        assert run("revoke", "b", "--db", db)[0] == 0
        states = {row["name"]: row["state"] for row in json.loads(run("list", "--db", db, "--json")[1])}
        assert states == {"a": "open", "b": "revoked"}
        assert [token.revoked is None for token in serving.tokens()] == [True, False]
        assert "revoked" in run("list", "--db", db)[1]
    finally:
        serving.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "UP"), "no name"),
        (("create", "a", "--scopes", "read,write"), "write"),
        (("create", "a", "--scopes", ","), "none"),
        (("create", "a", "--expires", "soon"), "no length of time"),
        (("create", "a", "--expires", "0d"), "no length of time"),
        (("create", "a", "--project", "absent"), "no project"),
        (("revoke", "absent"), "no token"),
    ],
)
def test_a_mistake_makes_nothing(
    db: str, run: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], message: str
) -> None:
    """A token with other rights than were meant is worse than none."""
    code, out, told = run(*arguments, "--db", db)
    assert (code, out) == (2, "")
    assert message in told
    assert json.loads(run("list", "--db", db, "--json")[1]) == []


def test_a_database_is_made_for_its_first_token_alone(tmp_path: Path, run: Callable[..., tuple[int, str, str]]) -> None:
    """Others look into a database that is there; a misspelt one would be empty."""
    url = f"sqlite:///{tmp_path}/new.db"
    for arguments in (("list",), ("revoke", "a")):
        code, _, told = run(*arguments, "--db", url)
        assert code == 2
        assert "there is no database" in told
    assert run("create", "a", "--db", "sqlite://")[0] == 2
    assert not list(tmp_path.iterdir())
    assert run("create", "a", "--db", url)[0] == 0
    assert run("create", "a", "--db", url)[0] == 2
