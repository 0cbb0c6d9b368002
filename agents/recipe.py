"""Whole, ordinary trainings with a policy and with fixed methods, as `rlmix train` runs them, and what they say.

Nothing here is simulated: every training goes through `rlmix.training.loop` and its `MixController`, as a user's would.
The trainings of one seed and one share of wrong labels begin with the same weights and see the same batches, so that
accuracies are compared seed by paired seed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from rich.console import Console
from rich.table import Table

from rlmix._files import sha256_of, writable_folder, write_text
from rlmix._workers import Workers
from rlmix.agents.comparison import LEARNED
from rlmix.agents.jobs import Progress
from rlmix.agents.ledger import machine, short
from rlmix.agents.statistics import Floats, Interval, t_interval
from rlmix.errors import CheckpointError, ConfigError
from rlmix.policy.artifact import load as load_policy
from rlmix.policy.codec import catalogue
from rlmix.training.config import TrainConfig
from rlmix.training.loop import CHECKPOINT, choose_device, finite, identity, train

CONFIG = "config.yaml"
RUNS = "runs.csv"
REPORT = "report.json"
TEXT = "report.txt"
TRAININGS = "trainings"

# What a study varies, and so what its base configuration must leave alone.
_VARIED = ("method", "params", "policy", "noise", "seed")
_NAME_DIGITS = 8


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeStudy:
    """Which trainings are compared: every policy and method under every share of wrong labels with every seed.

    Attributes:
        training: what they have in common; `method`, `params`, `policy`, `noise` and `seed` stay out of it.
        methods: entries of the catalogue `v0`.
        policies: folders of learned policies, or "default"; several are usually one policy of several seeds.
        reference: the method that everything is compared with, one of `methods`.
        noises: shares of wrong labels, each in [0, 1).
        seeds: of the trainings.

    Raises:
        ConfigError: a name or number twice or out of range, or `training` has what the study varies.
        UnknownNameError: no such entry of the catalogue.
    """

    training: TrainConfig
    methods: tuple[str, ...] = ("none", "mixup-1", "cutmix-1", "uniform-cheap")
    policies: tuple[str, ...] = ()
    reference: str = "uniform-cheap"
    noises: tuple[float, ...] = (0.0, 0.2, 0.4)
    seeds: tuple[int, ...] = (0, 1, 2)

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name in ("methods", "noises", "seeds"):
            given = getattr(self, name)
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"`{name}` must be one or more different values, got {list(given)}.")
        known = catalogue("v0")
        for method in self.methods:
            known.index(method)
        if self.reference not in self.methods:
            raise ConfigError(f"`reference` must be one of `methods` {list(self.methods)}, got {self.reference!r}.")
        plain = TrainConfig()
        for name in _VARIED:
            if getattr(self.training, name) != getattr(plain, name):
                raise ConfigError(
                    f"`training.{name}` is {getattr(self.training, name)!r}, but it is varied by the study. Leave it "
                    "out, and set `methods`, `policies`, `noises` and `seeds`."
                )
        for noise, seed in itertools.product(self.noises, self.seeds):
            replace(self.training, noise=noise, seed=seed)

    @property
    def arms(self) -> dict[str, dict[str, Any]]:
        """What mixes, by name, as entries of a `TrainConfig`; policies first."""
        single = len(self.policies) == 1
        learned: dict[str, dict[str, Any]] = {
            LEARNED if single else f"{LEARNED}/{number}": {"policy": policy}
            for number, policy in enumerate(self.policies)
        }
        known = catalogue("v0")
        decisions = {name: known.decisions[known.index(name)].to_json() for name in self.methods}
        fixed = {name: {"method": one["method"], "params": one["params"]} for name, one in decisions.items()}
        return {**learned, **fixed}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeRun:
    """One finished training.

    Attributes:
        arm: the policy or method.
        noise: share of wrong labels.
        seed: of the training.
        digest: of everything that decides its course; equal digests are the same training.
        accuracy: on the test images after the last epoch, in [0, 1].
        nll: mean negative log-likelihood there.
        validation_accuracy: on the held-out images, whose labels are as noisy as the others; None without them.
        steps: of the training.
        seconds: that it took.
        machine: what was computed on, as `rlmix.agents.ledger.machine` says.
        decisions: what was mixed with, each as `step:decision`.
    """

    arm: str
    noise: float
    seed: int
    digest: str
    accuracy: float
    nll: float
    validation_accuracy: float | None
    steps: int
    seconds: float
    machine: str
    decisions: tuple[str, ...]


COLUMNS = tuple(field.name for field in fields(RecipeRun))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How one policy or method does under one share of wrong labels, over the seeds.

    Attributes:
        noise: share of wrong labels.
        arm: the policy or method.
        accuracy: mean test accuracy, in [0, 1].
        to_reference: mean difference to the reference, seed by paired seed.
        to_best: the same to the best fixed method.
        to_oracle: the same to the unbiased oracle; None with one seed.
        best: the best fixed method: that of the highest mean test accuracy in these very trainings. Nobody knows it
            beforehand, so it is harder to beat than any choice that could be made.
    """

    noise: float
    arm: str
    accuracy: float
    to_reference: Interval
    to_best: Interval
    to_oracle: Interval | None
    best: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeResult:
    """All trainings of a study.

    Attributes:
        study: what was trained.
        runs: one for each policy or method, share of wrong labels and seed.
    """

    study: RecipeStudy
    runs: tuple[RecipeRun, ...]

    @property
    def standings(self) -> tuple[Standing, ...]:
        """How every arm does, for each share of wrong labels; intervals are Student's, of 95 %, over the seeds."""
        return tuple(standing for noise in self.study.noises for standing in self._standings(noise))

    def _standings(self, noise: float) -> list[Standing]:
        found = {(run.arm, run.seed): run.accuracy for run in self.runs if run.noise == noise}
        rows = {arm: np.array([found[arm, seed] for seed in self.study.seeds]) for arm in self.study.arms}
        fixed = {method: rows[method] for method in self.study.methods}
        best = max(fixed, key=lambda method: float(fixed[method].mean()))
        oracle = _oracle(list(fixed.values())) if len(self.study.seeds) > 1 else None
        return [
            Standing(
                noise=noise,
                arm=arm,
                accuracy=float(row.mean()),
                to_reference=t_interval(row - fixed[self.study.reference]),
                to_best=t_interval(row - fixed[best]),
                to_oracle=None if oracle is None else t_interval(row - oracle),
                best=best,
            )
            for arm, row in rows.items()
        ]

    def table(self) -> Table:
        """Return a table for printing: accuracy and paired differences, in points of a hundred."""
        table = Table(
            title="Test accuracy and paired differences, in points [95 % t interval over seeds]",
            caption=f"{len(self.study.seeds)} seeds. * best fixed method of these very trainings, in hindsight. "
            "The oracle takes for each seed the method that is best with the other seeds.",
        )
        table.add_column("wrong labels", justify="right")
        table.add_column("mixed by", no_wrap=True)
        for heading in ("accuracy", f"to {self.study.reference}", "to best fixed", "to oracle"):
            table.add_column(heading, justify="right", no_wrap=True)
        for noise in self.study.noises:
            table.add_section()
            for row in self._standings(noise):
                own = {"reference": row.arm == self.study.reference, "best": row.arm == row.best}
                table.add_row(
                    f"{noise:.0%}",
                    f"{row.arm} *" if own["best"] else row.arm,
                    f"{100 * row.accuracy:.2f}",
                    "" if own["reference"] else _points(row.to_reference),
                    "" if own["best"] else _points(row.to_best),
                    "" if row.to_oracle is None else _points(row.to_oracle),
                )
        return table

    def text(self, *, width: int = 150) -> str:
        """Return the table as plain text."""
        console = Console(width=width, file=io.StringIO(), record=True, soft_wrap=False)
        console.print(self.table())
        return console.export_text()

    def to_json(self) -> dict[str, Any]:
        """Return everything but the runs, which `runs.csv` holds, as a JSON document."""
        found: dict[str, Any] = finite(
            {
                "schema": "rlmix.recipe/1",
                "study": _document(self.study),
                "runs": len(self.runs),
                "interval": "Student's t over seeds, 95 %",
                "standings": [dataclasses.asdict(standing) for standing in self.standings],
            }
        )
        return found


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Planned:
    """One training to be run."""

    arm: str
    config: TrainConfig
    digest: str
    folder: str


def run_study(
    study: RecipeStudy,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    processes: int = 1,
    progress: Progress | None = None,
) -> RecipeResult:
    """Train whatever the study asks for, and write its table.

    The folder `out` gets `runs.csv` with one line for each finished training, `report.json`, `report.txt`, and beneath
    `trainings` a folder for each, as `rlmix train` makes them; its checkpoint is removed when the line is written.
    With `resume`, trainings that have a line are not run again, and those that were interrupted go on from their
    checkpoints. So a study can be given more seeds, methods, policies or shares of wrong labels later: what decides a
    training's course is kept beside its result, and only trainings of equal course are taken for the same.

    Args:
        study: what to train.
        out: folder of the study.
        resume: go on with what is in `out`.
        processes: trainings at a time; more than one have one thread of torch each.
        progress: called with the number of finished trainings and that of all.

    Raises:
        CheckpointError: `out` holds a study and `resume` is False, or its `runs.csv` is damaged.
        OutputError: `out` cannot be written.
        PolicyError: a policy cannot be used.
        DataError: images are missing.
        UnknownNameError: no such data set or model.
        ConfigError: the configuration cannot be trained with.
    """
    folder = writable_folder(out)
    if not resume and (folder / CONFIG).exists():
        raise CheckpointError(f"`{folder}` already holds a study. Go on with --resume, or give another folder.")
    for policy in study.policies:
        load_policy(policy)
    planned = _planned(study, folder)
    known = {run.digest: run for run in read_runs(folder / RUNS)} if (folder / RUNS).exists() else {}
    write_text(folder / CONFIG, study_text(study))
    missing = [one for one in planned if one.digest not in known]
    tell = progress or _silent
    tell(len(planned) - len(missing), len(planned))
    with Workers(processes) as workers:
        for done, run in enumerate(workers.map(missing, here=_trained, there=_trained), start=1):
            known[run.digest] = run
            write_text(folder / RUNS, _csv(known.values()))
            (Path(missing[done - 1].folder) / CHECKPOINT).unlink(missing_ok=True)
            tell(len(planned) - len(missing) + done, len(planned))
    # The same training may have had another name in an earlier study.
    result = RecipeResult(study=study, runs=tuple(replace(known[one.digest], arm=one.arm) for one in planned))
    write_text(folder / REPORT, json.dumps(result.to_json(), indent=2) + "\n")
    write_text(folder / TEXT, result.text())
    return result


def study_text(study: RecipeStudy) -> str:
    """Return a study as YAML that `load_config` reads."""
    import yaml

    return str(yaml.safe_dump(_document(study), sort_keys=False))


def read_runs(path: str | os.PathLike[str]) -> list[RecipeRun]:
    """Return the trainings in a `runs.csv`.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind; the message says where.
    """
    source = Path(path)
    try:
        text = source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"`{source}` cannot be read ({error}). Give the folder of a study.") from error
    header, *rows = list(csv.reader(io.StringIO(text))) or [[]]
    if tuple(header) != COLUMNS:
        raise CheckpointError(
            f"`{source}` must begin with the columns {','.join(COLUMNS)}, got {','.join(header)!r}. Give another "
            "folder, or remove the file: trainings without a line are run again."
        )
    if not text.endswith("\n"):
        raise CheckpointError(
            f"`{source}` is damaged: its last line has no end. Remove that line; it is trained again."
        )
    found = []
    for number, row in enumerate(rows, start=2):
        try:
            found.append(_parsed(dict(zip(COLUMNS, row, strict=True))))
        except ValueError as error:
            raise CheckpointError(
                f"`{source}`, line {number}, is damaged ({error}). Remove that line; it is trained again."
            ) from error
    return found


def _planned(study: RecipeStudy, folder: Path) -> list[_Planned]:
    """Return all trainings, seed by seed, so that what a stopped study leaves can be compared."""
    found = []
    for seed, noise, (arm, mixing) in itertools.product(study.seeds, study.noises, study.arms.items()):
        config = replace(study.training, **mixing, noise=noise, seed=seed)
        digest = short(sha256_of(json.dumps(identity(config), sort_keys=True).encode("utf-8")))
        name = f"{arm.replace('/', '-')}-noise{noise:g}-seed{seed}-{digest[:_NAME_DIGITS]}"
        found.append(_Planned(arm=arm, config=config, digest=digest, folder=str(folder / TRAININGS / name)))
    return found


def _trained(planned: _Planned) -> RecipeRun:
    """Run a training, or what is left of it."""
    config = planned.config
    result = train(config, planned.folder, resume=(Path(planned.folder) / CHECKPOINT).exists())
    metrics = result["metrics"]
    return RecipeRun(
        arm=planned.arm,
        noise=config.noise,
        seed=config.seed,
        digest=planned.digest,
        accuracy=metrics["test_accuracy"],
        nll=metrics["test_nll"],
        validation_accuracy=metrics.get("validation_accuracy"),
        steps=result["steps"],
        seconds=result["seconds"],
        machine=machine(choose_device(config.device)),
        # Without spaces, which stand between decisions in a file of runs.
        decisions=tuple(f"{taken['step']}:{taken['text'].replace(' ', '')}" for taken in result["decisions"]),
    )


def _oracle(fixed: Sequence[Floats]) -> Floats:
    """Return, for each seed, the accuracy of the method that is best on average over the other seeds, float64 [n]."""
    rows = np.stack(fixed)
    others = rows.sum(axis=1, keepdims=True) - rows
    chosen: Floats = rows[others.argmax(axis=0), np.arange(rows.shape[1])]
    return chosen


def _csv(runs: Iterable[RecipeRun]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for run in runs:
        row = {**dataclasses.asdict(run), "decisions": " ".join(run.decisions)}
        writer.writerow([row[name] for name in COLUMNS])
    return text.getvalue()


def _parsed(row: Mapping[str, str]) -> RecipeRun:
    run = RecipeRun(
        arm=row["arm"],
        noise=float(row["noise"]),
        seed=int(row["seed"]),
        digest=row["digest"],
        accuracy=float(row["accuracy"]),
        nll=float(row["nll"]),
        validation_accuracy=float(row["validation_accuracy"]) if row["validation_accuracy"] else None,
        steps=int(row["steps"]),
        seconds=float(row["seconds"]),
        machine=row["machine"],
        decisions=tuple(row["decisions"].split()),
    )
    if not 0.0 <= run.accuracy <= 1.0:
        raise ValueError(f"`accuracy` {run.accuracy} is out of [0, 1]")
    return run


def _document(study: RecipeStudy) -> dict[str, Any]:
    """Return a study in the form that YAML and JSON hold; what it varies is left out of its base."""
    training = {name: value for name, value in dataclasses.asdict(study.training).items() if name not in _VARIED}
    lists = {name: list(getattr(study, name)) for name in ("methods", "policies", "noises", "seeds")}
    return {"training": training, **lists, "reference": study.reference}


def _points(interval: Interval) -> str:
    estimate = f"{100 * interval.estimate:+.2f}"
    if math.isinf(interval.low):
        return estimate
    return f"{estimate} [{100 * interval.low:+.2f}, {100 * interval.high:+.2f}]"


def _silent(done: int, total: int) -> None:
    """Look away."""
