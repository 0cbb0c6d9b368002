"""`rlmix agent train`, `rlmix agent evaluate`, `rlmix agent validate`, `report` and `release`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from rlmix.cli.progress import INTERRUPTED, PROCESSES, THREADS, counting_bar, torch_threads
from rlmix.cli.recipe import EXAMPLES as RECIPE_EXAMPLES
from rlmix.cli.recipe import recipe
from rlmix.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from rlmix.agents.callbacks import Progress, ProgressHook
    from rlmix.agents.jobs import Progress as Count
    from rlmix.agents.protocol import Level, Protocol
    from rlmix.agents.replay import Mismatch
    from rlmix.agents.report import Report
    from rlmix.agents.results import LevelResult
    from rlmix.policy.artifact import LearnedPolicy

HELDOUT = "heldout"
DIGITS = "digits"
RUNS = "runs.csv"
REPORT = "report.json"
TABLE = "comparisons.csv"
TEXT = "report.txt"
FIGURES = "figures"
LEARNED = "learned"
# So many classifier seeds a comparison should have at least.
REPLICATES = 10
MISMATCH = 1
_SHOWN = 20

TRAIN_EXAMPLES = """
Examples:

- `rlmix agent train --out runs/agent` trains on scikit-learn's digits

- `rlmix agent train --config configs/agents/digits.yaml --set learning_rate=0.0005 --out runs/slower` changes one value

- `rlmix agent train --algorithm es --out runs/evolution` evolves one instead of learning by PPO

- `rlmix agent train --resume --out runs/agent` goes on after an interruption
"""
EVALUATE_EXAMPLES = """
Examples:

- `rlmix agent evaluate --policy runs/agent/policy --out runs/evaluation` writes every run beside the table

- `rlmix agent evaluate --policy runs/agent/policy --instances configs/instances/digits.yaml` names the set

- `rlmix agent evaluate --policy runs/a/policy --policy runs/b/policy --levels levels.yaml --out runs/study` takes two
  seeds of one policy through the whole protocol: levels, replicates, oracle, ablations, equal wall-clock

- `rlmix agent evaluate --policy runs/a/policy --policy runs/b/policy --levels levels.yaml --out runs/study --resume`
  goes on after an interruption

A file of levels: `levels: [{name: L0, instances: digits}, {name: L2, instances: other.yaml, limit: 50}]`
"""
VALIDATE_EXAMPLES = """
Examples:

- `rlmix agent validate runs/study/runs.csv` trains every run again and compares the scores

- `rlmix agent validate runs/study/runs.csv --policy runs/a/policy --limit 100` also asks the policy again
"""

REPORT_EXAMPLES = """
Examples:

- `rlmix agent report runs/study --training runs/a --training runs/b --out runs/page` writes figures.md and its figures
"""

RELEASE_EXAMPLES = """
Examples:

- `rlmix agent release runs/study --training runs/a --training runs/b --out my-policy`, then
  `rlmix.MixController("my-policy", ...)`
"""

app = typer.Typer(help="Train agents that choose how to mix, and compare them with what they must beat.")
app.command(epilog=RECIPE_EXAMPLES)(recipe)


class Algorithm(str, Enum):
    """What an agent is trained by."""

    PPO = "ppo"
    ES = "es"
    QRDQN = "qrdqn"


@app.command(epilog=TRAIN_EXAMPLES)
def train(
    algorithm: Annotated[
        Algorithm | None,
        typer.Option(
            help="ppo (proximal policy optimisation), es (evolution strategies) or qrdqn (quantile regression DQN, "
            "which needs rlmix[contrib]). [that of the configuration, else ppo]",
            show_default=False,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with the configuration.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Change one value: key=value. Repeatable.")] = None,
    timesteps: Annotated[int | None, typer.Option(help="Decisions, over all actors.")] = None,
    actors: Annotated[int | None, typer.Option(help="Classifiers that are trained side by side.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda: where the classifiers train.")] = None,
    processes: Annotated[int | None, typer.Option(help=f"{PROCESSES} For ppo.", min=1)] = None,
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train a policy on many small trainings at once.

    Checkpoints and TensorBoard events go into the run's folder, and the policy into `policy` there.
    """
    from rlmix.agents.runs import CHECKPOINT, CONFIG, POLICY
    from rlmix.training.config import load_config

    given = {
        "timesteps": timesteps, "actors": actors, "seed": seed, "device": device, "processes": processes,
        "out": None if out is None else str(out), "data_dir": None if data_dir is None else str(data_dir),
    }  # fmt: skip
    # JSON, so that a folder called 123 stays a text.
    flags = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]
    own = None if out is None else out / CONFIG
    base = own if resume and config is None and own is not None and own.is_file() else config
    kind, train_by = _trainer(algorithm, base)
    settings = load_config(base, kind, [*(changes or []), *flags])
    folder = Path(settings.out)
    console = Console(stderr=True, soft_wrap=True, quiet=as_json)
    console.print(f"Training in [bold]{escape(str(folder))}[/]. To watch: {_watch(folder)}", highlight=False)
    try:
        with torch_threads(threads), _training_bar(console) as hook:
            policy = train_by(settings, resume=resume, progress=hook)
    except KeyboardInterrupt:
        _say_how_to_go_on(folder, kept=(folder / CHECKPOINT).exists())
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        typer.echo(json.dumps({"policy": str(folder / POLICY), "card": dict(policy.card)}, indent=2))
    else:
        _print_policy(policy, folder / POLICY)


@app.command(epilog=EVALUATE_EXAMPLES)
def evaluate(
    policy: Annotated[list[Path], typer.Option(help="Folder of a learned policy. Repeatable: one for each seed.")],
    instances: Annotated[
        list[str] | None,
        typer.Option(help="heldout (of what the policy was trained on), or the YAML file of a recipe. Repeatable."),
    ] = None,
    levels: Annotated[Path | None, typer.Option(help="YAML file of levels, instead of --instances.")] = None,
    replicates: Annotated[
        int | None, typer.Option(help="Trainings of each instance by each agent [1, or 10 in the protocol].", min=1)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most this many instances of each part.", min=1)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the trainings.", min=0)] = 0,
    validation: Annotated[
        bool | None,
        typer.Option(
            "--validation/--no-validation",
            help="Whether the policy sees validation images [yes; the protocol compares both, or with them only].",
        ),
    ] = None,
    equal_time: Annotated[
        bool | None,
        typer.Option("--equal-time/--equal-steps", help="Protocol: compare also at equal wall-clock [yes]."),
    ] = None,
    ablations: Annotated[
        bool | None,
        typer.Option("--ablations/--no-ablations", help="Protocol: replayed choices, and a static mixture [yes]."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for runs.csv and report.json.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Protocol: go on with the runs in --out.")] = False,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    processes: Annotated[int, typer.Option(help=PROCESSES, min=1)] = 1,
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Compare a policy with none, every fixed method, best fixed, best fixed per budget and uniform random.

    All agents train the same classifiers on the same batches; the best fixed ones are chosen on validation instances.
    Several policies or sets of instances, --levels or --resume run the whole protocol: the unbiased oracle, both
    ablations, with and without validation images, equal steps and equal wall-clock. It keeps every run as it goes.
    """
    from rlmix.agents.baselines.fixed import uniform_entry
    from rlmix.agents.protocol import Protocol
    from rlmix.policy.artifact import load
    from rlmix.policy.codec import catalogue
    from rlmix.training.loop import choose_device

    given = instances or [HELDOUT]
    learned = [load(path) for path in policy]
    console = Console(stderr=True, quiet=as_json)
    chosen = choose_device(device)
    if levels is None and not resume and len(learned) == len(given) == 1:
        if equal_time is not None or ablations is not None:
            raise ConfigError("--equal-time and --ablations are of the protocol, which --levels FILE runs.")
        recipe = _recipe_of(learned[0]) if given == [HELDOUT] else given[0]
        with torch_threads(threads), counting_bar(console) as count:
            report = _evaluate_one(
                learned[0], recipe, limit,
                replicates=replicates or 1, seed=seed, with_validation=validation is not False, data_dir=data_dir,
                device=chosen, processes=processes, progress=count, out=out,
            )  # fmt: skip
        _tell(report, uniform_entry(learned[0].catalogue), out, as_json=as_json)
        return
    if out is None:
        raise ConfigError("the protocol keeps its runs as it goes. Give a folder with --out.")
    if levels is not None and (instances or limit):
        raise ConfigError("--levels says which instances are used. Leave --instances and --limit out.")
    if validation is False:
        raise ConfigError("the protocol compares with and without validation images; --validation leaves these out.")
    # Who sets parameters too is compared with the presets that others choose from.
    presets = learned[0].catalogue if learned[0].codec is None else catalogue("v0")
    protocol = Protocol(
        catalogue=presets, replicates=replicates or REPLICATES, seed=seed,
        no_validation=validation is None, equal_time=equal_time is not False, ablations=ablations is not False,
    )  # fmt: skip
    places = _levels(levels, [_recipe_of(learned[0]) if name == HELDOUT else name for name in given], limit)
    with torch_threads(threads), counting_bar(console) as count:
        results = _run_protocol(
            learned, places, protocol,
            out=out, resume=resume, data_dir=data_dir, device=chosen, processes=processes, progress=count,
        )  # fmt: skip
        document = _write_study(results, protocol, out, chosen)
    typer.echo(json.dumps(document, indent=2) if as_json else (out / TEXT).read_text(encoding="utf-8"))


@app.command(epilog=VALIDATE_EXAMPLES)
def validate(
    runs: Annotated[Path, typer.Argument(help="The runs.csv that the evaluation protocol wrote.")],
    policy: Annotated[
        Path | None, typer.Option(help="Folder of a learned policy: it must choose again what its rows say.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Replay only so many rows, from the first on.", min=1)] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="How far scores of another kind of machine or torch may be off [0.05].", min=0.0),
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "cpu",
    threads: Annotated[int, typer.Option(help=THREADS, min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, and nothing else.")] = False,
) -> None:
    """Train recorded runs again, with the choices of the record, and check that their scores come out again.

    On the same kind of processor, with as many threads and the same version of torch, to the last bit; elsewhere within
    --tolerance. The exit code is 1 if a row differs, and all that do are listed.
    """
    from rlmix.agents.agent import LearnedAgent
    from rlmix.agents.ledger import machine, read
    from rlmix.agents.protocol import CATALOGUE, digest_of_agent, read_catalogue
    from rlmix.agents.replay import TOLERANCE, replay
    from rlmix.policy.artifact import load
    from rlmix.policy.signals import names
    from rlmix.training.loop import choose_device

    records = read(runs)[:limit]
    allowed = TOLERANCE if tolerance is None else tolerance
    asked = None
    if policy is None:
        catalogue = read_catalogue(runs.parent / CATALOGUE)
    else:
        learned = load(policy)
        catalogue = learned.catalogue
        agent = LearnedAgent(learned, names(catalogue))
        asked = digest_of_agent(agent), agent
    chosen = choose_device(device)
    with torch_threads(threads), counting_bar(Console(stderr=True, quiet=as_json)) as count:
        found = replay(
            records, catalogue, policy=asked, tolerance=allowed, data_dir=data_dir, device=chosen, progress=count
        )
        exact = sum(record.machine == machine(chosen) for record in records)
    if as_json:
        rows = [_mismatch(one) for one in found]
        typer.echo(json.dumps({"runs": len(records), "exact": exact, "mismatches": rows}, indent=2))
    else:
        _print_mismatches(found, len(records), exact, allowed)
    if found:
        raise typer.Exit(MISMATCH)


@app.command(epilog=REPORT_EXAMPLES)
def report(
    study: Annotated[Path, typer.Argument(help="Folder of a finished evaluation of levels.")],
    training: Annotated[
        list[Path], typer.Option(help="Folder of a training whose policy was evaluated. Repeatable: one for each seed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the page and its figures.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's path as JSON, and nothing else.")] = False,
) -> None:
    """Turn a finished study into a page: learning curves, choices, differences on every level, and how to repeat it.

    Nothing is trained. All numbers are computed from the recorded runs and the trainings' event files.
    """
    from rlmix._files import writable_folder
    from rlmix.agents.page import read_study, write_page

    # To compare takes minutes, and a folder that cannot be written should be known before.
    writable_folder(out)
    page = write_page(read_study(study, training), out)
    typer.echo(json.dumps({"page": str(page)}) if as_json else f"Page: {page}")


@app.command(epilog=RELEASE_EXAMPLES)
def release(
    study: Annotated[Path, typer.Argument(help="Folder of a finished evaluation of levels.")],
    training: Annotated[
        list[Path], typer.Option(help="Folder of a training whose policy was evaluated. Repeatable: one for each seed.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the policy.")],
    data_dir: Annotated[Path | None, typer.Option(help="Where data sets lie; else $RLMIX_DATA, else ./data.")] = None,
) -> None:
    """Hand on the policy that was best on validation instances, with the study's results and its limits on the card.

    Outside the limits a controller uses the entry that the study found safest, and says so. Nothing is trained.
    """
    from rlmix.agents.page import read_study
    from rlmix.agents.release import release as chosen
    from rlmix.policy.artifact import save

    policy = chosen(read_study(study, training), data_dir=data_dir)
    save(out, policy)
    _print_policy(policy, out)


def _trainer(algorithm: Algorithm | None, config: Path | None) -> tuple[Any, Callable[..., LearnedPolicy]]:
    """Return the configuration's class and what trains by it: what was asked for, or what the file is of."""
    from rlmix.agents.baselines.evolution import ESConfig, train_es
    from rlmix.agents.ppo import PPOConfig, train_ppo
    from rlmix.agents.qrdqn import QRDQNConfig, train_qrdqn
    from rlmix.training.config import keys_of

    known: dict[Algorithm, tuple[Any, Callable[..., LearnedPolicy]]] = {
        Algorithm.PPO: (PPOConfig, train_ppo),
        Algorithm.ES: (ESConfig, train_es),
        Algorithm.QRDQN: (QRDQNConfig, train_qrdqn),
    }
    if algorithm is None and config is not None:
        # A configuration that several could read is one for PPO; one that none can is answered as one for PPO.
        keys = keys_of(config)
        fits = (one for one, (kind, _) in known.items() if keys <= {field.name for field in fields(kind)})
        algorithm = next(fits, Algorithm.PPO)
    return known[algorithm or Algorithm.PPO]


def _evaluate_one(
    learned: LearnedPolicy,
    recipe: str,
    limit: int | None,
    *,
    replicates: int,
    seed: int,
    with_validation: bool,
    data_dir: Path | None,
    device: torch.device,
    processes: int,
    progress: Count,
    out: Path | None,
) -> Report:
    """Compare one policy on one set of instances."""
    from rlmix._files import writable_folder
    from rlmix.agents.comparison import compare
    from rlmix.envs.instances import instance_set, limited

    if out is not None:
        writable_folder(out)
    heldout, chosen_on = (limited(instance_set(recipe, part), limit) for part in ("heldout", "validation"))
    return compare(
        learned, heldout, chosen_on,
        replicates=replicates, seed=seed, with_validation=with_validation, data_dir=data_dir, device=device,
        processes=processes, progress=progress,
    )  # fmt: skip


def _tell(report: Report, reference: str, out: Path | None, *, as_json: bool) -> None:
    """Write and print the report of one policy on one set of instances."""
    from rlmix._files import write_text

    document = json.dumps(report.to_json(reference), indent=2)
    if out is not None:
        write_text(out / RUNS, report.csv())
        write_text(out / REPORT, document + "\n")
    if as_json:
        typer.echo(document)
    else:
        _print_report(report, reference, out)


def _levels(file: Path | None, recipes: Sequence[str], limit: int | None) -> tuple[Level, ...]:
    from rlmix.agents.protocol import LevelSource, level_of, load_levels

    if file is not None:
        return load_levels(file)
    return tuple(level_of(LevelSource(name=Path(name).stem, instances=name, limit=limit)) for name in recipes)


def _run_protocol(
    policies: Sequence[LearnedPolicy],
    levels: Sequence[Level],
    protocol: Protocol,
    *,
    out: Path,
    resume: bool,
    data_dir: Path | None,
    device: torch.device,
    processes: int,
    progress: Count,
) -> tuple[LevelResult, ...]:
    from rlmix.agents.agent import LearnedAgent
    from rlmix.agents.protocol import evaluate_levels
    from rlmix.policy.signals import names

    for learned in policies:
        for level in levels:
            if learned.horizon != level.heldout.horizon:
                raise ConfigError(
                    f"A policy decides {learned.horizon} times in a training, the instances of level `{level.name}` "
                    f"have {level.heldout.horizon} decisions. Use recipes with `horizon: {learned.horizon}`."
                )
    agents = {LEARNED: [LearnedAgent(learned, names(learned.catalogue)) for learned in policies]}
    try:
        return evaluate_levels(
            agents, levels, protocol,
            out=out, resume=resume, data_dir=data_dir, device=device, processes=processes, progress=progress,
        )  # fmt: skip
    except KeyboardInterrupt:
        told = "All finished blocks are kept. To go on, give the same command with [bold]--resume[/]."
        Console(stderr=True, soft_wrap=True).print(f"\nStopped. {told}", highlight=False)
        raise typer.Exit(INTERRUPTED) from None


def _write_study(
    results: Sequence[LevelResult], protocol: Protocol, out: Path, device: torch.device
) -> dict[str, object]:
    """Write report, tables and figures; return the report."""
    from rlmix._files import write_text
    from rlmix.agents.figures import study_figures, write_figures
    from rlmix.agents.results import comparisons_csv, document, tables_text
    from rlmix.monitor.provenance import command, commit, hardware, now, versions

    found: dict[str, object] = {
        "schema": "rlmix.study/1",
        "replicates": protocol.replicates,
        "seed": protocol.seed,
        "provenance": {
            "command": command(),
            "commit": commit(),
            "versions": versions(),
            "hardware": hardware(device),
            "date": now(),
        },
        "levels": document(results),
    }
    rows = [row for result in results for condition in result.reports for row in result.comparisons(condition)]
    write_text(out / REPORT, json.dumps(found, indent=2) + "\n")
    write_text(out / TABLE, comparisons_csv(rows))
    write_text(out / TEXT, tables_text(results))
    write_figures(out / FIGURES, study_figures(results, LEARNED))
    return found


def _mismatch(found: Mismatch) -> dict[str, object]:
    return {
        "row": found.row,
        "instance": found.record.run.instance,
        "agent": found.record.run.agent,
        "replicate": found.record.run.replicate,
        "variant": found.record.variant,
        "recorded": {"accuracy": found.record.run.accuracy, "score": found.record.run.score},
        "replayed": {"accuracy": found.run.accuracy, "score": found.run.score},
        "allowed": found.allowed,
        "chosen": None if found.chosen is None else list(found.chosen),
    }


def _print_mismatches(found: Sequence[Mismatch], count: int, exact: int, tolerance: float) -> None:
    console = Console(soft_wrap=True)
    for one in found[:_SHOWN]:
        run = one.record.run
        other = "" if one.chosen is None else f", the policy now chooses {' '.join(one.chosen)}"
        console.print(
            f"line {one.row}: {run.agent} on {run.instance}, replicate {run.replicate}, {one.record.variant}: score "
            f"{run.score!r} recorded, {one.run.score!r} replayed{other}",
            highlight=False, markup=False,
        )  # fmt: skip
    if len(found) > _SHOWN:
        console.print(f"... and {len(found) - _SHOWN} more; --json lists all.", highlight=False)
    console.print(
        f"{count} runs replayed, {len(found)} differ. {exact} were compared to the last bit, {count - exact} of "
        f"another machine within {tolerance:g}.",
        highlight=False,
    )  # fmt: skip


def _recipe_of(policy: LearnedPolicy) -> str:
    """Return what the policy was trained on."""
    config = policy.card.get("config")
    return str(config.get("instances", DIGITS)) if isinstance(config, Mapping) else DIGITS


def _watch(folder: Path) -> str:
    return shlex.join(["tensorboard", "--logdir", str(folder)])


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
