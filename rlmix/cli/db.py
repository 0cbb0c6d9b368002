"""`rlmix db`: looking after the database of the service."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from rlmix.cli.progress import counting_bar

app = typer.Typer(help="Look after the database of the service.", rich_markup_mode="markdown", no_args_is_help=True)

DAMAGED = 1
"""Exit code where a check has found something."""

Database = Annotated[str, typer.Option("--db", help="Database: sqlite:///FILE or postgresql://USER@HOST/NAME.")]
_DEFAULT = "sqlite:///rlmix.db"
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}

UPGRADE_EXAMPLES = """
Examples:

- `rlmix db upgrade --db sqlite:////srv/rlmix/rlmix.db`

- `rlmix db upgrade --db postgresql://rlmix@db.example/rlmix`
"""
CHECK_EXAMPLES = """
Examples:

- `rlmix db check`

- `rlmix db check --db postgresql://rlmix@db.example/rlmix --json`
"""
BACKUP_EXAMPLES = """
Examples:

- `rlmix db backup /backups/rlmix.db --db sqlite:////srv/rlmix/rlmix.db`
"""
COPY_EXAMPLES = """
Examples:

- `rlmix db copy sqlite:///rlmix.db postgresql://rlmix@db.example/rlmix`

- `rlmix db copy postgresql://rlmix@db.example/rlmix sqlite:///copy.db`
"""
PRUNE_EXAMPLES = """
Examples:

- `rlmix db prune --older-than 90d --dry-run`

- `rlmix db prune --older-than 12w --project vision --db sqlite:////srv/rlmix/rlmix.db`
"""
EXPORT_EXAMPLES = """
Examples:

- `rlmix db export --project default --to runs/export`
"""


@app.command(epilog=UPGRADE_EXAMPLES)
def upgrade(db: Database = _DEFAULT) -> None:
    """Bring a database that an older rlmix wrote to the tables of this one.

    Stop the service first. A file of SQLite is kept beside as it was; back PostgreSQL up yourself (pg_dump). Each step
    is done whole or not at all. In an empty database of PostgreSQL this makes the tables.
    """
    with _installed():
        from rlmix.service.storage import maintenance
    console = Console(stderr=True, soft_wrap=True)
    revision = maintenance.upgrade(db, lambda line: console.print(line, markup=False, highlight=False))
    typer.echo(f"revision {revision}")


@app.command(epilog=CHECK_EXAMPLES)
def check(
    db: Database = _DEFAULT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Look for damage, and count what is there; nothing is changed, and the service may go on meanwhile.

    Damage is: another revision than this rlmix needs, a file that SQLite finds broken, rows that refer to nothing, and
    blobs whose bytes are not those that their digest names. The exit code is then 1.
    """
    with _installed():
        from rlmix.service.storage import maintenance
    report = maintenance.check(db)
    if as_json:
        content = {"revision": report.revision, "rows": dict(report.rows), "problems": report.problems}
        typer.echo(json.dumps(content, indent=2))
    else:
        typer.echo(f"revision {report.revision}")
        for table, rows in report.rows.items():
            typer.echo(f"{table} {rows}")
        for problem in report.problems:
            typer.echo(f"Problem: {problem}", err=True)
    if report.problems:
        raise typer.Exit(DAMAGED)


@app.command(epilog=BACKUP_EXAMPLES)
def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="File to write; it must not be there.")],
    db: Database = _DEFAULT,
) -> None:
    """Write the state of a moment to a new file, while the service goes on (SQLite; PostgreSQL has pg_dump)."""
    with _installed():
        from rlmix.service.storage import maintenance
    maintenance.backup(db, target)
    typer.echo(str(target))


@app.command(epilog=COPY_EXAMPLES)
def copy(
    source: Annotated[str, typer.Argument(help="Database to read: sqlite:///FILE or postgresql://USER@HOST/NAME.")],
    target: Annotated[str, typer.Argument(help="Database to write, which must be empty.")],
) -> None:
    """Copy everything from one database to another, whole or not at all. Stop the service first."""
    with _installed():
        from rlmix.service.storage import copying
    with counting_bar(Console(stderr=True), "rows") as count:
        rows = copying.copy(source, target, count)
    for table, number in rows.items():
        typer.echo(f"{table} {number}")


@app.command(epilog=PRUNE_EXAMPLES)
def prune(
    older_than: Annotated[str, typer.Option(help="How long ago a run must have ended: 90d, 12w or 36h.")],
    project: Annotated[str | None, typer.Option(help="Only runs of this project; otherwise of all.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted, and delete nothing.")] = False,
    db: Database = _DEFAULT,
) -> None:
    """Delete the decisions and the feedback of runs that ended long ago; the service may go on meanwhile.

    The runs themselves stay, and so does everything of runs that have not ended. Blobs that nothing refers to, and
    that were uploaded more than a day ago, are deleted too, whatever the project. A learner that has not read a run by
    then learns nothing from it. A file of SQLite keeps its size and fills the gaps.
    """
    import time

    hours = _hours(older_than)
    with _installed():
        from rlmix.service.storage import pruning
    before = time.time_ns() // 1000 - hours * 3600 * 1_000_000
    with counting_bar(Console(stderr=True), "runs") as count:
        took = pruning.prune(db, before, project, dry_run=dry_run, progress=count)
    typer.echo(
        f"{'would delete' if dry_run else 'deleted'} {took.decisions} decisions and {took.feedback} feedback of "
        f"{took.runs} runs, and {took.blobs} blobs ({took.blob_bytes} bytes)"
    )


@app.command(epilog=EXPORT_EXAMPLES)
def export(
    project: Annotated[str, typer.Option(help="Project whose runs are written.")],
    to: Annotated[Path, typer.Option(help="Folder for runs.jsonl, decisions.jsonl and feedback.jsonl.")],
    db: Database = _DEFAULT,
) -> None:
    """Write runs, decisions and feedback as JSON lines; the service may go on meanwhile."""
    with _installed():
        from rlmix.service.export import export as write
        from rlmix.service.storage import maintenance
    with counting_bar(Console(stderr=True), "runs") as count, maintenance.beside(db) as storage:
        lines = write(storage, project, to, count)
    for name, number in lines.items():
        typer.echo(f"{to / name} {number}")


def _hours(text: str) -> int:
    """Return how many hours a text such as 90d means."""
    from rlmix.errors import ConfigError

    found = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if found is None:
        raise ConfigError(f"--older-than must be a number of hours, days or weeks (36h, 90d, 12w), got {text}.")
    return int(found[1]) * _HOURS[found[2]]


@contextlib.contextmanager
def _installed() -> Iterator[None]:
    """Name what to install where an import fails."""
    from rlmix.errors import MissingDependencyError

    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"the database needs `{error.name}`, which is not installed. Run: pip install 'rlmix[serve]'"
        ) from error
