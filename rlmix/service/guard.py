"""What stands before every request: who may ask, how large a request may be, and what a refusal looks like."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from pathlib import Path
from typing import Any, final

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlmix.errors import ConfigError

JSON_BYTES = 2**20
BLOB_BYTES = 64 * 2**20
_SHORTEST_TOKEN = 32


@final
class Tokens:
    """The tokens that open the service; none, and it is open to whoever reaches it.

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

    def admit(self, header: str | None) -> bool:
        """Say whether a request with this `Authorization` header may pass."""
        if not self._digests:
            return True
        scheme, _, token = (header or "").partition(" ")
        given = hashlib.sha256(token.strip().encode("utf-8")).digest()
        # Every token is compared, so that the time does not say which one was near.
        found = [hmac.compare_digest(given, digest) for digest in self._digests]
        return scheme.lower() == "bearer" and any(found)


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_address(host: str, tokens: Tokens, *, open_to_all: bool) -> None:
    """Refuse an address that others reach, where nothing keeps them out.

    Raises:
        ConfigError: `host` is no loopback address, there is no token, and nobody said that this is wanted.
    """
    if not is_loopback(host) and not tokens and not open_to_all:
        raise ConfigError(
            f"`{host}` can be reached from other machines, and there is no token. Give --token-file FILE, serve "
            "127.0.0.1, or spell out --insecure-no-auth."
        )


def problem(status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    """Return a problem as RFC 9457 has it: `title` names the kind, `detail` says what was wrong here."""
    return {"type": f"urn:rlmix:problem:{title}", "title": title, "status": status, "detail": detail, **more}


@final
class BodyLimit:
    """Refuses bodies that are too large, counted as they arrive, whatever their header says.

    Args:
        app: what answers.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = BLOB_BYTES if scope["path"].startswith("/v1/blobs/") else JSON_BYTES
        total = 0

        async def counted() -> Message:
            nonlocal total
            message = await receive()
            total += len(message.get("body", b""))
            if total > limit:
                raise HTTPException(413, f"a body has at most {limit} bytes here.", {"Connection": "close"})
            return message

        await self._app(scope, counted, send)
