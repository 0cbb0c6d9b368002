"""Who may ask, for what, and how often."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from starlette.concurrency import run_in_threadpool

from rlmix.errors import ConfigError
from rlmix.service.records import Scope, Token
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.sql import now
from rlmix.service.tokens import digest_of, opens, usable

KNOWN_SECONDS = 3.0
"""For how long a token that was looked up stays open; a revoked one is closed after so long at the latest."""

_SHORTEST_TOKEN = 32
_KNOWN = 1024


@final
class Tokens:
    """Tokens of a file: each opens everything.

    Args:
        tokens: what clients send as `Authorization: Bearer TOKEN`. Only their digests are kept.
    """

    def __init__(self, tokens: tuple[str, ...] = ()) -> None:
        self._digests = tuple(hashlib.sha256(token.encode("utf-8")).digest() for token in tokens)

    @classmethod
    def read(cls, path: Path) -> Tokens:
        """Return the tokens of a file, one a line; empty lines and those that begin with # are left out.

        Raises:
            ConfigError: the file cannot be read or is readable by others, it holds none, or one is too short.
        """
        try:
            others = path.stat().st_mode & 0o077
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"the token file `{path}` cannot be read ({error}).") from error
        if others:
            raise ConfigError(f"the token file `{path}` can be read by other users. Run: chmod 600 {path}")
        tokens = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
        if not tokens or any(len(token) < _SHORTEST_TOKEN for token in tokens):
            raise ConfigError(
                f"the token file `{path}` must hold a token of at least {_SHORTEST_TOKEN} characters on each line. "
                'Make one: python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return cls(tokens)

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, secret: str) -> bool:
        """Say whether this is one of them."""
        given = hashlib.sha256(secret.encode("utf-8")).digest()
        # Every token is compared, so that the time does not say which one was near.
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(found)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks.

    Attributes:
        key: tells callers apart; empty where no token is needed.
        project: the only one that it may see; None for all.
        scopes: what it may do there.
    """

    key: str
    project: str | None
    scopes: tuple[Scope, ...]

    def may(self, scope: Scope) -> bool:
        """Say whether it has a scope."""
        return opens(self.scopes, scope)

    def sees(self, project: str) -> bool:
        """Say whether a project is its own."""
        return self.project is None or self.project == project


ANYBODY = Caller(key="", project=None, scopes=("admin",))
"""Whoever asks a service that has no tokens."""


@final
class Buckets:
    """How often each caller may ask: a bucket of `burst` that fills up by `rate` a second.

    A request is let in while anything is in the bucket, and may empty it further than that: a batch that is larger
    than the bucket is paid for afterwards.

    Args:
        rate: requests a second; 0 for no limit.
        burst: requests at once.
        clock: seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._levels: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str) -> int:
        """Take one; return after how many seconds to come back where there was none, and 0 where there was."""
        if not self._rate or not key:
            return 0
        with self._lock:
            level, at = self._filled(key)
            if level >= 1:
                self._levels[key] = (level - 1, at)
                return 0
            return max(1, math.ceil((1 - level) / self._rate))

    def owe(self, key: str, count: int) -> None:
        """Take more, whatever there is."""
        if self._rate and key:
            with self._lock:
                level, at = self._filled(key)
                self._levels[key] = (level - count, at)

    def _filled(self, key: str) -> tuple[float, float]:
        at = self._clock()
        level, before = self._levels.get(key, (self._burst, at))
        return min(self._burst, level + (at - before) * self._rate), at


@final
class Guard:
    """Knows who sends a token. To be asked from one event loop.

    Where there is neither a token in a file nor one in the database, everybody is let in. A database that ever had a
    token stays closed to others, even after the last was revoked.

    Args:
        storage: has tokens.
        tokens: of a file.
        private: whether only those ask who have the database itself, so that a token would keep nothing from them.
        clock: seconds.
    """

    def __init__(
        self,
        storage: AbstractStorage,
        tokens: Tokens,
        *,
        private: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage, self._tokens, self._private, self._clock = storage, tokens, private, clock
        self._known: OrderedDict[str, tuple[Token, float]] = OrderedDict()
        self._required = bool(tokens)
        self._looked = -math.inf

    async def required(self) -> bool:
        """Say whether a token is needed."""
        if not self._required and not self._private and self._clock() - self._looked >= KNOWN_SECONDS:
            self._required = bool(await run_in_threadpool(self._storage.tokens))
            self._looked = self._clock()
        return self._required

    async def caller(self, header: str | None, *, basic: bool) -> Caller | None:
        """Return who sends this `Authorization` header; None for nobody that is known.

        Args:
            header: `Bearer TOKEN`.
            basic: whether `Basic` will do too, with the token as password: what a browser can send.

        Raises:
            StorageError: the database cannot say.
        """
        if not await self.required():
            return ANYBODY
        secret = _secret(header, basic=basic)
        if secret is None:
            return None
        digest = digest_of(secret)
        if self._tokens.admit(secret):
            return Caller(key=digest, project=None, scopes=("admin",))
        token = await self._token(digest)
        if token is None or not usable(token, now()):
            return None
        return Caller(key=digest, project=token.project, scopes=token.scopes)

    async def _token(self, digest: str) -> Token | None:
        token, until = self._known.get(digest, (None, -math.inf))
        if token is not None and self._clock() < until:
            return token
        until = self._clock() + KNOWN_SECONDS
        token = await run_in_threadpool(self._storage.token, digest)
        self._known.pop(digest, None)
        if token is not None:
            self._known[digest] = (token, until)
            while len(self._known) > _KNOWN:
                self._known.popitem(last=False)
        return token


def _secret(header: str | None, *, basic: bool) -> str | None:
    """Return the token in an `Authorization` header."""
    scheme, _, given = (header or "").partition(" ")
    given = given.strip()
    if scheme.lower() == "bearer":
        return given or None
    if scheme.lower() != "basic" or not basic:
        return None
    try:
        pair = base64.b64decode(given, validate=True).decode("utf-8")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return pair.partition(":")[2] or None


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, *, guarded: bool, open_to_all: bool) -> None:
    """Refuse an address that others reach, where nothing keeps them out.

    Args:
        host: where the service listens.
        guarded: whether there is a token.
        open_to_all: whether somebody said that it shall do without.

    Raises:
        ConfigError: `host` is no loopback address, there is no token, and nobody said that this is wanted.
    """
    if not is_loopback(host) and not guarded and not open_to_all:
        raise ConfigError(
            f"`{host}` can be reached from other machines, and there is no token. Make one with `rlmix token create "
            "NAME`, give --token-file FILE, serve 127.0.0.1, or spell out --insecure-no-auth."
        )
