"""Tokens that the database keeps: what they look like, and what is stored of them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import get_args

from rlmix.errors import ConfigError
from rlmix.service.records import Scope, Token

PREFIX = "rlmix_"
"""What a token begins with, so that whoever finds one knows what it is."""
SCOPES: tuple[Scope, ...] = get_args(Scope)

_BYTES = 32
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def new_secret() -> str:
    """Return a token that nobody has: `rlmix_` and 43 characters for 32 random bytes."""
    return PREFIX + secrets.token_urlsafe(_BYTES)


def digest_of(secret: str) -> str:
    """Return what is stored of a token: its SHA-256.

    A slow hash is for what people make up. Nobody guesses 32 random bytes.
    """
    return hashlib.sha256(secret.encode("utf-8")).hexdigest()


def usable(token: Token, now: int) -> bool:
    """Say whether a token is neither revoked nor has expired.

    Args:
        token: of the database.
        now: microseconds since 1970, UTC.
    """
    return token.revoked is None and (token.expires is None or now < token.expires)


def scopes_of(text: str) -> tuple[Scope, ...]:
    """Return the scopes of a list with commas, in their own order.

    Raises:
        ConfigError: one is unknown, or there is none.
    """
    given = {word.strip() for word in text.split(",") if word.strip()}
    unknown = sorted(given - set(SCOPES))
    if unknown or not given:
        raise ConfigError(f"scopes are {', '.join(SCOPES)}, got {', '.join(unknown) or 'none'}.")
    return tuple(scope for scope in SCOPES if scope in given)


def lifetime(text: str) -> int:
    """Return microseconds for a number and a unit: `30m`, `12h`, `90d`, `4w`.

    Raises:
        ConfigError: another form, or nothing at all.
    """
    found = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", text)
    if found is None:
        raise ConfigError(f"`{text}` is no length of time. Give minutes, hours, days or weeks: 30m, 12h, 90d, 4w.")
    return int(found[1]) * _SECONDS[found[2]] * 1_000_000


def opens(scopes: Sequence[Scope], scope: Scope) -> bool:
    """Say whether scopes include one; `admin` includes all."""
    return scope in scopes or "admin" in scopes
