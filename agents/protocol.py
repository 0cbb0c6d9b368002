"""The evaluation protocol: policies of several seeds against every baseline, on several levels of novelty, resumably.

What is trained, for each level:

- every fixed entry of the catalogue on the validation instances, to choose the best fixed ones by;
- every agent on the held-out instances, under the condition "steps": equal numbers of steps; and "hold", which draws
  an entry at random for each interval;
- agents that observe, under "no-validation": they see no validation images;
- every agent under "time": a training whose mixing is slower gets as much fewer steps, so that all take equally long;
- two ablations of agents that observe: their choices replayed on another replicate, and drawn at random with the
  frequencies that they had.

Everything else (best fixed, best fixed per budget, the unbiased oracle) is made of these runs.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, final

import torch

from rlmix._files import write_text
from rlmix.agents.agent import AbstractAgent, LearnedAgent
from rlmix.agents.baselines.fixed import FixedAgent, uniform_entry
from rlmix.agents.comparison import (
    BEST_FIXED,
    BEST_PER_BUDGET,
    ORACLE,
    ORACLE_OF_ONE,
    with_best_fixed,
    with_oracle,
)
from rlmix.agents.jobs import Job, Progress, Split, blocks, episode_key
from rlmix.agents.ledger import Identity, Ledger, Record, digest_of, machine, problem_of, short
from rlmix.agents.replay import BLIND, TraceAgent, frequencies, static_trace
from rlmix.agents.report import Report, Run
from rlmix.agents.results import REPLAYED, STATIC, LevelResult, Team
from rlmix.agents.runner import Block, Runner, Venue
from rlmix.envs.instances import Instance, InstanceSet, instance_set, limited
from rlmix.envs.pool import Pool
from rlmix.errors import CheckpointError, ConfigError, InputError
from rlmix.ops import rng
from rlmix.policy.codec import AbstractCodec, Catalogue, codec_of
from rlmix.training.config import load_config

RUNS = "runs.csv"
COSTS = "costs.json"
CATALOGUE = "catalogue.json"
LEVELS = "levels.json"

# How the costs of the entries are measured: trainings side by side, steps to a decision, and how often each is timed.
_TIMED_SLOTS = 16
_TIMED_STEPS = 8
_TIMED_TURNS = 5
_COST_DIGITS = 4
HOLD = "hold"
_HOLD = rng.words("hold")
_STATIC = rng.words("static mixture")
_TIMING = rng.words("timing")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Instances to compare on, as far from the agent's training as the level says.

    Args:
        name: what the level is called.
        heldout: instances to compare on.
        validation: instances to choose the best fixed entries on.

    Raises:
        ConfigError: the two have different horizons.
    """

    name: str
    heldout: InstanceSet
    validation: InstanceSet

    def __post_init__(self) -> None:
        """Check the horizons."""
        if self.heldout.horizon != self.validation.horizon:
            raise ConfigError(
                f"level `{self.name}`: held-out and validation instances must have one horizon, got "
                f"{self.heldout.horizon} and {self.validation.horizon}."
            )

    def document(self) -> dict[str, Any]:
        """Return the level with all its instances, as JSON takes it; `read_levels` reads it."""
        parts = {
            name: {"name": part.name, "instances": [instance.document() for instance in part.instances]}
            for name, part in (("heldout", self.heldout), ("validation", self.validation))
        }
        return {"name": self.name, "horizon": self.heldout.horizon, **parts}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSource:
    """Where a level's instances come from.

    Attributes:
        name: what the level is called.
        instances: "digits", or the YAML file of a recipe, whose held-out part is compared on.
        validation: the same for the validation part that best fixed entries are chosen on; None takes `instances`.
        limit: use at most this many instances of each part; None uses all.
    """

    name: str
    instances: str
    validation: str | None = None
    limit: int | None = None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LevelFile:
    """What a file of levels holds."""

    levels: tuple[LevelSource, ...]


def read_levels(path: str | os.PathLike[str]) -> tuple[Level, ...]:
    """Return the levels that stand beside a file of runs.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return tuple(_level_from(document) for document in json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise CheckpointError(
            f"`{path}`, the instances of the study's levels, cannot be read ({error}). It is written by "
            "`rlmix agent evaluate ... --resume`, which trains nothing again."
        ) from error


def load_levels(path: str | os.PathLike[str]) -> tuple[Level, ...]:
    """Read levels from a YAML file; relative names of files in it start from its folder.

    Raises:
        ConfigError: the file is missing, has no level, a name twice, or an unknown key.
    """
    sources = load_config(path, LevelFile).levels
    names = [source.name for source in sources]
    if not sources or len(set(names)) < len(names):
        raise ConfigError(f"`{path}` must have one or more `levels` with different names, got {names}.")
    return tuple(level_of(source, Path(path).parent) for source in sources)


def level_of(source: LevelSource, folder: Path = Path()) -> Level:
    """Return the level that a source describes.

    Args:
        source: where the instances come from.
        folder: where relative names of files start.

    Raises:
        ConfigError: there is no such set or file.
    """
    chosen_on = source.instances if source.validation is None else source.validation

    def part(given: str, name: Literal["heldout", "validation"]) -> InstanceSet:
        found = instance_set(str(folder / given) if (folder / given).is_file() else given, name)
        return limited(found, source.limit)

    return Level(name=source.name, heldout=part(source.instances, "heldout"), validation=part(chosen_on, "validation"))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What is trained and compared.

    Args:
        catalogue: what all agents choose from; it must have a uniform mixture.
        replicates: trainings of each held-out instance by each agent; the oracle and the replay need two.
        seed: episode keys are derived from it; same seed, same runs.
        no_validation: compare also without a validation split.
        equal_time: compare also at equal wall-clock.
        ablations: replay choices on other replicates, and draw them from their frequencies.

    Raises:
        InputError: fewer than two replicates.
        EnvError: the catalogue has no mixture.
    """

    catalogue: Catalogue
    replicates: int = 10
    seed: int = 0
    no_validation: bool = True
    equal_time: bool = True
    ablations: bool = True

    def __post_init__(self) -> None:
        """Check that there is something to compare."""
        if self.replicates < 2:
            raise InputError(
                f"`replicates` must be at least 2, got {self.replicates}: the unbiased oracle chooses by one replicate "
                "and is judged by another."
            )
        uniform_entry(self.catalogue)


def evaluate_levels(
    agents: Mapping[str, Sequence[AbstractAgent]],
    levels: Sequence[Level],
    protocol: Protocol,
    *,
    out: str | os.PathLike[str],
    resume: bool = False,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    processes: int = 1,
    progress: Progress | None = None,
) -> tuple[LevelResult, ...]:
    """Train whatever the protocol asks for, and return the runs level by level, ready for comparison.

    Finished runs are kept in `runs.csv` in the folder `out`, block by block. With `resume`, those that are there are
    not trained again, so a study can be interrupted, or be given another agent, replicate or level later.

    Args:
        agents: by name, the agents that are one policy trained with several seeds (or just one agent). Each block of
            trainings starts with a copy of the agent as it is given here, and what an agent chooses for one training
            must not depend on those beside it. The catalogue's fixed agents are added to them. Learned policies may
            have actions of their own, without `ablations` and `equal_time`.
        levels: what to compare on.
        protocol: what to train.
        out: folder of the study.
        resume: go on with the runs in `out`.
        data_dir: folder of data sets that have to lie on disk.
        device: where the classifiers train.
        processes: how many the trainings are divided among.
        progress: called with the number of finished trainings and that of all.

    Raises:
        InputError: no level, a name without an agent, or an agent called as a baseline is.
        CheckpointError: `out` has runs and `resume` is False, or they are damaged or of another catalogue.
        DataError: images are missing.
        OutputError: `out` cannot be written.
    """
    teams = _teams(agents, protocol.catalogue)
    if not levels:
        raise InputError("there is no level. Give one or more instance sets to compare on.")
    ledger = Ledger(Path(out) / RUNS, resume=resume)
    _keep_catalogue(Path(out) / CATALOGUE, protocol.catalogue)
    write_text(Path(out) / LEVELS, json.dumps([level.document() for level in levels], indent=1) + "\n")
    with Runner(processes) as runner:
        study = _Study(teams, protocol, ledger, Path(out) / COSTS, data_dir, device, runner)
        study.count(levels, progress)
        return tuple(study.evaluate(level) for level in levels)


def recorded_levels(
    agents: Mapping[str, Sequence[AbstractAgent]],
    levels: Sequence[Level],
    protocol: Protocol,
    *,
    out: str | os.PathLike[str],
) -> tuple[LevelResult, ...]:
    """Return what `evaluate_levels` returned in the folder `out`; nothing is trained.

    Args:
        agents: as they were given to `evaluate_levels`, or some of them.
        levels: as they were given.
        protocol: as it was given.
        out: folder of the study.

    Raises:
        CheckpointError: a run is not recorded, or the files are damaged.
    """
    teams, ledger = _teams(agents, protocol.catalogue), Ledger(Path(out) / RUNS, resume=True)
    study = _Study(teams, protocol, ledger, Path(out) / COSTS, None, "cpu", None)
    return tuple(study.evaluate(level) for level in levels)


def digest_of_agent(agent: AbstractAgent) -> str:
    """Return a digest of what `agent` saves."""
    with tempfile.TemporaryDirectory() as folder:
        agent.save(Path(folder) / "agent")
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        named = ((str(path.relative_to(folder)).encode(), path.read_bytes()) for path in files)
        return digest_of([type(agent).__name__.encode(), *(part for pair in named for part in pair)])


def measure_costs(pool: Pool, instance: Instance) -> tuple[float, ...]:
    """Return the seconds that a step of one training takes with each entry of the pool's catalogue.

    Each entry trains 16 classifiers of the instance's kind side by side, in turn with the other entries. The shortest
    of a few measurements counts: whatever else the machine does can only lengthen one.

    Args:
        pool: where they train.
        instance: the kind of training; its own budget plays no part.
    """
    problem = replace(instance, total_steps=pool.horizon * _TIMED_STEPS)
    keys = [rng.derive(_TIMING, slot) for slot in range(_TIMED_SLOTS)]
    best = [math.inf] * len(pool.catalogue)
    pool.begin([problem] * _TIMED_SLOTS, keys)
    for turn in range(1 + _TIMED_TURNS):
        for entry in range(len(best)):
            if pool.decision == pool.horizon:
                pool.begin([problem] * _TIMED_SLOTS, keys)
            begun = time.perf_counter()
            # Reading the observations waits for the device.
            pool.step([entry] * _TIMED_SLOTS)[0].cpu()
            # The first turn pays for what is kept afterwards.
            best[entry] = min(best[entry], time.perf_counter() - begun if turn else math.inf)
    return tuple(float(f"{second / (_TIMED_STEPS * _TIMED_SLOTS):.{_COST_DIGITS}g}") for second in best)


def scaled_steps(total_steps: int, cost: float, horizon: int) -> int:
    """Return the steps that take as long as `total_steps` of the cheapest kind, a multiple of the horizon.

    Args:
        total_steps: the budget, a multiple of the horizon.
        cost: what a step takes in units of the cheapest, at least 1.
        horizon: decisions in a training; at least one step is left to each.
    """
    return max(1, int(total_steps / cost / horizon)) * horizon


@final
@dataclass(frozen=True, slots=True)
class _Column:
    """An agent as it is run: its name in reports, the digest that its runs are kept under, what its actions mean."""

    name: str
    agent: AbstractAgent
    digest: str
    codec: AbstractCodec


@final
@dataclass(slots=True)
class _Count:
    """How far a study is."""

    done: int = 0
    total: int = 0
    hook: Progress | None = None

    def add(self, runs: int) -> None:
        self.done += runs
        if self.hook is not None:
            self.hook(self.done, self.total)


@final
class _Study:
    """Trains what is not recorded yet."""

    def __init__(
        self,
        teams: tuple[Team, ...],
        protocol: Protocol,
        ledger: Ledger,
        costs_path: Path,
        data_dir: str | os.PathLike[str] | None,
        device: str | torch.device,
        runner: Runner | None,
    ) -> None:
        self.teams, self.protocol, self.ledger, self.costs_path = teams, protocol, ledger, costs_path
        self.data_dir, self.device, self._runner = data_dir, device, runner
        self.progress = _Count()
        self.codec = codec_of(protocol.catalogue)
        self.costs = _read_costs(costs_path)
        fixed = {name: FixedAgent(name, protocol.catalogue) for name in protocol.catalogue.names}
        members = {name: agent for team in teams for name, agent in team.members.items()}
        self.columns = {
            name: _Column(name, agent, digest_of_agent(agent), _codec(agent, protocol.catalogue))
            for name, agent in {**fixed, **members}.items()
        }
        others = [name for name, column in self.columns.items() if column.codec.digest != protocol.catalogue.digest]
        if others and (protocol.ablations or protocol.equal_time):
            raise InputError(
                f"`{others[0]}` chooses from other actions than the protocol's catalogue, so what it does can neither "
                "be replayed nor priced. Give ablations=False and equal_time=False (--no-ablations --equal-steps)."
            )

    @property
    def runner(self) -> Runner:
        """Who trains what is not recorded.

        Raises:
            CheckpointError: nobody does.
        """
        if self._runner is None:
            raise CheckpointError(
                f"`{self.ledger.path.parent}` does not have all runs of its levels: the evaluation has not ended. "
                "Finish it with `rlmix agent evaluate ... --resume`."
            )
        return self._runner

    @property
    def observers(self) -> list[_Column]:
        """The agents whose choices may depend on what they see."""
        return [self.columns[name] for team in self.teams if team.observes for name in team.members]

    def count(self, levels: Sequence[Level], hook: Progress | None) -> None:
        """Count the trainings, those that will turn out to be recorded included."""
        fixed, every, own = len(self.protocol.catalogue), len(self.columns), len(self.observers)
        per_run = every + self.protocol.equal_time * every + self.protocol.no_validation * own
        per_run += 2 * self.protocol.ablations * own + 1
        conditions = 1 + self.protocol.equal_time
        self.progress.hook = hook
        for level in levels:
            self.progress.total += per_run * len(level.heldout) * self.protocol.replicates
            self.progress.total += conditions * fixed * len(level.validation)

    def evaluate(self, level: Level) -> LevelResult:
        """Train everything on one level."""
        fixed = [self.columns[name] for name in self.protocol.catalogue.names]
        chosen_on = self._runs(fixed, level.validation, 1, split="reward")
        selection = self._plain(level.validation, chosen_on, "reward")
        equal = self._runs(list(self.columns.values()), level.heldout, self.protocol.replicates)
        held = self._held(level.heldout)
        reports = {"steps": self._report(level, [*equal, *held], selection)}
        if self.protocol.no_validation:
            blind = self._runs(self.observers, level.heldout, self.protocol.replicates, condition=BLIND)
            looking = {column.name for column in self.observers}
            # Who never looks does the same, so its runs are not trained again.
            kept = [run for run in (*equal, *held) if run.agent not in looking]
            reports[BLIND] = self._report(level, [*kept, *blind], selection, with_validation=False)
        if self.protocol.equal_time:
            timed = self._timed(level.heldout, equal, "test")
            timed_selection = self._plain(
                level.validation, self._timed(level.validation, chosen_on, "reward"), "reward"
            )
            reports["time"] = self._report(level, timed, timed_selection)
        if self.protocol.ablations:
            ablated = [run for own in self.observers for run in self._ablated(level.heldout, equal, own)]
            reports["steps"] = replace(reports["steps"], runs=(*reports["steps"].runs, *ablated))
        return LevelResult(
            name=level.name,
            instances=level.heldout.instances,
            catalogue=self.protocol.catalogue,
            teams=self.teams,
            reports=reports,
        )

    def _report(self, level: Level, runs: Iterable[Run], selection: Report, *, with_validation: bool = True) -> Report:
        """Return a report with the best fixed ones and the oracles."""
        entries = self.protocol.catalogue.names
        report = replace(self._plain(level.heldout, runs, "test"), with_validation=with_validation)
        return with_oracle(with_best_fixed(report, selection, entries), entries)

    def _plain(self, instances: InstanceSet, runs: Iterable[Run], split: Split) -> Report:
        return Report(
            instances=instances.name,
            digest=instances.digest,
            seed=self.protocol.seed,
            split=split,
            with_validation=True,
            runs=tuple(runs),
        )

    def _runs(
        self,
        columns: Sequence[_Column],
        instances: InstanceSet,
        replicates: int,
        *,
        condition: str = "steps",
        split: Split = "test",
    ) -> list[Run]:
        jobs = [
            Job(instance, replicate, column.name, episode_key(self.protocol.seed, instance, replicate))
            for instance in instances.instances
            for replicate in range(replicates)
            for column in columns
        ]
        agents = {column.name: column for column in columns}
        return self._train(jobs, agents, instances.horizon, condition, split)

    def _timed(self, instances: InstanceSet, equal: Sequence[Run], split: Split) -> list[Run]:
        """Train each of the runs again, with as many steps as take equally long.

        What the result calls the budget stays that of the cheapest entry: agents are compared for one of these.
        """
        jobs = []
        for run in equal:
            instance = instances.find(run.instance)
            costs = self._costs(instance, instances.horizon)
            cost = sum(costs[self.protocol.catalogue.index(entry)] for entry in run.actions) / len(run.actions)
            shorter = replace(
                instance, total_steps=scaled_steps(instance.total_steps, cost / min(costs), instances.horizon)
            )
            jobs.append(
                Job(shorter, run.replicate, run.agent, episode_key(self.protocol.seed, instance, run.replicate))
            )
        # Under its own budget a training is the one that was run before.
        runs = self._train(jobs, self.columns, instances.horizon, "steps", split)
        return [
            replace(run, total_steps=before.total_steps, epochs=before.epochs)
            for run, before in zip(runs, equal, strict=True)
        ]

    def _held(self, instances: InstanceSet) -> list[Run]:
        """Return the runs of the baseline that draws an entry at random for each interval."""
        entries = self.protocol.catalogue.names
        even = {entry: 1.0 / len(entries) for entry in entries}
        traces = {
            (instance, replicate): static_trace(even, instances.horizon, rng.derive(key, _HOLD))
            for instance, replicate, key in self._episodes(instances)
        }
        return self._traced(instances, HOLD, "steps", traces, "")

    def _ablated(self, instances: InstanceSet, equal: Sequence[Run], own: _Column) -> list[Run]:
        """Return the runs of an agent's two ablations."""
        count = self.protocol.replicates
        chosen = {(run.instance, run.replicate): run.actions for run in equal if run.agent == own.name}
        replayed, static = {}, {}
        for instance, replicate, key in self._episodes(instances):
            every = [chosen[instance.id, other] for other in range(count)]
            replayed[instance, replicate] = every[(replicate + 1) % count]
            shares = frequencies(every)
            static[instance, replicate] = static_trace(shares, instances.horizon, rng.derive(key, _STATIC))
        return [
            *self._traced(instances, f"{own.name}{REPLAYED}", "replay", replayed, own.digest),
            *self._traced(instances, f"{own.name}{STATIC}", "static", static, own.digest),
        ]

    def _episodes(self, instances: InstanceSet) -> Iterator[tuple[Instance, int, int]]:
        """Yield instance, replicate and episode key."""
        for instance in instances.instances:
            for replicate in range(self.protocol.replicates):
                yield instance, replicate, episode_key(self.protocol.seed, instance, replicate)

    def _traced(
        self,
        instances: InstanceSet,
        name: str,
        variant: str,
        traces: Mapping[tuple[Instance, int], Sequence[str]],
        owner: str,
    ) -> list[Run]:
        """Return runs under choices that are known beforehand."""
        jobs, columns = [], {}
        for instance, replicate, key in self._episodes(instances):
            trace = traces[instance, replicate]
            label = f"{instance.id} {replicate}"
            # Other replicates may give other traces, and these are other runs.
            digest = digest_of([owner.encode(), " ".join(trace).encode()])
            agent = TraceAgent([self.protocol.catalogue.index(entry) for entry in trace])
            columns[label] = _Column(name, agent, digest, self.codec)
            jobs.append(Job(instance, replicate, label, key))
        return self._train(jobs, columns, instances.horizon, variant, "test")

    def _train(
        self,
        jobs: Sequence[Job],
        columns: Mapping[str, _Column],
        horizon: int,
        variant: str,
        split: Split,
    ) -> list[Run]:
        """Return a run for each job, trained now if it is not recorded."""
        identities = {job: self._identity(job, columns[job.agent].digest, variant, split) for job in jobs}
        missing: dict[str, list[Job]] = {}
        for job in jobs:
            if self.ledger.get(identities[job]) is None:
                missing.setdefault(columns[job.agent].codec.digest, []).append(job)
        self.progress.add(len(jobs) - sum(map(len, missing.values())))
        together = list(itertools.chain.from_iterable(map(blocks, missing.values())))
        given = (self._block(block, columns, horizon, variant, split) for block in together)
        for block, runs in zip(together, self.runner.run(given) if together else (), strict=True):
            codec = columns[block[0].agent].codec
            self.ledger.append(
                [
                    Record(
                        block=0,
                        variant=variant,
                        digest=identities[job].digest,
                        key=job.key,
                        split=split,
                        catalogue=short(codec.digest),
                        machine=machine(self.device),
                        problem=identities[job].problem,
                        run=replace(run, agent=columns[job.agent].name),
                    )
                    for job, run in zip(block, runs, strict=True)
                ]
            )
            self.progress.add(len(block))
        return [self._recorded(job, identities[job], columns[job.agent].name) for job in jobs]

    def _recorded(self, job: Job, identity: Identity, name: str) -> Run:
        record = self.ledger.get(identity)
        if record is None:
            raise CheckpointError(f"the run of `{name}` on `{job.instance.id}` is not in `{self.ledger.path}`.")
        # The same agent may have had another name in an earlier evaluation.
        return replace(record.run, agent=name, replicate=job.replicate)

    def _identity(self, job: Job, digest: str, variant: str, split: Split) -> Identity:
        return Identity(problem=problem_of(job.instance), digest=digest, key=job.key, variant=variant, split=split)

    def _block(
        self, jobs: Sequence[Job], columns: Mapping[str, _Column], horizon: int, variant: str, split: Split
    ) -> Block:
        """Return jobs with what they need; agents that learn while they act begin with a copy as they were given."""
        agents = {job.agent: copy.deepcopy(columns[job.agent].agent) for job in jobs}
        venue = self._venue(horizon, columns[jobs[0].agent].codec, with_validation=variant != BLIND)
        return Block(venue=venue, agents=agents, jobs=jobs, split=split)

    def _venue(self, horizon: int, codec: AbstractCodec, *, with_validation: bool) -> Venue:
        return Venue(
            horizon=horizon,
            codec=codec,
            with_validation=with_validation,
            data_dir=None if self.data_dir is None else os.fspath(self.data_dir),
            device=str(self.device),
        )

    def _costs(self, instance: Instance, horizon: int) -> tuple[float, ...]:
        """Return what a step takes with each entry, measured once in a study: a resumed one uses the same numbers."""
        kind = " ".join(map(str, (*instance.pictures, instance.classes, instance.model, instance.batch_size)))
        if kind not in self.costs:
            pool = self.runner.kept.pool(self._venue(horizon, self.codec, with_validation=True), instance)
            self.costs[kind] = list(measure_costs(pool, instance))
            write_text(self.costs_path, json.dumps(self.costs, indent=1) + "\n")
        return tuple(self.costs[kind])


def _level_from(document: Mapping[str, Any]) -> Level:
    """Invert `Level.document`."""
    parts: tuple[Literal["heldout", "validation"], ...] = ("heldout", "validation")
    sets = {
        part: InstanceSet(
            document[part]["name"],
            tuple(Instance(**fields) for fields in document[part]["instances"]),
            document["horizon"],
            part,
        )
        for part in parts
    }
    return Level(name=document["name"], **sets)


def _codec(agent: AbstractAgent, catalogue: Catalogue) -> AbstractCodec:
    """Return what the agent's actions mean."""
    return agent.policy.actions if isinstance(agent, LearnedAgent) else codec_of(catalogue)


def _teams(agents: Mapping[str, Sequence[AbstractAgent]], catalogue: Catalogue) -> tuple[Team, ...]:
    """Name the members of each team; the numbers of a team's members are those of its seeds."""
    found = []
    taken = {*catalogue.names, BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE, HOLD}
    for name, members in agents.items():
        if not members or name in taken or any(mark in name for mark in ("/", REPLAYED, STATIC)):
            raise InputError(
                f"agent `{name}` must have one or more members, and a name that no baseline has and without `/`, "
                f"`{REPLAYED}` and `{STATIC}`. Taken: {', '.join(sorted(taken))}."
            )
        labels = [name] if len(members) == 1 else [f"{name}/{number}" for number in range(len(members))]
        observes = not all(isinstance(member, FixedAgent) for member in members)
        found.append(Team(name=name, members=dict(zip(labels, members, strict=True)), observes=observes))
    if not found:
        raise InputError("there is no agent to evaluate. Give one or more, besides the fixed ones.")
    return tuple(found)


def _keep_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Write what the actions in the file of runs mean, or check that it is the same as before."""
    if path.exists() and read_catalogue(path) != catalogue:
        raise CheckpointError(f"`{path}` holds another catalogue: the runs beside it are of other agents.")
    write_text(path, json.dumps(catalogue.to_json(), indent=1) + "\n")


def read_catalogue(path: str | os.PathLike[str]) -> Catalogue:
    """Return the catalogue that stands beside a file of runs.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        return Catalogue.from_json(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValueError, LookupError) as error:
        raise CheckpointError(f"`{path}` cannot be read as a catalogue ({error}).") from error


def _read_costs(path: Path) -> dict[str, list[float]]:
    if not path.exists():
        return {}
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        return {str(kind): [float(second) for second in seconds] for kind, seconds in document.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"`{path}` is damaged ({error}). Delete it; costs are then measured anew.") from error
