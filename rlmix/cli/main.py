"""The `rlmix` command: puts the commands together and turns the package's errors into one message."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from rlmix.cli.agent import app as agent
from rlmix.cli.bench import app as bench
from rlmix.cli.db import app as db
from rlmix.cli.demo import EXAMPLES as DEMO_EXAMPLES
from rlmix.cli.demo import demo
from rlmix.cli.gallery import EXAMPLES as GALLERY_EXAMPLES
from rlmix.cli.gallery import gallery
from rlmix.cli.instances import app as instances
from rlmix.cli.learn import EXAMPLES as LEARN_EXAMPLES
from rlmix.cli.learn import learn
from rlmix.cli.policy import app as policy
from rlmix.cli.serve import EXAMPLES as SERVE_EXAMPLES
from rlmix.cli.serve import serve
from rlmix.cli.token import app as token
from rlmix.cli.train import EXAMPLES as TRAIN_EXAMPLES
from rlmix.cli.train import train
from rlmix.errors import RlmixError

# Wrong input is the user's to mend, as a wrong option is: click exits with the same code.
EXIT_CODE = 2

app = typer.Typer(
    name="rlmix",
    help="Mixing augmentation for image classifiers, and agents that learn which mix to use when.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command(epilog=DEMO_EXAMPLES)(demo)
app.add_typer(agent, name="agent")
app.command(epilog=TRAIN_EXAMPLES)(train)
app.add_typer(policy, name="policy")
app.command(epilog=SERVE_EXAMPLES)(serve)
app.add_typer(token, name="token")
app.command(epilog=LEARN_EXAMPLES)(learn)
app.add_typer(db, name="db")
app.add_typer(instances, name="instances")
app.add_typer(bench, name="bench")
app.command(epilog=GALLERY_EXAMPLES)(gallery)


def _version(asked: bool) -> None:
    if asked:
        from rlmix import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that belong to no command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        arguments: what stands after the program's name; None takes those of this process.

    Raises:
        SystemExit: always; with 0 after success, 2 after wrong input.
    """
    try:
        app(args=None if arguments is None else list(arguments))
    except RlmixError as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]Error:[/] {escape(str(error))}", highlight=False)
        sys.exit(EXIT_CODE)
