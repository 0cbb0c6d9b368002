"""A finished study as a page: figures, tables in Markdown, and what is needed to repeat it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from rlmix._files import writable_folder, write_text
from rlmix.agents.agent import LearnedAgent
from rlmix.agents.comparison import LEARNED
from rlmix.agents.figures import (
    WORDS,
    baselines,
    compared,
    learning_figure,
    study_figures,
    write_figures,
)
from rlmix.agents.history import Training, names_of, read_training
from rlmix.agents.ledger import Record, read
from rlmix.agents.protocol import (
    CATALOGUE,
    LEVELS,
    RUNS,
    Protocol,
    digest_of_agent,
    read_catalogue,
    read_levels,
    recorded_levels,
)
from rlmix.agents.replay import BLIND
from rlmix.agents.results import FEW, REPLAYED, STATIC, Comparison, LevelResult
from rlmix.agents.statistics import Interval
from rlmix.errors import CheckpointError, InputError
from rlmix.policy.signals import names

PAGE = "figures.md"
_REPORT = "report.json"
_POINTS = 100.0
_CONDITIONS = {"steps": "equal steps", BLIND: "no validation images", "time": "equal time"}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A finished study, as its folder tells it.

    Attributes:
        trainings: of the policies that are reported on.
        results: level by level.
        report: what `rlmix agent evaluate` wrote.
        machines: runs of the study by what they were computed on.
        policies: how many learned policies the study has runs of.
    """

    trainings: tuple[Training, ...]
    results: tuple[LevelResult, ...]
    report: Mapping[str, Any]
    machines: Mapping[str, int]
    policies: int


def read_study(folder: str | os.PathLike[str], trainings: Sequence[str | os.PathLike[str]]) -> Study:
    """Read a study that has ended; nothing is trained.

    Args:
        folder: what `rlmix agent evaluate --levels FILE --out` wrote.
        trainings: folders of the trainings whose policies were evaluated, or of some of them.

    Raises:
        CheckpointError: a file is missing or damaged, a run is not there, or a policy was not evaluated.
        InputError: no training, or one twice.
        PolicyError: a training has no policy, or a damaged one.
    """
    source = Path(folder)
    report, levels = _report(source / _REPORT), read_levels(source / LEVELS)
    if [level["digest"] for level in report["levels"]] != [level.heldout.digest for level in levels]:
        raise CheckpointError(
            f"`{source / _REPORT}` is of other levels than `{source / LEVELS}`: the last evaluation has not ended. "
            "Finish it with `rlmix agent evaluate ... --resume`."
        )
    done = [read_training(training) for training in trainings]
    if not done:
        raise InputError("there is no training. Give the folder of one or more with --training.")
    records = read(source / RUNS)
    agents = [LearnedAgent(training.policy, names(training.policy.catalogue)) for training in done]
    _check_policies(done, [digest_of_agent(agent) for agent in agents], records)
    rows = [row for level in report["levels"] for found in level["conditions"].values() for row in found]
    conditions = {row["condition"] for row in rows}
    protocol = Protocol(
        catalogue=read_catalogue(source / CATALOGUE),
        replicates=report["replicates"],
        seed=report["seed"],
        no_validation=BLIND in conditions,
        equal_time="time" in conditions,
        ablations=any(row["to"].endswith(STATIC) for row in rows),
    )
    learned = {record.digest for record in records if _is_learned(record)}
    return Study(
        trainings=tuple(done),
        results=recorded_levels({LEARNED: agents}, levels, protocol, out=source),
        report=report,
        machines=Counter(record.machine for record in records),
        policies=len(learned),
    )


def write_page(study: Study, folder: str | os.PathLike[str]) -> Path:
    """Write the figures, and the page that shows them; return the page's path.

    Args:
        study: what is reported on.
        folder: created if need be.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = writable_folder(folder)
    curves = dict(zip(names_of(study.trainings), (training.curve for training in study.trainings), strict=True))
    write_figures(target, {"learning-curves": learning_figure(curves), **study_figures(study.results, LEARNED)})
    for name, settings in _settings(study.trainings).items():
        write_text(target / name, yaml.safe_dump(dict(settings), sort_keys=False))
    write_text(target / PAGE, "\n".join(_page(study)) + "\n")
    return target / PAGE


def level_tables(result: LevelResult) -> str:
    """Return the comparisons of one level as two Markdown tables: accuracy, and calibration."""
    rows = list(_rows(result))
    accuracy = [
        (
            condition, name, f"{_POINTS * row.accuracy:.2f} / {_POINTS * row.to_accuracy:.2f}",
            _points(row.mean), _points(row.iqm), _p_value(row.p_holm), _plain(row.improvement, 2),
            f"{_POINTS * row.worst.estimate:+.2f}",
        )
        for condition, name, row in rows
    ]  # fmt: skip
    calibration = [
        (condition, name, _plain(row.z_mean, 3, "+"), _plain(row.ts_nll, 4, "+"), _plain(row.ece, 4, "+"))
        for condition, name, row in rows
    ]
    headings = ("condition", "compared with")
    return "\n\n".join(
        (
            _table(
                (*headings, "accuracy, %", "mean difference", "IQM difference", "p (Holm)", "P(better)", "worst tenth"),
                accuracy,
            ),
            _table((*headings, "score", "NLL", "ECE"), calibration),
        )
    )


def _report(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read ({error}); an evaluation writes it at its end. Finish it with "
            "`rlmix agent evaluate ... --resume`."
        ) from error
    if not isinstance(found, dict) or found.get("schema") != "rlmix.study/1":
        raise CheckpointError(f"`{path}` is no report of a study. Give the folder of `rlmix agent evaluate --levels`.")
    return found


def _is_learned(record: Record) -> bool:
    name = record.run.agent
    return name.partition("/")[0] == LEARNED and record.variant == "steps" and not name.endswith((REPLAYED, STATIC))


def _check_policies(trainings: Sequence[Training], digests: Sequence[str], records: Iterable[Record]) -> None:
    known = {record.digest for record in records}
    for training, digest in zip(trainings, digests, strict=True):
        if digest not in known:
            raise CheckpointError(
                f"the policy in `{training.folder}` was not evaluated in this study. Give the trainings whose policies "
                "were, or evaluate it too, with `rlmix agent evaluate ... --resume`."
            )
    if len(set(digests)) < len(digests):
        raise InputError("a training was given twice: it would count as two seeds.")


def _settings(trainings: Sequence[Training]) -> dict[str, Mapping[str, Any]]:
    """Return the different configurations of trainings, by the names of their files."""
    found: list[Mapping[str, Any]] = []
    for training in trainings:
        if training.settings not in found:
            found.append(training.settings)
    return {f"training{'' if len(found) == 1 else f'-{place}'}.yaml": one for place, one in enumerate(found)}


def _rows(result: LevelResult) -> Iterator[tuple[str, str, Comparison]]:
    """Yield condition, baseline in words, and how the policy compares: the main baselines, and the two ablations."""
    for condition in result.reports:
        for name, row in compared(result, LEARNED, condition).items():
            yield _CONDITIONS[condition], baselines(result)[name], row
    for row in result.comparisons():
        if row.agent == LEARNED and row.to.endswith((REPLAYED, STATIC)):
            yield (
                _CONDITIONS["steps"],
                "its choices replayed" if row.to.endswith(REPLAYED) else "its static mixture",
                row,
            )


def _page(study: Study) -> Iterator[str]:
    """Yield the lines of the page."""
    results, count = study.results, len(study.trainings)
    entries = ", ".join(f"`{name}`" for name in results[0].catalogue.names)
    part = "" if count == study.policies else f" (of {study.policies} that the study evaluated)"
    yield f"# Learned policy, {_counted(count, 'agent seed')}\n"
    yield (
        f"{_counted(count, 'agent seed')}{part} on {_counted(len(results), 'level')}, {study.report['replicates']} "
        "trainings of each instance by each agent. "
        f"The policy chooses {study.trainings[0].policy.horizon} times in a training among {entries}. "
        "All differences are of paired runs on test images: same initial weights, same batches, same random numbers.\n"
    )
    yield "## How it learned\n"
    yield "![Learning curves](learning-curves.png)\n"
    yield (
        "Accuracy of the policy minus accuracy of uniform random mixing on validation instances, in points. Thin: each "
        f"agent seed ({', '.join(names_of(study.trainings))}). Thick: their mean.\n"
    )
    yield "## How far it is ahead\n"
    yield "![Paired differences](differences.png)\n"
    yield (
        "Mean paired difference in accuracy on equal steps, with its 95 % bootstrap interval (instances within strata, "
        "replicates, and agent seeds are resampled); triangles are the agent seeds. Green: above 0. Orange: below.\n"
    )
    yield "![Performance profiles](profiles.png)\n"
    yield (
        "Share of instances on which an agent gains more than so many points over uniform random mixing; an instance "
        "counts with its mean over the replicates, and once for each agent seed.\n"
    )
    for place, result in enumerate(results):
        yield f"## {result.name}\n"
        few = " Too few to trust intervals and p." if len(result.instances) < FEW else ""
        yield f"{_counted(len(result.instances), 'instance')} (`{result.reports['steps'].instances}`).{few}\n"
        yield f"![Choices on {result.name}](choices-{place}.png)\n"
        yield (
            "Which entry the policy chose: by decision, by thirds of the trainings' epochs, and by label noise; n is a "
            "number of trainings.\n"
        )
        yield f"{level_tables(result)}\n"
    yield (
        "Differences are policy minus baseline, with 95 % intervals; accuracy in points. IQM: interquartile mean over "
        "instances. p: two-sided, of an IQM of 0, by Holm over all baselines of the condition, each entry of the "
        "catalogue included (the two ablations are adjusted for each other). P(better): share of paired runs that the "
        "policy wins, ties counted half. Worst tenth: mean over the instances with the lowest differences. Score: the "
        "environment's reward. NLL: negative log-likelihood at the best temperature, below 0 is better. ECE: expected "
        f"calibration error, below 0 is better. {WORDS['oracle'].capitalize()}: for each instance the entry that was "
        f"best in all other trainings of it; {WORDS['oracle-of-one']}: in one other training.\n"
    )
    yield from _provenance(study)


def _provenance(study: Study) -> Iterator[str]:
    """Yield what is needed to repeat the study."""
    recorded = study.report.get("provenance", {})
    plain = {name: value for name, value in recorded.items() if name != "versions"}
    versions = ", ".join(f"{name} {version}" for name, version in recorded.get("versions", {}).items())
    runs = ", ".join(f"{count:,} on {machine}" for machine, count in study.machines.items())
    yield "## How to repeat it\n"
    yield _table(
        ("evaluation", ""),
        [
            *((name, f"`{value}`" if name == "command" else str(value)) for name, value in plain.items()),
            ("versions", versions),
            ("seed", str(study.report["seed"])),
            ("recorded runs", runs),
        ],
    )
    yield ""
    files = {json.dumps(dict(one), sort_keys=True): name for name, one in _settings(study.trainings).items()}
    rows = []
    for name, training in zip(names_of(study.trainings), study.trainings, strict=True):
        card = training.policy.card
        file = files[json.dumps(dict(training.settings), sort_keys=True)]
        again = f"`rlmix agent train --config {file} --seed {training.seed} --out {training.folder.name}`"
        packages = f"rlmix {card['versions'].get('rlmix')}, torch {card['versions'].get('torch')}"
        rows.append((name, card["algorithm"], f"{card['timesteps']:,}", f"{training.hours:.2f}", packages, again))
    yield _table(("training", "algorithm", "decisions", "hours", "versions", "command"), rows)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _points(interval: Interval) -> str:
    scaled = (_POINTS * value for value in (interval.estimate, interval.low, interval.high))
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*scaled)


def _plain(interval: Interval, digits: int, sign: str = "") -> str:
    values = (interval.estimate, interval.low, interval.high)
    first, low, high = (f"{value:{sign}.{digits}f}" for value in values)
    return f"{first} [{low}, {high}]"


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
