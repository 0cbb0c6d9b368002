"""Who may ask, and how often."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from rlmix.errors import ConfigError
from rlmix.service import guard as guards
from rlmix.service.guard import ANYBODY, KNOWN_SECONDS, Buckets, Caller, Guard, Tokens, check_address, is_loopback
from rlmix.service.records import Scope, Token
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import open_storage
from rlmix.service.storage.sql import now
from rlmix.service.tokens import digest_of, lifetime, new_secret


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database() -> Iterator[AbstractStorage]:
    made = open_storage("sqlite://")
    made.create_project("p")
    yield made
    made.close()


def token(storage: AbstractStorage, name: str, *scopes: Scope, project: str | None = None, expires: int = 0) -> str:
    """Store a token and return it; `expires` in microseconds from now, 0 for never."""
    secret, created = new_secret(), now()
    end = created + expires if expires else None
    stored = Token(name=name, project=project, scopes=scopes, created=created, expires=end, revoked=None)
    storage.create_token(stored, digest_of(secret))
    return secret


def asked(guard: Guard, header: str | None, *, basic: bool = False) -> Caller | None:
    return asyncio.run(guard.caller(header, basic=basic))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_this_machine_needs_no_token(host: str) -> None:
    """The first thing that everybody does must work."""
    assert is_loopback(host)
    check_address(host, guarded=False, open_to_all=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", "localhost.example.org", ""])
def test_other_machines_need_one_or_a_word(host: str) -> None:
    """Services that were open by accident are found within hours."""
    assert not is_loopback(host)
    with pytest.raises(ConfigError, match="--token-file"):
        check_address(host, guarded=False, open_to_all=False)
    check_address(host, guarded=True, open_to_all=False)
    check_address(host, guarded=False, open_to_all=True)


def test_a_token_file_is_read_strictly(tmp_path: Path) -> None:
    """A file that opens nothing, or is open to others, must not look like protection."""
    path = tmp_path / "tokens"
    for text, mode, message in (
        ("", 0o600, "on each line"),
        ("# only a comment\n", 0o600, "on each line"),
        ("short\n", 0o600, "at least 32"),
        ("x" * 32, 0o644, "chmod 600"),
    ):
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)
        with pytest.raises(ConfigError, match=message):
            Tokens.read(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        Tokens.read(tmp_path / "absent")
    path.write_text(f"# mine\n{'x' * 32}\n\n{'y' * 40}\n", encoding="utf-8")
    path.chmod(0o600)
    tokens = Tokens.read(path)
    assert tokens
    assert tokens.admit("y" * 40)
    assert tokens.admit("x" * 32)
    assert not tokens.admit("z" * 40)


def test_a_token_opens_what_its_owner_was_given(database: AbstractStorage) -> None:
    """And one of a file opens everything."""
    secret = token(database, "a", "read", "decide", project="p")
    guard = Guard(database, Tokens(("f" * 32,)))
    caller = asked(guard, f"Bearer {secret}")
    assert caller == Caller(key=digest_of(secret), project="p", scopes=("read", "decide"))
    assert caller is not None
    assert [caller.may(scope) for scope in ("read", "decide", "publish", "admin")] == [True, True, False, False]
    assert (caller.sees("p"), caller.sees("q")) == (True, False)
    everything = asked(guard, f"bearer {'f' * 32}")
    assert everything is not None
    assert everything.may("publish")
    assert everything.sees("q")
    for header in (None, "", secret, "Bearer", "Bearer ", f"Bearer {secret}x", f"Bearer {digest_of(secret)}"):
        assert asked(guard, header) is None


def test_a_browser_sends_the_token_as_password(database: AbstractStorage) -> None:
    """To pages alone: elsewhere another site's page could send it along with a request of its own."""
    secret = token(database, "a", "read")
    guard = Guard(database, Tokens())
    pair = base64.b64encode(f"anybody:{secret}".encode()).decode()
    assert asked(guard, f"Basic {pair}", basic=True) is not None
    assert asked(guard, f"Basic {pair}") is None
    for given in ("", "%%%", base64.b64encode(b"\xff\xfe").decode(), base64.b64encode(secret.encode()).decode()):
        assert asked(guard, f"Basic {given}", basic=True) is None


def test_a_token_ends_when_it_was_said_to(database: AbstractStorage) -> None:
    """A moment later it is as if it had never been, although it was just looked up."""
    secret = token(database, "a", "read", expires=lifetime("30m"))
    over = token(database, "b", "read", expires=-1)
    guard = Guard(database, Tokens())
    assert asked(guard, f"Bearer {secret}") is not None
    assert asked(guard, f"Bearer {over}") is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guards, "now", lambda: now() + lifetime("30m"))
        assert asked(guard, f"Bearer {secret}") is None


def test_a_revoked_token_is_closed_within_five_seconds(database: AbstractStorage, clock: Clock) -> None:
    """In every process that serves the database: each of them looks again after a short time."""
    assert KNOWN_SECONDS < 5
    secret = token(database, "a", "read")
    guards = [Guard(database, Tokens(), clock=clock) for _ in range(2)]
    assert all(asked(guard, f"Bearer {secret}") is not None for guard in guards)
    database.revoke_token("a")
    clock.seconds += KNOWN_SECONDS
    assert [asked(guard, f"Bearer {secret}") for guard in guards] == [None, None]


def test_the_first_token_closes_a_service_that_runs(database: AbstractStorage, clock: Clock) -> None:
    """And the last one that is revoked does not open it again."""
    guard = Guard(database, Tokens(), clock=clock)
    assert asked(guard, None) == ANYBODY
    token(database, "a", "read")
    database.revoke_token("a")
    clock.seconds += KNOWN_SECONDS
    assert asked(guard, None) is None
    assert asyncio.run(guard.required())
    assert asked(Guard(database, Tokens(), private=True), None) == ANYBODY


def test_tokens_that_are_looked_up_again_and_again_are_kept(database: AbstractStorage, clock: Clock) -> None:
    """A decision must not wait for a second search in the database each time."""
    secret = token(database, "a", "read")
    guard = Guard(database, Tokens(), clock=clock)
    assert asked(guard, f"Bearer {secret}") is not None
    database.close()
    assert asked(guard, f"Bearer {secret}") is not None


def test_a_bucket_fills_up_at_its_rate(clock: Clock) -> None:
    """One that gives more lets one training take the service from the others; one that gives less stops trainings."""
    buckets = Buckets(rate=10, burst=20, clock=clock)
    assert [buckets.take("a") for _ in range(20)] == [0] * 20
    assert buckets.take("a") == 1
    assert buckets.take("b") == 0
    clock.seconds += 0.5
    assert [buckets.take("a") for _ in range(6)] == [0] * 5 + [1]
    clock.seconds += 3600
    assert [buckets.take("a") for _ in range(21)] == [0] * 20 + [1]


def test_a_batch_is_paid_for_afterwards(clock: Clock) -> None:
    """One that is larger than the bucket must come through once, and not for nothing."""
    buckets = Buckets(rate=10, burst=20, clock=clock)
    assert buckets.take("a") == 0
    buckets.owe("a", 511)
    wait = buckets.take("a")
    assert wait == 50
    clock.seconds += wait
    assert buckets.take("a") == 0


def test_no_rate_is_no_limit(clock: Clock) -> None:
    """And whoever needs no token has no bucket."""
    assert not any(Buckets(rate=0, burst=0, clock=clock).take("a") for _ in range(1000))
    assert not any(Buckets(rate=1, burst=1, clock=clock).take(ANYBODY.key) for _ in range(1000))
    assert replace(ANYBODY, key="a").may("admin")
