"""A policy service learns from real trainings: how many it takes until those that ask it come out better.

Usage: python -m benchmarks.service_learns [--out FOLDER] [--least N] [--most N] [--seed N]

Eight processes train small classifiers of digits, one after the other without end, of two kinds of which another way of
mixing is the best. They ask `rlmix serve`, whose policy knows nothing at first, and `rlmix learn --follow` works beside
it. Every hundred trainings a line is printed; it ends when the last two hundred are better than the first two hundred,
with their 95 % intervals apart, or at --most. The same command goes on with what the folder holds.

Before, each fixed way of mixing and the untrained policy are measured alike, without a service: what could be gained.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, final

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report import ROOT, environment, file_name
from rlmix._files import write_bytes, write_text
from rlmix.cli.service_demo import train_digits
from rlmix.envs.instances import Instance
from rlmix.monitor.figures import GRID, INK, PALETTE, UNMIXED, colours, png, tidy
from rlmix.ops import rng
from rlmix.policy.artifact import load, save
from rlmix.policy.codec import catalogue
from rlmix.policy.remote import connect
from rlmix.policy.untrained import untrained
from rlmix.service.experience import ACCURACY, CALIBRATION, TS_NLL, score_of
from rlmix.service.records import Ended
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import open_storage

RESULTS = Path(__file__).parent / "results"
CLIENTS, HUNDRED, WINDOW = 8, 100, 200
RUNS_PER_UPDATE, LEARNING_RATE = 16, 1e-3
ENTRIES = catalogue("cheap")
UNTRAINED = "untrained policy"
REFERENCES = 40
SPECS = (
    # A low learning rate: 56 steps are hardly enough as it is, and each mix costs some of them.
    Instance(
        id="short", data="digits", seed=1, train_size=300, noise=0.0, model="mlp", batch_size=32, total_steps=56,
        learning_rate=0.02,
    ),
    # A high one, few images and wrong labels among them: without mixing they are learned by heart.
    Instance(
        id="noisy", data="digits", seed=2, train_size=100, noise=0.3, model="mlp", batch_size=32, total_steps=56,
        learning_rate=0.4,
    ),
)  # fmt: skip
_PROJECT = _POLICY = "default"
_POLL_SECONDS, _SETUP_SECONDS = 1.0, 60.0
# Under the seed: what keys of trainings are derived from.
_CLIENT, _REFERENCE = 1, 2


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A training that ended: what is written of it. `number` counts from 1 in the order in which they ended."""

    number: int
    run: str
    spec: str
    version: int
    score: float
    accuracy: float
    ts_nll: float
    server: int
    snapshot: int
    chosen: str


@final
@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its 95 % interval."""

    value: float
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean:
        spread = statistics.stdev(values) if len(values) > 1 else math.inf
        return cls(statistics.fmean(values), 1.96 * spread / math.sqrt(len(values)))

    @property
    def low(self) -> float:
        return self.value - self.half

    @property
    def high(self) -> float:
        return self.value + self.half

    @property
    def text(self) -> str:
        return f"{100 * self.value:+.2f} [{100 * self.low:+.2f}, {100 * self.high:+.2f}]"


def score(report: dict[str, float], classes: int = 10) -> float:
    """Return S of what a training reports."""
    return report[ACCURACY] + CALIBRATION * (1 - report[TS_NLL] / math.log(classes))


# What runs in the clients.


def client(number: int, first: int, url: str, folder: Path, seed: int) -> None:
    """Train without end."""
    torch.set_num_threads(1)
    for training in itertools.count(first):
        instance = SPECS[(number + training) % len(SPECS)]
        key = rng.derive(seed, _CLIENT, number, training)
        run = f"client-{number}-{training:05d}"
        labels = {"data": instance.id, "model": instance.model}
        # A training that does not reach the service at its beginning cannot be learned from.
        source = connect(url, run=run, labels=labels, cache=folder / "cache", setup_deadline=_SETUP_SECONDS)
        mixer, report = train_digits(source, instance, key)
        mixer.report(**report)
        mixer.close()


# What is known without a service.


def references(folder: Path, seed: int) -> dict[str, dict[str, list[float]]]:
    """Return scores by spec and by what mixes, in trainings of their own; measured once for a folder."""
    path = folder / "references.json"
    if path.exists():
        return dict(json.loads(path.read_text(encoding="utf-8")))
    torch.set_num_threads(1)
    sources: dict[str, Any] = dict(zip(ENTRIES.names, ENTRIES.decisions, strict=True))
    sources[UNTRAINED] = load(folder / "policy")
    found: dict[str, dict[str, list[float]]] = {}
    for place, instance in enumerate(SPECS):
        keys = [rng.derive(seed, _REFERENCE, place, number) for number in range(REFERENCES)]
        found[instance.id] = {
            name: [_referenced(folder, name, source, instance, key) for key in keys] for name, source in sources.items()
        }
        for name, scores in found[instance.id].items():
            print(f"{instance.id:6} {name:16} S {100 * statistics.fmean(scores):6.2f}, "
                  f"deviation {100 * statistics.stdev(scores):.2f}", flush=True)  # fmt: skip
    write_text(path, json.dumps(found))
    return found


def _referenced(folder: Path, name: str, source: Any, instance: Instance, key: int) -> float:
    given = folder / "policy" if name == UNTRAINED else source
    mixer, report = train_digits(given, instance, key, explore=name == UNTRAINED)
    mixer.close()
    return score(report)


# What watches.


def rows_of(storage: AbstractStorage, known: list[Row], cursor: int) -> int:
    """Add the trainings that have ended since; return where the next time begins."""
    while page := storage.ended(_PROJECT, _POLICY, cursor, 50):
        for ended in page:
            cursor = ended.cursor
            found = score_of(ended)
            if found is not None:
                known.append(_row(ended, len(known) + 1, found))
    return cursor


def _silent(storage: AbstractStorage) -> int:
    """Return how many trainings ended without that the service knows what came of them."""
    cursor, count = 0, 0
    while page := storage.ended(_PROJECT, _POLICY, cursor, 50):
        cursor, count = page[-1].cursor, count + sum(score_of(ended) is None for ended in page)
    return count


def _row(ended: Ended, number: int, found: float) -> Row:
    values = ended.feedback[-1].values
    origins = Counter(one.origin for one in ended.decisions)
    return Row(
        number=number,
        run=ended.run.name,
        spec=str(ended.run.spec["label/data"]),
        version=ended.run.version.number,
        score=found,
        accuracy=values[ACCURACY],
        ts_nll=values[TS_NLL],
        server=origins["server"],
        snapshot=origins["snapshot"],
        chosen=" ".join(ENTRIES.names[one.entry] for one in ended.decisions),
    )


def gains(rows: Sequence[Row], levels: dict[str, float]) -> list[float]:
    """Return how far each training is above the mean of the untrained policy on data of its kind."""
    return [row.score - levels[row.spec] for row in rows]


def apart(rows: Sequence[Row], levels: dict[str, float]) -> bool:
    """Say whether the last trainings are better than the first."""
    if len(rows) < 2 * WINDOW:
        return False
    found = gains(rows, levels)
    return Mean.of(found[-WINDOW:]).low > Mean.of(found[:WINDOW]).high


def line(rows: Sequence[Row], levels: dict[str, float]) -> str:
    """Return what the last hundred came to."""
    last = rows[-HUNDRED:]
    parts = [f"{len(rows):5} trainings: {Mean.of(gains(last, levels)).text} points above the untrained policy"]
    for spec in levels:
        of = [row for row in last if row.spec == spec]
        names = Counter(name for row in of for name in row.chosen.split())
        name, count = names.most_common(1)[0]
        parts.append(f"{spec} {100 * statistics.fmean(gains(of, levels)):+.1f}, {name} {count / names.total():.0%}")
    asked = sum(row.server for row in last) / sum(row.server + row.snapshot for row in last)
    return "; ".join((*parts, f"versions to {last[-1].version}, {asked:.0%} of the decisions by the service"))


# Processes.


def _rlmix(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from rlmix.cli.main import main; main()", *arguments]


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a command while the block lasts."""
    with log.open("a", encoding="utf-8") as said:
        process = subprocess.Popen(command, cwd=ROOT, stderr=said, text=True, **({"stdout": said} | options))
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _firsts(storage: AbstractStorage) -> list[int]:
    """Return the number of the next training of each client."""
    firsts, after = [0] * CLIENTS, ""
    while page := storage.runs(_PROJECT, after, 500):
        after = page[-1].name
        for run in page:
            _, number, training = run.name.split("-")
            firsts[int(number)] = max(firsts[int(number)], int(training) + 1)
    return firsts


def _look(url: str, last: Row) -> dict[str, bool]:
    """Return which of the service's pages show the last training and its version."""
    run, version = f"runs/{last.run}", f"policies/{_POLICY}/versions/{last.version}"
    wanted = {"/": _PROJECT, "": run, f"/{run}": last.run, f"/policies/{_POLICY}": version, f"/{version}": "PPO"}
    found = {}
    for path, text in wanted.items():
        place = path if path == "/" else f"/projects/{_PROJECT}{path}"
        with urllib.request.urlopen(url + place, timeout=30) as reply:
            found[place] = text in reply.read().decode()
    return found


def run(folder: Path, least: int, most: int, seed: int) -> None:
    """Serve, train and learn until it is known whether it learns; write what came of it."""
    where = environment(["python", *sys.orig_argv[1:]])
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "policy").exists():
        save(folder / "policy", untrained(ENTRIES))
    known = references(folder, seed)
    levels = {spec: statistics.fmean(scores[UNTRAINED]) for spec, scores in known.items()}
    database = f"sqlite:///{folder.resolve() / 'rlmix.db'}"
    fresh = not (folder / "rlmix.db").exists()
    begun, rows = time.monotonic(), list[Row]()
    with contextlib.ExitStack() as stack:
        publish = ["--policy", str(folder.resolve() / "policy")] if fresh else []
        served = stack.enter_context(
            _process(_rlmix("serve", "--db", database, "--port", "0", *publish), folder / "service.log",
                     stdout=subprocess.PIPE)
        )  # fmt: skip
        assert served.stdout is not None
        url = served.stdout.readline().split()[2]
        print(f"serves {url}", flush=True)
        storage = stack.enter_context(contextlib.closing(open_storage(database, shared=True)))
        cursor = rows_of(storage, rows, 0)
        told, reached, before = 0, None, len(rows)
        stack.enter_context(
            _process(_rlmix("learn", "--db", database, "--follow", "--runs-per-update", str(RUNS_PER_UPDATE),
                            "--learning-rate", str(LEARNING_RATE), "--seed", str(seed),
                            "--out", str(folder.resolve() / "learner")), folder / "learner.log")
        )  # fmt: skip
        own = [sys.executable, "-m", "benchmarks.service_learns", "--out", str(folder.resolve()), "--seed", str(seed)]
        for number, first in enumerate(_firsts(storage)):
            arguments = ["--client", str(number), "--first", str(first), "--url", url]
            stack.enter_context(_process([*own, *arguments], folder / "clients.log"))
        while True:
            time.sleep(_POLL_SECONDS)
            if served.poll() is not None:
                raise SystemExit(f"the service has ended; see {folder / 'service.log'}")
            cursor = rows_of(storage, rows, cursor)
            while told + HUNDRED <= len(rows):
                told += HUNDRED
                print(line(rows[:told], levels), flush=True)
                if reached is None and apart(rows[:told], levels):
                    reached = told
                write_text(folder / "trainings.csv", _csv(rows))
            if (reached is not None and told >= least) or told >= most:
                break
        seconds = time.monotonic() - begun
        shown = _look(url, rows[-1])
        silent = _silent(storage)
    rows = rows[:told]
    if before:
        where["resumed_after"] = before
    where["trainings_without_a_score"] = silent
    _write(where, rows, known, levels, reached, seconds, shown, seed)


# What is written.


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    table.writeheader()
    table.writerows(asdict(row) for row in rows)
    return text.getvalue()


def curves(rows: Sequence[Row], known: dict[str, dict[str, list[float]]], levels: dict[str, float]) -> Figure:
    """Return a figure: for each kind of data, what was gained and what was chosen, by the number of trainings."""
    figure = Figure(figsize=(10.5, 6.2), layout="constrained")
    axes = figure.subplots(2, len(levels), sharex=True, height_ratios=(3, 2))
    for column, (spec, level) in enumerate(levels.items()):
        of = [row for row in rows if row.spec == spec]
        # As many trainings of the kind as a hundred of all have.
        step = HUNDRED // len(levels)
        blocks = [of[start : start + step] for start in range(0, len(of) - step // 2, step)]
        _draw_gain(axes[0][column], spec, blocks, known[spec], level)
        _draw_share(axes[1][column], blocks)
        changes = [two.number for one, two in itertools.pairwise(rows) if two.version > one.version]
        axes[0][column].plot(changes, [0.0] * len(changes), "|", color=INK, markersize=7,
                             transform=axes[0][column].get_xaxis_transform(), clip_on=False)  # fmt: skip
    axes[0][0].set_ylabel("points of S above the untrained policy")
    axes[1][0].set_ylabel("share of the decisions")
    handles, labels = axes[1][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center")
    return figure


def _draw_gain(
    axes: Axes, spec: str, blocks: Sequence[Sequence[Row]], known: dict[str, list[float]], level: float
) -> None:
    places = [statistics.fmean(row.number for row in block) for block in blocks]
    means = [Mean.of([100 * (row.score - level) for row in block]) for block in blocks]
    axes.fill_between(
        places, [one.low for one in means], [one.high for one in means], color=PALETTE[0], alpha=0.2, lw=0
    )
    axes.plot(places, [one.value for one in means], color=PALETTE[0], marker="o", markersize=4)
    best = max(ENTRIES.names, key=lambda name: statistics.fmean(known[name]))
    gain = 100 * (statistics.fmean(known[best]) - level)
    axes.axhline(gain, color=PALETTE[2], linestyle=(0, (5, 3)), linewidth=1.3)
    axes.axhline(0.0, color=UNMIXED, linestyle=(0, (5, 3)), linewidth=1.3)
    axes.annotate(f"{best} throughout", (1, gain), (-4, 4), xycoords=("axes fraction", "data"),
                  textcoords="offset points", ha="right", color=PALETTE[2], fontsize=9)  # fmt: skip
    axes.set_title(spec, color=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    tidy(axes)


def _draw_share(axes: Axes, blocks: Sequence[Sequence[Row]]) -> None:
    places = [statistics.fmean(row.number for row in block) for block in blocks]
    counts = [Counter(name for row in block for name in row.chosen.split()) for block in blocks]
    shares = [[one[name] / one.total() for one in counts] for name in ENTRIES.names]
    axes.stackplot(
        places, shares, labels=ENTRIES.names, colors=colours(ENTRIES.names), edgecolor="white", linewidth=0.6
    )
    axes.set(xlabel="trainings of both kinds that have ended", ylim=(0, 1))
    tidy(axes)


def _write(
    where: dict[str, Any], rows: Sequence[Row], known: dict[str, dict[str, list[float]]], levels: dict[str, float],
    reached: int | None, seconds: float, shown: dict[str, bool], seed: int,
) -> None:  # fmt: skip
    name = f"{file_name(where)}-service-learns"
    write_bytes(RESULTS / f"{name}.png", png(curves(rows, known, levels)))
    write_text(RESULTS / f"{name}.csv", _csv(rows))
    found = gains(rows, levels)
    first, last = rows[:WINDOW], rows[-WINDOW:]
    text = [
        f"# A policy service learns from real trainings, {where['date'][:10]}",
        "",
        *(f"- {key}: {value}" for key, value in where.items()),
        f"- seed: {seed}",
        f"- clients: {CLIENTS}",
        f"- learner: {RUNS_PER_UPDATE} trainings for an update, learning rate {LEARNING_RATE}",
        f"- wall time: {seconds:.0f} s for {len(rows)} trainings and {rows[-1].version} versions",
        f"- decisions by the service: {sum(row.server for row in rows)}, by a client's copy of its policy: "
        f"{sum(row.snapshot for row in rows)}",
        f"- pages that show the last training: {', '.join(key for key, value in shown.items() if value) or 'none'}",
        "",
        f"The last {WINDOW} trainings were above the first {WINDOW} with their 95 % intervals apart "
        + (f"after **{reached} trainings** (looked at every {HUNDRED})." if reached else "**never**.")
        + " In points of S = accuracy + 0.25 (1 - TS-NLL / log 10) above the untrained policy on the same data:",
        "",
        f"| trainings | first {WINDOW} | last {WINDOW} | all |",
        "|---|---:|---:|---:|",
        f"| both kinds | {Mean.of(found[:WINDOW]).text} | {Mean.of(found[-WINDOW:]).text} | {Mean.of(found).text} |",
    ]
    for spec in levels:
        cells = [Mean.of(gains([row for row in part if row.spec == spec], levels)).text for part in (first, last, rows)]
        text.append(f"| `{spec}` | {' | '.join(cells)} |")
    text += [
        "",
        f"![Learning curves]({name}.png)",
        "",
        f"Means of {HUNDRED // len(levels)} trainings with their 95 % intervals. Dashed: the untrained policy, and the",
        "best entry throughout. Each tick is the first training of a version.",
        "",
        f"What could be gained: each entry alone, {REFERENCES} trainings each without a service, on the same seeds;",
        "the untrained policy draws one of them at each of its eight decisions.",
        "",
        f"| | {' | '.join(f'`{spec}`' for spec in levels)} |",
        f"|---|{'---:|' * len(levels)}",
    ]
    for entry in (*ENTRIES.names, UNTRAINED):
        cells = [Mean.of([one - levels[spec] for one in known[spec][entry]]).text for spec in levels]
        text.append(f"| {entry} | {' | '.join(cells)} |")
    text += ["", "The two kinds of data:", ""]
    for instance in SPECS:
        text.append(
            f"- `{instance.id}`: {instance.train_size} digits, {instance.noise:.0%} of the labels wrong, "
            f"{instance.total_steps} steps of {instance.batch_size}, learning rate {instance.learning_rate}"
        )
    write_text(RESULTS / f"{name}.md", "\n".join(text) + "\n")
    print(f"first {WINDOW}: {Mean.of(found[:WINDOW]).text}; last {WINDOW}: {Mean.of(found[-WINDOW:]).text}; "
          f"apart after {reached}; {seconds:.0f} s; {RESULTS / name}.md", flush=True)  # fmt: skip


def main() -> None:
    """Run the benchmark, or one of its clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/service-learns"), help="folder for database and logs")
    parser.add_argument("--least", type=int, default=1000, help="trainings to go on to, to see where it comes to")
    parser.add_argument("--most", type=int, default=3000, help="trainings to stop at")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client is not None:
        client(given.client, given.first, given.url, given.out, given.seed)
    else:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        # However it ends, what it has started ends with it.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        run(given.out, given.least, given.most, given.seed)


if __name__ == "__main__":
    main()
