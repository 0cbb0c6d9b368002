"""`rlmix agent train` and `rlmix agent evaluate`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

if TYPE_CHECKING:
    from rlmix.agents.callbacks import Progress, ProgressHook
    from rlmix.agents.evaluate import Progress as Count
    from rlmix.agents.report import Report
    from rlmix.envs.instances import InstanceSet
    from rlmix.policy.artifact import LearnedPolicy

INTERRUPTED = 130
HELDOUT = "heldout"
DIGITS = "digits"
RUNS = "runs.csv"
REPORT = "report.json"

TRAIN_EXAMPLES = """
Examples:

- `rlmix agent train --out runs/agent` trains on scikit-learn's digits

- `rlmix agent train --config configs/agents/digits.yaml --set learning_rate=0.0005 --out runs/slower` changes one value

- `rlmix agent train --resume --out runs/agent` goes on after an interruption
"""
EVALUATE_EXAMPLES = """
Examples:

- `rlmix agent evaluate --policy runs/agent/policy --out runs/evaluation` writes every run beside the table

- `rlmix agent evaluate --policy runs/agent/policy --instances configs/instances/digits.yaml` names the set
"""

# Threads cost small trainings more than they bring, and with one the result does not depend on the machine's cores.
_THREADS = "Threads of torch on the CPU; more than one helps large classifiers only."

app = typer.Typer(help="Train agents that choose how to mix, and compare them with what they must beat.")


@app.command(epilog=TRAIN_EXAMPLES)
def train(
    config: Annotated[Path | None, typer.Option(help="YAML file with the configuration.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change one value: key=value. Repeatable.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="Decisions, over all actors.")] = None,
    actors: Annotated[int | None, typer.Option(help="Classifiers that are trained side by side.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda: where the classifiers train.")] = None,
    threads: Annotated[int, typer.Option(help=_THREADS, min=1)] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train a policy with PPO on many small trainings at once.

    Checkpoints and TensorBoard events go into the run's folder, and the policy into `policy` there.
    """
    from rlmix.agents.ppo import CHECKPOINT, CONFIG, POLICY, PPOConfig, train_ppo
    from rlmix.training.config import load_config

    given = {
        "timesteps": timesteps, "actors": actors, "seed": seed, "device": device,
        "out": None if out is None else str(out), "data_dir": None if data_dir is None else str(data_dir),
    }  # fmt: skip
    # JSON, so that a folder called 123 stays a text.
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    own = None if out is None else out / CONFIG
    base = own if resume and config is None and own is not None and own.is_file() else config
    settings = load_config(base, PPOConfig, [*(changes or []), *flags])
    folder = Path(settings.out)
    console = Console(stderr=True, soft_wrap=True, quiet=as_json)
    console.print(f"Training in [bold]{escape(str(folder))}[/]. To watch: {_watch(folder)}", highlight=False)
    try:
        with _torch_threads(threads), _training_bar(console) as hook:
            policy = train_ppo(settings, resume=resume, progress=hook)
    except KeyboardInterrupt:
        _say_how_to_go_on(folder, kept=(folder / CHECKPOINT).exists())
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({"policy": str(folder / POLICY), "card": dict(policy.card)}, indent=2))
    else:
        _print_policy(policy, folder / POLICY)


@app.command(epilog=EVALUATE_EXAMPLES)
def evaluate(
    policy: Annotated[Path, typer.Option(help="Folder of a learned policy.")],
    instances: Annotated[
        str, typer.Option(help="heldout (of what the policy was trained on), or the YAML file of a recipe.")
    ] = HELDOUT,
    replicates: Annotated[int, typer.Option(help="Trainings of each instance by each agent.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Use at most this many instances of each part.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trainings.", min=0)] = 0,
    validation: Annotated[
        bool, typer.Option("--validation/--no-validation", help="Whether the policy sees validation images.")
    ] = True,
    out: Annotated[Path | None, typer.Option(help="Folder for runs.csv and report.json.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help=_THREADS, min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Compare a policy with none, every fixed method, best fixed, best fixed per budget and uniform random.

    All agents train the same classifiers on the same batches; the best fixed ones are chosen on validation instances.
    """
    from rlmix._files import writable_folder, write_text
    from rlmix.agents.baselines.fixed import uniform_entry
    from rlmix.agents.comparison import compare
    from rlmix.envs.instances import instance_set
    from rlmix.policy.artifact import load
    from rlmix.training.loop import choose_device

    folder = None if out is None else writable_folder(out)
    learned = load(policy)
    reference = uniform_entry(learned.catalogue)
    recipe = _recipe_of(learned) if instances == HELDOUT else instances
    heldout, chosen_on = (_limited(instance_set(recipe, part), limit) for part in ("heldout", "validation"))
    with _torch_threads(threads), _counting_bar(Console(stderr=True, quiet=as_json)) as count:
        report = compare(
            learned, heldout, chosen_on,
            replicates=replicates, seed=seed, with_validation=validation, data_dir=data_dir,
            device=choose_device(device), progress=count,
        )  # fmt: skip
    document = json.dumps(report.to_json(reference), indent=2)
    if folder is not None:
        write_text(folder / RUNS, report.csv())
        write_text(folder / REPORT, document + "\n")
    if as_json:
        typer.echo(document)
    else:
        _print_report(report, reference, folder)


def _recipe_of(policy: LearnedPolicy) -> str:
    """Return what the policy was trained on."""
    config = policy.card.get("config")
    return str(config.get("instances", DIGITS)) if isinstance(config, Mapping) else DIGITS


def _limited(instances: InstanceSet, limit: int | None) -> InstanceSet:
    return instances if limit is None else replace(instances, instances=instances.instances[:limit])


def _watch(folder: Path) -> str:
    return shlex.join(["tensorboard", "--logdir", str(folder)])


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _training_bar(console: Console) -> Iterator[ProgressHook]:
    """Give a hook that shows how far the training is, where somebody can see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("decisions", total=None)

        def hook(progress: Progress) -> None:
            words = "decisions" if math.isnan(progress.reward) else f"decisions  reward {progress.reward:+.2f}"
            bar.update(task, completed=progress.decisions, total=progress.total, description=words)

        yield hook


@contextmanager
def _counting_bar(console: Console) -> Iterator[Count]:
    """Give a hook that shows how many trainings are finished, where somebody can see it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("trainings", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _say_how_to_go_on(folder: Path, *, kept: bool) -> None:
    again = shlex.join(["rlmix", "agent", "train", "--resume", "--out", str(folder)])
    told = f"The last checkpoint is kept. To go on: [bold]{escape(again)}[/]" if kept else "Nothing was kept yet."
    Console(stderr=True, soft_wrap=True).print(f"\nStopped. {told}", highlight=False)


def _print_policy(policy: LearnedPolicy, folder: Path) -> None:
    """Print what the training's own evaluation measured, and where the policy lies."""
    console = Console(soft_wrap=True)
    statistics = policy.card["statistics"]
    gain = 100 * statistics["eval/accuracy_to_uniform"]
    console.print(
        f"On validation instances: accuracy {statistics['eval/accuracy']:.2%}, {gain:+.2f} points to uniform random.",
        highlight=False,
    )
    console.print(f"Policy: {escape(str(folder))}", highlight=False)
    console.print(f"To compare it: {escape(shlex.join(['rlmix', 'agent', 'evaluate', '--policy', str(folder)]))}",
                  highlight=False)  # fmt: skip


def _print_report(report: Report, reference: str, folder: Path | None) -> None:
    console = Console(soft_wrap=True)
    # In a file nothing has to fit a screen.
    console.print(report.table(reference), width=None if console.is_terminal else 120)
    if folder is not None:
        console.print(
            f"Every run: {escape(str(folder / RUNS))}\nReport: {escape(str(folder / REPORT))}", highlight=False
        )
