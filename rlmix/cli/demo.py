"""`rlmix demo`: the whole job on real digits, from training an agent to its deployment beside every baseline."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, final

import typer

from rlmix.cli.progress import INTERRUPTED
from rlmix.errors import EnvError, RlmixError

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from rlmix.agents.report import Difference, Report
    from rlmix.envs.instances import InstanceSet
    from rlmix.policy.artifact import LearnedPolicy

EXAMPLES = """
Examples:

- `rlmix demo` trains, evaluates and reports into `runs/demo`

- `rlmix demo --quick` shows the same in under a minute with amounts too small to learn from

- `rlmix demo --seed 1 --out runs/demo-1` repeats it with other random numbers

- `rlmix demo --service` shows a policy service instead: three trainings, a crash on the way, and what is learned
"""

_BARS = (
    "agent: decisions", "learned policy: held-out trainings", "fixed methods: validation", "fixed methods: held out",
)  # fmt: skip

RESULT = "result.json"
LEARNED = "learned policy"
BEST = "best fixed (validation)"
BEST_PER_BUDGET = "best fixed per budget"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """How much the demo does. Counted, not timed: the same numbers on every machine.

    Attributes:
        train: instances that the agent learns on.
        validation: instances that the best fixed methods are chosen on.
        heldout: instances that everything is compared on.
        actors: trainings side by side in a wave.
        waves: policy updates.
    """

    train: int = 192
    validation: int = 48
    heldout: int = 144
    actors: int = 64
    waves: int = 24


QUICK = Amounts(train=8, validation=4, heldout=8, actors=4, waves=2)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for policy, logs and report.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the agent and of every training.", min=0, max=2**32 - 1)] = 0,
    catalogue: Annotated[str, typer.Option(help="What the agent chooses from: v0 or cheap.")] = "v0",
    quick: Annotated[bool, typer.Option("--quick", help="Tiny amounts: shows the way, learns nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")] = False,
    service: Annotated[
        bool, typer.Option("--service", help="Show a policy service instead, which is killed on the way.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only; the result is in the folder.")] = False,
) -> None:
    """Train an agent on many tiny trainings of real digits, deploy its policy, and measure what it gains."""
    if service:
        from rlmix.cli.service_demo import service_demo

        service_demo(out, seed=seed, catalogue=catalogue, quick=quick, as_json=json_, quiet=quiet)
        return

    import time

    import torch
    from rich.console import Console

    from rlmix._files import writable_folder, write_text
    from rlmix.envs.instances import digits_set
    from rlmix.policy.codec import catalogue as find_catalogue

    started = time.monotonic()
    amounts = QUICK if quick else Amounts()
    folder = writable_folder(_folder(out))
    entries = find_catalogue(catalogue)
    # A file or a pipe has no width of its own, and the table needs more than the 80 columns that stand for it.
    console = Console(stderr=json_, soft_wrap=True, quiet=quiet)
    console = console if console.is_terminal else Console(stderr=json_, soft_wrap=True, quiet=quiet, width=120)
    # Two processes, one thread each: the trainings are too small for more, and results then do not hang on the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        heldout = digits_set("heldout", amounts.heldout)
        _announce(console, amounts, len(entries), folder)
        policy, compared = _run(console, amounts, folder, seed, catalogue)
        _deploy(console, folder, policy, heldout, seed, compared)
    except KeyboardInterrupt:
        console.print(f"Stopped. What was learned is kept in `{folder}`: the same command goes on from the last wave.")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        torch.set_num_threads(threads)
    result = _result(compared, amounts, seed, catalogue, time.monotonic() - started)
    write_text(folder / "runs.csv", compared.csv())
    _write_report(folder, policy, compared, heldout, result)
    # Last, because a folder that has it counts as finished.
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    if json_:
        typer.echo(json.dumps(result))
    else:
        _print(console, folder, compared, result)


def _folder(out: Path) -> Path:
    """Return the folder to work in: `out`, or beside a finished demo the next free number.

    A demo that was interrupted is gone on with: its agent's checkpoint is there and its result is not.
    """
    numbered = (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))
    return next(folder for folder in itertools.chain([out], numbered) if not (folder / RESULT).exists())


def _announce(console: Console, amounts: Amounts, entries: int, folder: Path) -> None:
    trainings = amounts.actors * amounts.waves
    console.print(
        f"[bold]rlmix demo[/]: an agent learns to choose mixing augmentation on {trainings} small trainings of "
        f"scikit-learn's digits ({amounts.waves} waves of {amounts.actors}); it chooses one of {entries} ways of "
        f"mixing 8 times in each. Meanwhile a second process trains {entries} fixed methods on {amounts.validation} "
        f"validation and {amounts.heldout} held-out instances. Results go to `{folder}`.",
        highlight=False,
    )


def _run(console: Console, amounts: Amounts, folder: Path, seed: int, catalogue: str) -> tuple[LearnedPolicy, Report]:
    """Train the agent beside the baselines; return the policy and the report on held-out instances."""
    import multiprocessing
    from dataclasses import replace

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from rlmix.agents.agent import LearnedAgent
    from rlmix.agents.comparison import with_best_fixed
    from rlmix.agents.evaluate import evaluate
    from rlmix.agents.ppo import PPOConfig, train_ppo
    from rlmix.agents.runs import CHECKPOINT
    from rlmix.envs.instances import digits_set
    from rlmix.policy.artifact import load
    from rlmix.policy.codec import catalogue as find_catalogue
    from rlmix.policy.signals import names

    entries = find_catalogue(catalogue)
    heldout = digits_set("heldout", amounts.heldout)
    config = PPOConfig(
        catalogue=catalogue, timesteps=amounts.waves * amounts.actors * heldout.horizon, actors=amounts.actors,
        seed=seed, batch_size=min(128, amounts.actors * heldout.horizon), evaluate_every=0, out=str(folder / "agent"),
    )  # fmt: skip
    columns = (TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bars:
        spawn = multiprocessing.get_context("spawn")
        messages: Queue[Any] = spawn.Queue()
        second = spawn.Process(target=_baselines, args=(messages, amounts, seed, catalogue), daemon=True)
        second.start()
        bar = {name: bars.add_task(name, total=None) for name in _BARS}
        found: list[tuple[Report, Report]] = []

        def listen(timeout: float = 0.0) -> None:
            _listen(messages, bars, bar, found, timeout)

        def decided(state: Any) -> None:
            bars.update(bar[_BARS[0]], completed=state.decisions, total=state.total)
            listen()

        def deployed(done: int, total: int) -> None:
            bars.update(bar[_BARS[1]], completed=done, total=total)
            listen()

        checkpoint = folder / "agent" / CHECKPOINT
        training, validation = digits_set("train", amounts.train), digits_set("validation", amounts.validation)
        train_ppo(
            config, instances=training, validation=validation, progress=decided, resume=checkpoint.exists()
        )  # fmt: skip
        # Compared is what was saved: the policy is read from its directory, as any user would.
        policy = load(folder / "agent" / "policy")
        learner = {LEARNED: LearnedAgent(policy, names(entries))}
        learned = evaluate(learner, heldout, catalogue=entries, seed=seed, progress=deployed)
        while not found:
            if not second.is_alive() and messages.empty():
                raise EnvError("the process that trains the fixed methods ended without a result. Is memory short?")
            listen(0.5)
        second.join()
    validated, fixed = found[0]
    compared = replace(learned, runs=(*learned.runs, *fixed.runs))
    compared = with_best_fixed(compared, validated, entries.names, single=BEST, per_budget=BEST_PER_BUDGET)
    return policy, compared


def _listen(
    messages: Queue[Any], bars: Progress, bar: Mapping[str, TaskID], found: list[tuple[Report, Report]], timeout: float
) -> None:
    """Take what the second process has sent: progress, its result, or the error that stopped it."""
    import queue

    with contextlib.suppress(queue.Empty):
        while True:
            message = messages.get(timeout=timeout) if timeout else messages.get_nowait()
            if isinstance(message, Exception):
                raise message
            if len(message) == 2:
                found.append(message)
            else:
                name, done, total = message
                bars.update(bar[name], completed=done, total=total)


def _baselines(messages: Queue[Any], amounts: Amounts, seed: int, catalogue: str) -> None:
    """Train every entry of the catalogue, on validation and on held-out instances (in the second process)."""
    import signal

    import torch

    from rlmix.agents.baselines.fixed import FixedAgent
    from rlmix.agents.evaluate import evaluate
    from rlmix.envs.instances import digits_set
    from rlmix.policy.codec import catalogue as find_catalogue

    # Ctrl-C reaches both processes; the first one says so, and this one ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    entries = find_catalogue(catalogue)
    agents = {name: FixedAgent(name, entries) for name in entries.names}

    def measure(instances: InstanceSet, name: str, split: Literal["test", "reward"]) -> Report:
        def progress(done: int, total: int) -> None:
            messages.put((name, done, total))

        return evaluate(agents, instances, catalogue=entries, seed=seed, split=split, progress=progress)

    try:
        # What is best on validation instances is chosen without a look at test images.
        validated = measure(digits_set("validation", amounts.validation), _BARS[2], "reward")
        messages.put((validated, measure(digits_set("heldout", amounts.heldout), _BARS[3], "test")))
    except RlmixError as error:
        messages.put(error)


def _deploy(
    console: Console, folder: Path, policy: LearnedPolicy, heldout: InstanceSet, seed: int, compared: Report
) -> None:
    """Deploy the policy in one ordinary training loop, and say whether it does there what the evaluation measured."""
    import torch
    from torch.nn import functional

    from rlmix.envs import dynamics
    from rlmix.envs.heldout import test_split
    from rlmix.monitor.board import Board
    from rlmix.ops import rng
    from rlmix.policy.controller import MixController
    from rlmix.training.models.registry import build

    instance = max(heldout.instances, key=lambda one: one.total_steps)
    key = rng.derive(seed, rng.words(instance.id), 0)
    source = dynamics.load_source(instance.data)
    split = dynamics.split(instance, source)
    images, labels = source.images[split.train_rows], split.train_labels
    _, channels, height, width = images.shape
    model = build(
        instance.model, channels=channels, height=height, width=width, num_classes=source.num_classes
    )  # fmt: skip
    model.load_state_dict(dynamics.initial_weights(model, key))
    rates = dynamics.learning_rates(instance)
    optimizer = torch.optim.SGD(model.parameters(), lr=rates[0], momentum=instance.momentum)
    mixer = MixController.load(
        folder / "agent" / "policy", num_classes=source.num_classes, total_steps=instance.total_steps, seed=key,
        num_examples=instance.train_size, validation=(source.images[split.validation_rows], split.validation_labels),
    )  # fmt: skip
    (darkest, brightest), classes = source.images.aminmax(), [str(label) for label in range(source.num_classes)]
    with Board(folder / "deployed") as board:
        for step, rows in enumerate(dynamics.batch_rows(instance, key)):
            mixed, targets = mixer(images[rows], labels[rows], model=model)
            loss = functional.cross_entropy(model(mixed), targets)
            optimizer.param_groups[0]["lr"] = rates[step]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            mixer.observe(loss=loss, lr=rates[step])
            board.scalars(step, {"train/loss": float(loss.detach()), "train/lr": rates[step]})
            if mixer.decisions[-1][0] == step and mixer.decision is not None:
                board.text(step, "policy/decision", mixer.decision.text)
                board.scalars(step, {f"policy/{name}": share for name, share in (mixer.probabilities or {}).items()})
                board.mixed(step, (mixed - darkest) / (brightest - darkest), targets, classes)
    test_images, test_labels = test_split(instance)
    with torch.no_grad():
        accuracy = float((model(test_images).argmax(1) == test_labels).double().mean())
    measured = next(run.accuracy for run in compared.of(LEARNED) if run.instance == instance.id)
    names = {decision: name for name, decision in zip(policy.catalogue.names, policy.catalogue.decisions, strict=True)}
    chosen = ", ".join(names[decision] for _, decision in mixer.decisions)
    console.print(
        f"Deployed by MixController in an ordinary loop on `{instance.id}` ({instance.total_steps} steps, "
        f"{100 * instance.noise:.0f} % wrong labels): it chose {chosen}; test accuracy {100 * accuracy:.2f} %, as "
        f"evaluated {100 * measured:.2f} %.",
        highlight=False,
    )


def _result(compared: Report, amounts: Amounts, seed: int, catalogue: str, seconds: float) -> dict[str, Any]:
    """Return everything that was measured as a JSON document."""
    from rlmix.monitor import provenance

    uniform = _uniform(catalogue)
    references = {"uniform random": uniform, BEST: BEST, BEST_PER_BUDGET: BEST_PER_BUDGET}
    gains = {
        name: next(row for row in compared.differences(to) if row.agent == LEARNED) for name, to in references.items()
    }
    return {
        "schema": "rlmix.demo/1",
        "seed": seed,
        "catalogue": catalogue,
        "amounts": asdict(amounts),
        "reference": uniform,
        "chosen on validation": {BEST: compared.of(BEST)[0].actions[0]},
        "learned policy to": {name: asdict(gain) for name, gain in gains.items()},
        "agents": [asdict(row) for row in compared.differences(uniform)],
        "seconds": round(seconds, 1),
        "command": provenance.command(),
        "date": provenance.now(),
        "hardware": provenance.hardware(),
        "versions": provenance.versions(),
    }


def _uniform(catalogue: str) -> str:
    from rlmix.agents.baselines.fixed import uniform_entry
    from rlmix.policy.codec import catalogue as find_catalogue

    return uniform_entry(find_catalogue(catalogue))


def _points(interval: Any) -> str:
    """Show an interval in points of a hundred, whether from a dataclass or from its document."""
    estimate, low, high = (100 * interval[name] for name in ("estimate", "low", "high"))
    return f"{estimate:+.2f} [{low:+.2f}, {high:+.2f}]"


def _verdict(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what the learned policy gained or lost, in words, one line for each thing that it must beat."""
    lines = []
    for name, gain in result["learned policy to"].items():
        low, high = gain["mean"]["low"], gain["mean"]["high"]
        word = "better" if low > 0 else "worse" if high < 0 else "not told apart"
        lines.append((f"learned policy to {name}, mean [95 %]", f"{_points(gain['mean'])} {word}"))
    return lines


def _print(console: Console, folder: Path, compared: Report, result: Mapping[str, Any]) -> None:
    """Print the one table, what it says, and where everything lies."""
    console.print(compared.table(result["reference"]))
    console.print("In points of test accuracy, over held-out instances:")
    for name, text in _verdict(result):
        console.print(f"  {name}: [bold]{text}[/]", highlight=False)
    console.print(
        f"The best fixed method of the validation instances is {result['chosen on validation'][BEST]}. "
        f"Took {result['seconds']:.0f} s.\n\n"
        f"report        {folder / 'report.html'}\npolicy        {folder / 'agent' / 'policy'}\n"
        f"every run     {folder / 'runs.csv'}\nTensorBoard   tensorboard --logdir {folder}\n"
        f"look closer   rlmix policy show {folder / 'agent' / 'policy'}",
        highlight=False,
    )


def _write_report(
    folder: Path, policy: LearnedPolicy, compared: Report, heldout: InstanceSet, result: Mapping[str, Any]
) -> None:
    """Write the report page."""
    from rlmix.monitor.figures import difference_figure, learning_curve_figure, png, probability_figure
    from rlmix.monitor.report import write_report

    steps, rewards = _curve(folder / "agent")
    rows = compared.differences(result["reference"])
    bars = [
        (name, *(100 * gain["mean"][part] for part in ("estimate", "low", "high")))
        for name, gain in result["learned policy to"].items()
    ]
    progress = [decision / heldout.horizon for decision in range(heldout.horizon)]
    figures = [
        (
            "Learned policy against what it must beat",
            "Mean difference in test accuracy on held-out instances, with stratified bootstrap 95 % intervals.",
            png(difference_figure(bars, x_label="points of test accuracy")),
        ),
        (
            "Learning curve",
            "Mean reward of each wave: how far a training's validation score is above uniform random mixing of the "
            "same instance, in units of 0.05, held within [-2, 2].",
            png(learning_curve_figure(steps, {"reward": rewards}, x_label="decisions", y_label="reward",
                                      references={"uniform random": 0.0})),
        ),
        (
            "What the policy chooses",
            "Share of the held-out trainings in which each entry was chosen, over the progress of the training.",
            png(probability_figure(progress, _choices(compared, policy.catalogue.names, heldout.horizon))),
        ),
        ("Mixed digits", "What each entry of the catalogue makes of the same images.", _gallery(policy, heldout)),
    ]  # fmt: skip
    write_report(
        folder / "report.html",
        title="A learned mix policy on real digits",
        summary=[*_verdict(result), ("best fixed on validation", result["chosen on validation"][BEST])],
        table=(
            ("method", "test accuracy", "mean difference to uniform", "IQM difference", "P(better)"),
            [_report_row(row) for row in rows],
        ),
        figures=figures,
        provenance={
            "command": result["command"],
            "seed": str(result["seed"]),
            "amounts": ", ".join(f"{name} {value}" for name, value in result["amounts"].items()),
            "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
            "hardware": result["hardware"],
            "date": result["date"],
            "duration": f"{result['seconds']:.0f} s",
        },
    )


def _report_row(row: Difference) -> tuple[str, ...]:
    shares = asdict(row.improvement)
    better = f"{shares['estimate']:.2f} [{shares['low']:.2f}, {shares['high']:.2f}]"
    return row.agent, f"{100 * row.accuracy:.2f}", _points(asdict(row.mean)), _points(asdict(row.iqm)), better


def _curve(folder: Path) -> tuple[list[float], list[float]]:
    """Read the learning curve back from the TensorBoard log."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    points = events.Scalars("rollout/ep_rew_mean")
    return [float(point.step) for point in points], [point.value for point in points]


def _choices(compared: Report, entries: Sequence[str], horizon: int) -> dict[str, list[float]]:
    """Return how often each entry was chosen at each decision; entries that never were are left out."""
    runs = compared.of(LEARNED)
    shares = {
        entry: [sum(run.actions[decision] == entry for run in runs) / len(runs) for decision in range(horizon)]
        for entry in entries
    }
    return {entry: values for entry, values in shares.items() if any(values)}


def _gallery(policy: LearnedPolicy, heldout: InstanceSet) -> bytes:
    """Draw what each entry of the catalogue makes of the same digits."""
    import torch

    from rlmix._apply import apply
    from rlmix.monitor.figures import mixed_figure, png
    from rlmix.ops.rng import Streams
    from rlmix.training import data
    from rlmix.types import MixInputs

    source = data.load(heldout.instances[0].data)
    # The same three digits for every entry, two entries a row; brightness stands in for saliency.
    rows = torch.stack([(source.train_labels == label).nonzero()[0, 0] for label in (0, 3, 6)])
    images, labels = source.train_images[rows], source.train_labels[rows]
    height, width = images.shape[2:]
    inputs = MixInputs(3, height, width, saliency=images.mean(1), partners=torch.tensor([1, 2, 0]))
    mixed, targets, titles = [images], [torch.eye(source.num_classes)[labels]], ["original"] * 3
    for name, decision in zip(policy.catalogue.names, policy.catalogue.decisions, strict=True):
        if decision.method in ("none", "uniform"):
            continue
        plan = decision.build().plan(inputs, Streams([7]))
        mixed.append(apply(images, plan))
        targets.append(plan.soft_targets(labels, source.num_classes))
        titles += [name] * 3
    classes = [str(label) for label in range(source.num_classes)]
    return png(mixed_figure(torch.cat(mixed), torch.cat(targets), classes, titles=titles))
