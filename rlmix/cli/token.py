"""`rlmix token`: who may use a service, and for what."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rlmix.service.records import Token
    from rlmix.service.storage.abstract import AbstractStorage

app = typer.Typer(
    help="Make, list and revoke tokens of a service; it may go on meanwhile.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)

_CREATE = """
Examples:

- `rlmix token create cluster --scopes read,decide --expires 90d`

- `rlmix token create learner --project vision --scopes read,publish`

- `export RLMIX_TOKEN=$(rlmix token create me)`
"""
_LIST = """
Examples:

- `rlmix token list`

- `rlmix token list --db postgresql://rlmix@db.example.org/rlmix --json`
"""
_REVOKE = """
Examples:

- `rlmix token revoke cluster`
"""

Db = Annotated[str, typer.Option(help="Database of the service: sqlite:///FILE or postgresql://USER@HOST/NAME.")]
Name = Annotated[str, typer.Argument(help="What the token is called.")]


@app.command(epilog=_CREATE)
def create(
    name: Name,
    db: Db = "sqlite:///rlmix.db",
    project: Annotated[str | None, typer.Option(help="The only project that it opens; otherwise all.")] = None,
    scopes: Annotated[
        str, typer.Option(help="read: look; decide: train; publish: add policies; admin: everything.")
    ] = "read,decide",
    expires: Annotated[str | None, typer.Option(help="After 30m, 12h, 90d or 4w; otherwise never.")] = None,
) -> None:
    """Make a token and print it. It is shown this once: the database keeps only its SHA-256.

    From the first token on, the service answers nobody without one.
    """
    with _storage(db, make=True) as storage:
        import re

        from rlmix.errors import ConfigError
        from rlmix.service.records import Token
        from rlmix.service.schemas import NAME
        from rlmix.service.storage.sql import now
        from rlmix.service.tokens import digest_of, lifetime, new_secret, scopes_of

        if not re.fullmatch(NAME, name):
            raise ConfigError(f"`{name}` is no name. Use at most 63 of a-z, 0-9, `.`, `_` and `-`, a letter first.")
        created = now()
        end = None if expires is None else created + lifetime(expires)
        token = Token(name=name, project=project, scopes=scopes_of(scopes), created=created, expires=end, revoked=None)
        secret = new_secret()
        storage.create_token(token, digest_of(secret))
    Console(stderr=True, soft_wrap=True).print(escape(_sentence(token)), highlight=False)
    typer.echo(secret)


@app.command("list", epilog=_LIST)
def list_(
    db: Db = "sqlite:///rlmix.db",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """List the tokens, without what they are."""
    with _storage(db) as storage:
        found = [_described(token) for token in storage.tokens()]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    table = Table("name", "project", "scopes", "state", "created", "expires")
    for row in found:
        cells = (
            row["name"],
            row["project"] or "all",
            ", ".join(row["scopes"]),
            row["state"],
            row["created"][:10],
            (row["expires"] or "never")[:10],
        )
        table.add_row(*map(escape, cells))
    Console(soft_wrap=True).print(table)


@app.command(epilog=_REVOKE)
def revoke(name: Name, db: Db = "sqlite:///rlmix.db") -> None:
    """Close a token for good. A service that runs follows within five seconds."""
    with _storage(db) as storage:
        storage.revoke_token(name)
    Console(stderr=True, soft_wrap=True).print(f"The token `{escape(name)}` is revoked.", highlight=False)


@contextlib.contextmanager
def _storage(db: str, *, make: bool = False) -> Iterator[AbstractStorage]:
    """Yield a service's storage, whether or not it runs.

    Args:
        db: address of its database.
        make: whether one that is not there is made.
    """
    from rlmix.errors import ConfigError, MissingDependencyError, StorageError

    try:
        from rlmix.service.storage.opening import MEMORY, file_of, open_storage
    except ImportError as error:
        raise MissingDependencyError(
            f"the service needs `{error.name}`, which is not installed. Run: pip install 'rlmix[serve]'"
        ) from error
    if db == MEMORY:
        raise ConfigError(f"`{db}` is memory, which ends with its process. Give sqlite:///FILE.")
    path = file_of(db)
    if not make and path is not None and not path.is_file():
        raise StorageError(f"there is no database `{path}`. Give the --db that the service was started with.")
    with contextlib.closing(open_storage(db, shared=True)) as storage:
        yield storage


def _described(token: Token) -> dict[str, Any]:
    """Return what is known of a token, as JSON."""
    from rlmix.service.schemas import moment
    from rlmix.service.storage.sql import now
    from rlmix.service.tokens import usable

    ended = "revoked" if token.revoked is not None else "expired"
    return {
        "name": token.name,
        "project": token.project,
        "scopes": list(token.scopes),
        "state": "open" if usable(token, now()) else ended,
        "created": moment(token.created),
        "expires": None if token.expires is None else moment(token.expires),
        "revoked": None if token.revoked is None else moment(token.revoked),
    }


def _sentence(token: Token) -> str:
    where = "all projects" if token.project is None else f"the project {token.project}"
    until = (_described(token)["expires"] or "it is revoked")[:16].replace("T", " ")
    return (
        f"The token `{token.name}` opens {where} for {', '.join(token.scopes)}, until {until}. Here it is, this once:"
    )
