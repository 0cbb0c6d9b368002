"""`rlmix demo --service`: a service, three trainings that ask it, a kill on the way, and what is learned from them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import multiprocessing
import queue
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, final

import torch
import typer
from torch.nn import functional

from rlmix._files import writable_folder, write_text
from rlmix.cli.progress import INTERRUPTED
from rlmix.envs import dynamics
from rlmix.envs.instances import Instance
from rlmix.envs.reward import measure
from rlmix.errors import MissingDependencyError, RlmixError, ServiceError
from rlmix.ops import rng
from rlmix.policy.artifact import save
from rlmix.policy.codec import catalogue as find_catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.decision import Decision
from rlmix.policy.remote import connect
from rlmix.policy.untrained import untrained
from rlmix.training.models.registry import build

if TYPE_CHECKING:
    from rich.console import Console

    from rlmix.service.storage.abstract import AbstractStorage

RESULT = "result.json"
LOST = 1
"""Exit code if what a training was told is not what is stored."""

# A score means something beside those of two others, so the learner needs three.
_TRAININGS = 3
_HORIZON = 8
_STEPS, _QUICK_STEPS = 4000, 800
# The service is killed when every training has had so many answers.
_ANSWERS = 2
# Importing torch takes minutes where many programs run at once.
_LONGEST_SECONDS = 600.0
# A training that never reaches the service has nothing to show, and the machine may be busy.
_SETUP_SECONDS = 30.0
_DELIVERIES = 10
_PROJECT = _POLICY = _ALIAS = "default"
_SERVICE_LOG, _TRAININGS_LOG, _CACHE = "service.log", "trainings.log", "cache"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training came to.

    Attributes:
        run: its name.
        decisions: the steps from which on they held, and what they were.
        origins: how many of them came from where.
        report: what it said of its classifier at the end.
    """

    run: str
    decisions: tuple[tuple[int, str], ...]
    origins: Mapping[str, int]
    report: Mapping[str, float]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How what the service has stored compares with what the trainings had.

    Attributes:
        lost: decisions and reports of trainings that are not stored.
        changed: those that are stored otherwise.
        doubled: decisions that are stored more than once, or that no training took.
    """

    lost: int = 0
    changed: int = 0
    doubled: int = 0

    @property
    def whole(self) -> bool:
        """Whether all is there, once and unchanged."""
        return (self.lost, self.changed, self.doubled) == (0, 0, 0)


def train_digits(
    source: Any, instance: Instance, key: int, *, explore: bool = True, decided: Callable[[int], None] | None = None
) -> tuple[MixController, dict[str, float]]:
    """Train a classifier in an ordinary loop, and say how good it is.

    Args:
        source: who decides, as `MixController` takes it.
        instance: what is trained.
        key: of its weights, its batches, its mixing and its exploration, in [0, 2**63).
        explore: whether decisions are drawn.
        decided: told of each decision how many there are.

    Returns:
        The controller, still open, and what can be reported: accuracy and likelihood on all images of the data set's
        training part that are neither trained on nor looked at.
    """
    data = _loaded(instance.data)
    split = dynamics.split(instance, data)
    images, labels = data.images[split.train_rows], split.train_labels
    channels, height, width = images.shape[1:]
    model = build(instance.model, channels=channels, height=height, width=width, num_classes=data.num_classes)
    model.load_state_dict(dynamics.initial_weights(model, key))
    rates = dynamics.learning_rates(instance)
    optimizer = torch.optim.SGD(model.parameters(), lr=rates[0], momentum=instance.momentum)
    mixer = MixController(
        source, num_classes=data.num_classes, total_steps=instance.total_steps, seed=key, explore=explore,
        num_examples=instance.train_size, validation=(data.images[split.validation_rows], split.validation_labels),
    )  # fmt: skip
    for step, rows in enumerate(dynamics.batch_rows(instance, key)):
        mixed, targets = mixer(images[rows], labels[rows], model=model)
        if decided is not None and mixer.decisions[-1][0] == step:
            decided(len(mixer.decisions))
        loss = functional.cross_entropy(model(mixed), targets)
        optimizer.param_groups[0]["lr"] = rates[step]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        mixer.observe(loss=loss, lr=rates[step])
    unseen = torch.ones(len(data.images), dtype=torch.bool)
    unseen[torch.cat([split.train_rows, split.validation_rows])] = False
    with torch.no_grad():
        scores = measure(model(data.images[unseen]), data.labels[unseen])
    return mixer, {"val_accuracy": float(scores.accuracy), "val_tsnll": float(scores.ts_nll)}


@functools.cache
def _loaded(name: str) -> dynamics.Source:
    """Return a data set, which is read once for all trainings of a process."""
    return dynamics.load_source(name)


def service_demo(out: Path, *, seed: int, catalogue: str, quick: bool, as_json: bool, quiet: bool) -> None:
    """Show the whole way of a policy service once.

    Args:
        out: folder; where it holds something, the next free number beside it.
        seed: of policy and trainings.
        catalogue: what the policy chooses from.
        quick: shorter trainings, which may end before the service is back.
        as_json: print the result as JSON, and the rest on stderr.
        quiet: print the result alone, if that, and errors.

    Raises:
        MissingDependencyError: the extra `serve` is not installed.
        OutputError: the folder cannot be written.
        RlmixError: the service, a training or the learner ended with an error.
        typer.Exit: with `LOST` if something was lost, 130 after Ctrl-C.
    """
    from rich.console import Console

    try:
        from rlmix.service.server import serve  # noqa: F401  (what is missing is to be known before anything is begun)
    except ImportError as error:
        raise MissingDependencyError(
            f"the service needs `{error.name}`, which is not installed. Run: pip install 'rlmix[serve]'"
        ) from error
    console = Console(stderr=as_json, soft_wrap=True, quiet=quiet, highlight=False)
    entries = find_catalogue(catalogue)
    folder = writable_folder(_free(out))
    started = time.monotonic()
    console.print(
        f"[bold]rlmix demo --service[/]: {_TRAININGS} trainings ask one service which mix to use, the service is "
        f"killed on the way, and a policy learns from what came of it. Everything is in `{folder}`."
    )
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        save(folder / "policy", untrained(entries, horizon=_HORIZON, seed=seed))
        result = _shown(console, folder, _instance(seed, quick=quick), seed)
    except KeyboardInterrupt:
        console.print("Stopped. The service and the trainings have ended.")
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    result["seconds"] = round(time.monotonic() - started, 1)
    write_text(folder / RESULT, json.dumps(result, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(result))
    _print_next(console, folder, result["seconds"])
    if not Kept(**result["kept"]).whole:
        raise typer.Exit(LOST)


def _interrupted(*_: object) -> None:
    """End as after Ctrl-C, so that nothing is left running."""
    raise KeyboardInterrupt


def _free(out: Path) -> Path:
    """Return a folder that holds nothing yet: `out`, or the next free number beside it."""
    numbered = (out.with_name(f"{out.name}-{number}") for number in itertools.count(2))
    return next(
        folder for folder in itertools.chain([out], numbered) if not (folder.is_dir() and any(folder.iterdir()))
    )


def _instance(seed: int, *, quick: bool) -> Instance:
    """Return what is trained: few digits, a third of them with wrong labels."""
    return Instance(
        id="few-noisy", data="digits", seed=seed, train_size=300, noise=0.3, model="mlp", batch_size=32,
        total_steps=_QUICK_STEPS if quick else _STEPS, learning_rate=0.1,
    )  # fmt: skip


def _shown(console: Console, folder: Path, instance: Instance, seed: int) -> dict[str, Any]:
    """Serve, train, kill, go on, compare, learn; return what happened."""
    from rlmix.service.storage.opening import open_storage

    database = _database(folder)
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(_Service(folder))
        url = service.start("--policy", str(folder / "policy"))
        console.print(f"\nThe service answers at {url}. Its policy chooses each entry with the same probability.")
        trainings = stack.enter_context(_Trainings(url, folder, instance, seed))
        trainings.wait(lambda: min(trainings.decided.values()) >= _ANSWERS)
        service.kill()
        killed = time.monotonic()
        had = ", ".join(map(str, trainings.decided.values()))
        console.print(
            f"[bold]Killed[/] it (SIGKILL) when the trainings had {had} of {_HORIZON} decisions. They go on with their "
            "copies of its policy."
        )
        service.start()
        away = time.monotonic() - killed
        console.print(f"Started it again on the same database: it answers after {away:.1f} s.")
        trainings.wait(lambda: len(trainings.ended) == _TRAININGS)
        late = _delivered(url, folder)
        storage = stack.enter_context(contextlib.closing(open_storage(database, shared=True)))
        kept = compared(storage, trainings.ended)
        _print_trainings(console, trainings.ended, kept, late)
        for line in _learned(folder):
            console.print(f"rlmix learn: {line}", markup=False)
        led_to = storage.alias(_PROJECT, _POLICY, _ALIAS).version.number
        versions = [version.number for version in storage.versions(_PROJECT, _POLICY, 0, 100)]
        console.print(f"There are {len(versions)} versions of the policy now; the next training gets number {led_to}.")
    return {
        "schema": "rlmix.service-demo/1",
        "seed": seed,
        "steps": instance.total_steps,
        "trainings": [asdict(one) for one in trainings.ended],
        "kept": asdict(kept),
        "delivered late": late,
        "seconds away": round(away, 2),
        "versions": versions,
        _ALIAS: led_to,
    }


@final
class _Service:
    """`rlmix serve` as a process, which stays on the port that it had first; ended when the block is left.

    Args:
        folder: for the database, and for what it says.
    """

    def __init__(self, folder: Path) -> None:
        self._log, self._database, self._port = folder / _SERVICE_LOG, _database(folder), "0"
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def start(self, *arguments: str) -> str:
        """Start it, wait until it answers, and return its address.

        Raises:
            ServiceError: it does not start.
        """
        command = _rlmix("serve", "--db", self._database, "--port", self._port, *arguments)
        with self._log.open("a", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )
        said = self._process.stdout
        ready = said is not None and select.select([said], [], [], _LONGEST_SECONDS)[0]
        words = said.readline().split() if said is not None and ready else []
        if words[:2] != ["rlmix", "serves"]:
            raise ServiceError(f"the service did not start; `{self._log}` says why:\n{_end(self._log)}")
        self._port = words[2].rpartition(":")[2]
        return words[2]

    def kill(self) -> None:
        """End it as a crash does."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


@final
class _Trainings:
    """Trainings as processes, which begin together; ended when the block is left.

    Args:
        url: of the service.
        folder: for what they say, and for their copies.
        instance: what is trained.
        seed: of all of them.

    Attributes:
        decided: how many decisions each has taken so far.
        ended: what those that have ended came to, by name.
    """

    def __init__(self, url: str, folder: Path, instance: Instance, seed: int) -> None:
        spawn = multiprocessing.get_context("spawn")
        # Kept here: what nobody holds is gone before the processes that are to share it have begun.
        self._together = spawn.Barrier(_TRAININGS)
        names = [f"demo-{number + 1}" for number in range(_TRAININGS)]
        self.decided = dict.fromkeys(names, 0)
        self._ended: dict[str, Trained] = {}
        self._folder = folder
        self._messages: multiprocessing.Queue[Any] = spawn.Queue()
        self._processes = [
            spawn.Process(
                target=_trained, daemon=True,
                args=(self._messages, self._together, url, folder, name, instance, rng.derive(seed, number)),
            )
            for number, name in enumerate(names)
        ]  # fmt: skip

    @property
    def ended(self) -> list[Trained]:
        return [self._ended[name] for name in self.decided if name in self._ended]

    def __enter__(self) -> Self:
        for process in self._processes:
            process.start()
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._messages.close()

    def wait(self, enough: Callable[[], bool]) -> None:
        """Listen until it is enough.

        Raises:
            RlmixError: a training ended with an error, or is silent.
        """
        silent_since = time.monotonic()
        while not enough():
            try:
                name, told = self._messages.get(timeout=0.5)
            except queue.Empty:
                dead = any(process.exitcode for process in self._processes)
                if dead or time.monotonic() - silent_since > _LONGEST_SECONDS:
                    log = self._folder / _TRAININGS_LOG
                    raise ServiceError(f"a training ended without a result; `{log}` has:\n{_end(log)}") from None
                continue
            silent_since = time.monotonic()
            if isinstance(told, RlmixError):
                raise told
            if isinstance(told, Trained):
                self._ended[name] = told
            else:
                self.decided[name] = told


def _trained(
    messages: multiprocessing.Queue[Any], together: Any, url: str, folder: Path, name: str, instance: Instance, key: int
) -> None:
    """Train one classifier (in a process of its own)."""
    # Ctrl-C reaches all processes; the first one says so, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    logging.basicConfig(filename=folder / _TRAININGS_LOG, format=f"{name}: %(message)s", level=logging.WARNING)
    together.wait(_LONGEST_SECONDS)
    try:
        labels = {"data": instance.id, "model": instance.model}
        source = connect(url, run=name, labels=labels, cache=folder / _CACHE, setup_deadline=_SETUP_SECONDS)
        mixer, report = train_digits(source, instance, key, decided=lambda count: messages.put((name, count)))
        mixer.report(**report)
        origins = mixer.close().origins
    except RlmixError as error:
        messages.put((name, error))
        return
    decisions = tuple((step, decision.text) for step, decision in mixer.decisions)
    messages.put((name, Trained(run=name, decisions=decisions, origins=origins, report=report)))


def _delivered(url: str, folder: Path) -> int:
    """Tell the service what ended trainings could not tell it any more; return how many trainings left something.

    A training waits a few seconds at its end, and the service may have been away for longer: the next training on the
    machine then delivers it.
    """
    left = len(_letters(folder))
    for _ in range(_DELIVERIES):
        if not _letters(folder):
            break
        connect(url, cache=folder / _CACHE).close(finished=False)
    return left


def _letters(folder: Path) -> list[Path]:
    """Return the files with messages that wait for the service."""
    return [path for path in (folder / _CACHE).glob("*/letters/*.jsonl") if path.stat().st_size]


def compared(storage: AbstractStorage, trainings: Sequence[Trained]) -> Kept:
    """Return how what is stored compares with what trainings had.

    Args:
        storage: of the service.
        trainings: that have ended.
    """
    from rlmix.service.storage.abstract import PAGE

    lost = changed = doubled = 0
    for one in trainings:
        records = storage.decisions(_PROJECT, one.run, -1, PAGE)
        stored = {record.step: Decision.from_json(json.loads(record.decision)).text for record in records}
        lost += sum(step not in stored for step, _ in one.decisions)
        changed += sum(stored.get(step, text) != text for step, text in one.decisions)
        doubled += len(records) - len({step for step, _ in one.decisions} & stored.keys())
        reports = [dict(found.values) for found in storage.feedbacks(_PROJECT, one.run, -1, PAGE)]
        lost += (not reports) + (storage.run(_PROJECT, one.run).state != "finished")
        changed += any(found != dict(one.report) for found in reports)
    return Kept(lost=lost, changed=changed, doubled=doubled)


def _learned(folder: Path) -> list[str]:
    """Let `rlmix learn` make a version of the trainings; return what it says."""
    command = _rlmix(
        "learn", "--db", _database(folder), "--runs-per-update", str(_TRAININGS), "--out", str(folder / "learner")
    )
    ended = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False)
    if ended.returncode:
        raise ServiceError(f"`rlmix learn` ended with code {ended.returncode}:\n{ended.stderr.strip()}")
    return ended.stdout.splitlines()


def _print_trainings(console: Console, trainings: Sequence[Trained], kept: Kept, late: int) -> None:
    """Print who decided, and whether it is all there."""
    from rich.table import Table

    table = Table("training", "decisions", "by the service", "by the copy of its policy", "validation accuracy")
    for one in trainings:
        counts = (len(one.decisions), one.origins.get("server", 0), one.origins.get("snapshot", 0))
        table.add_row(one.run, *map(str, counts), f"{100 * one.report['val_accuracy']:.1f} %")
    console.print(table)
    decisions = sum(len(one.decisions) for one in trainings)
    told = "nothing was lost" if kept.whole else "[bold red]NOT all is as it was[/]"
    console.print(
        f"Compared with what the trainings had, {decisions} decisions, {len(trainings)} reports: [bold]{told}[/] "
        f"(lost {kept.lost}, changed {kept.changed}, doubled {kept.doubled})."
    )
    if late:
        console.print(
            f"{late} of them had ended before the service was back; what they had to tell was delivered later."
        )
    console.print()


def _print_next(console: Console, folder: Path, seconds: float) -> None:
    """Print what a user can do now that all processes have ended."""
    database = _database(folder)
    console.print(
        f"\nTook {seconds:.0f} s. The service has ended; what it knows is kept. Next:\n"
        f"see it       rlmix serve --db {database}, then open http://127.0.0.1:8490/\n"
        'train        rlmix.MixController("http://127.0.0.1:8490", explore=True, ...), at the end mixer.report(...)\n'
        f"learn        rlmix learn --follow --db {database}\n"
        f"look closer  rlmix db export --db {database} --project {_PROJECT} --to {folder / 'export'}\n"
        f"logs         {folder / _SERVICE_LOG}, {folder / _TRAININGS_LOG}",
        markup=False,
    )


def _database(folder: Path) -> str:
    return f"sqlite:///{folder / 'rlmix.db'}"


def _rlmix(*arguments: str) -> list[str]:
    """Return the command line of a command of this package, in this interpreter."""
    return [sys.executable, "-c", "from rlmix.cli.main import main; main()", *arguments]


def _end(log: Path) -> str:
    """Return the last lines of a file."""
    return "\n".join(log.read_text(encoding="utf-8").splitlines()[-5:]) if log.exists() else ""
