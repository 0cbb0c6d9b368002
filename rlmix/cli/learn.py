"""`rlmix learn`: a policy that learns from the trainings that it decided for."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlmix.cli.progress import INTERRUPTED, THREADS, torch_threads

if TYPE_CHECKING:
    from rlmix.monitor.board import Board
    from rlmix.service.learner import Hook, LearnerReport

# How long to wait before looking for new runs again.
_SECONDS = 2.0

EXAMPLES = """
Examples:

- `rlmix policy new runs/policy` and `rlmix serve --policy runs/policy`, then, beside it, `rlmix learn --follow`

- `rlmix learn --db sqlite:////srv/rlmix/rlmix.db --project cifar --runs-per-update 32 --out runs/learner`

In a training: `rlmix.MixController(rlmix.connect(...), explore=True, ...)`, and at its end
`mixer.report(val_accuracy=..., val_tsnll=...)`
"""


def learn(
    db: Annotated[
        str, typer.Option(help="Database of the service, which may be running: sqlite:///FILE or postgresql://...")
    ] = "sqlite:///rlmix.db",
    project: Annotated[str, typer.Option(help="Whose trainings.")] = "default",
    policy: Annotated[str, typer.Option(help="Name of the policy.")] = "default",
    alias: Annotated[str, typer.Option(help="What is to lead to the newest version.")] = "default",
    follow: Annotated[bool, typer.Option("--follow", help="Go on waiting for trainings to end, until Ctrl-C.")] = False,
    runs_per_update: Annotated[int, typer.Option(help="Trainings that one update learns from.", min=1)] = 16,
    learning_rate: Annotated[float, typer.Option(help="Step size of Adam.")] = 1e-3,
    entropy: Annotated[float, typer.Option(help="Weight of the entropy bonus: more keeps trying for longer.")] = 0.01,
    epochs: Annotated[int, typer.Option(help="Passes over the decisions in an update.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Orders the decisions in an update.", min=0, max=2**32 - 1)] = 0,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Go on from where the alias leads now, if somebody else has moved it.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    lease: Annotated[
        float, typer.Option(help="Seconds for which a learner that was killed keeps others away.", min=1)
    ] = 30.0,
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
) -> None:
    """Learn from trainings that have ended, publish new versions, and let an alias lead to them.

    A learner that is stopped or killed goes on where it was; the database keeps its state.
    """
    from rlmix.errors import MissingDependencyError, StorageError

    try:
        from rlmix.agents.ppo_update import UpdateOptions
        from rlmix.service.learner import LearnerSettings
        from rlmix.service.learner import learn as run
        from rlmix.service.storage.opening import file_of, open_storage
    except ImportError as error:
        raise MissingDependencyError(
            f"the learner needs `{error.name}`, which is not installed. Run: pip install 'rlmix[serve]'"
        ) from error
    settings = LearnerSettings(
        project=project,
        policy=policy,
        alias=alias,
        runs_per_update=runs_per_update,
        learning_rate=learning_rate,
        update=UpdateOptions(epochs=epochs, entropy=entropy),
        seed=seed,
        adopt=adopt,
        lease_seconds=lease,
    )
    file = file_of(db)
    if file is not None and not file.exists():
        raise StorageError(f"there is no database `{file}`. Give the --db of `rlmix serve`.")
    try:
        with (
            torch_threads(threads),
            contextlib.closing(open_storage(db, shared=True)) as storage,
            _reporting(out, settings.alias) as told,
        ):
            last = run(storage, settings, report=told, more=_wait if follow else None)
    except KeyboardInterrupt:
        typer.echo("Stopped. The same command goes on.", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not last.updates:
        typer.echo(f"Nothing was learned yet: an update takes {runs_per_update} trainings that can be compared.")


def _wait() -> bool:
    time.sleep(_SECONDS)
    return True


@contextlib.contextmanager
def _reporting(out: Path | None, alias: str) -> Iterator[Hook]:
    """Give a hook that prints a line for every report, and writes curves where a folder is given."""
    with contextlib.ExitStack() as stack:
        boards: list[Board] = []

        def told(report: LearnerReport) -> None:
            typer.echo(_line(report, alias))
            if out is not None and not boards:
                from rlmix.monitor.board import Board as Opened

                # What a learner wrote that was killed before its checkpoint is written again.
                boards.append(stack.enter_context(Opened(out, start=report.updates + 1)))
            for board in boards:
                board.scalars(report.updates, _scalars(report))
                board.flush()

        yield told


def _line(report: LearnerReport, alias: str) -> str:
    counts = report.counts
    numbers = {
        "learned from": counts.learned,
        "ready for the next update": report.ready,
        "waiting for others of their kind": report.aside,
        "without a score": counts.censored,
        "without a decision that was drawn": counts.silent,
        "given up": counts.dropped,
    }
    told = (f"{number} {what}" for what, number in numbers.items() if number)
    parts = [", ".join((f"{counts.read} trainings read", *told))]
    if report.reward is not None and report.statistics is not None:
        parts.append(f"mean reward {report.reward:+.2f}, entropy {report.statistics.entropy:.2f}")
    return f"update {report.updates}: {'; '.join(parts)}; `{alias}` leads to version {report.version}"


def _scalars(report: LearnerReport) -> dict[str, float]:
    counts = report.counts
    values: dict[str, float] = {
        "learner/runs": counts.read,
        "learner/usable": counts.learned + report.ready,
        "learner/aside": report.aside,
        "learner/censored": counts.censored,
        "learner/version": report.version,
    }
    if report.reward is not None and report.statistics is not None:
        values["learner/reward"] = report.reward
        values["learner/entropy"] = report.statistics.entropy
        values["learner/clip_share"] = report.statistics.clipped
        values["learner/weight_limit_share"] = report.statistics.limited
        values["learner/value_loss"] = report.statistics.value_loss
    return values
