"""`rlmix serve`: one agent for many trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
Examples:

- `rlmix serve --policy runs/demo/agent/policy`

- `rlmix serve --db sqlite:////srv/rlmix/rlmix.db --durability full`

- `rlmix serve --host 0.0.0.0 --token-file tokens`

- `rlmix serve --host 0.0.0.0 --allow-host mixes.example.org`, after `rlmix token create`

- `rlmix serve --db postgresql://rlmix@db.example.org/rlmix`

In a training: `rlmix.MixController("http://127.0.0.1:8490", ...)`
"""


def serve(
    host: Annotated[str, typer.Option(help="Address; any but this machine's own needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.", min=0, max=65535)] = 8490,
    db: Annotated[
        str, typer.Option(help="Database: sqlite:///FILE, sqlite:// for memory, or postgresql://USER@HOST/NAME.")
    ] = "sqlite:///rlmix.db",
    durability: Annotated[
        str, typer.Option(help="normal outlives a kill of the service, full the loss of power too, at a price.")
    ] = "normal",
    policy: Annotated[
        Path | None, typer.Option(help="Folder of a policy, or default, that trainings get unless they ask otherwise.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with a token on each line, each opening everything; see rlmix token for others."),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Name that the service may be called by; repeat it. Needed behind a proxy on this machine."),
    ] = None,
    rate: Annotated[
        float, typer.Option(help="Requests a second of each token, twice as many at once; 0 for no limit.", min=0)
    ] = 200.0,
    insecure_no_auth: Annotated[
        bool, typer.Option("--insecure-no-auth", help="Serve other machines without any token.")
    ] = False,
) -> None:
    """Serve a policy to trainings, keep every decision, and take what comes of it."""
    from rlmix.errors import ConfigError, MissingDependencyError

    if durability not in ("normal", "full"):
        raise ConfigError(f"--durability must be normal or full, got {durability}.")
    try:
        from rlmix.service.guard import Tokens
        from rlmix.service.server import Settings
        from rlmix.service.server import serve as run
        from rlmix.service.storage.postgres import shown
    except ImportError as error:
        raise MissingDependencyError(
            f"the service needs `{error.name}`, which is not installed. Run: pip install 'rlmix[serve]'"
        ) from error
    settings = Settings(
        host=host,
        port=port,
        db=db,
        durability="full" if durability == "full" else "normal",
        tokens=Tokens() if token_file is None else Tokens.read(token_file),
        open_to_all=insecure_no_auth,
        hosts=tuple(allow_host or ()),
        rate=rate,
    )
    run(settings, policy, lambda url: typer.echo(f"rlmix serves {url} from {shown(db)}"))
