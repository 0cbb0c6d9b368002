"""How long a decision of the service takes: `python -m benchmarks.service`. Writes JSON and Markdown into `results`.

`rlmix serve` runs as a process of its own on a database file, clients keep their connections, and every decision is
stored before it is answered. Optuna's `ask` on SQLite is measured in the same rounds (`pip install rlmix[bench]`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import nn

import rlmix
from benchmarks import report
from benchmarks.decision import policy
from benchmarks.storm import PROJECT, RUN, Service, question_for
from rlmix.policy.artifact import save

ONE, MANY, THROUGHPUT = 300, 32, 8
# Decisions and asks of Optuna come in turns, so that both see the machine alike, each of so many that what the other
# has left in the processor's caches does not count.
TURN, ASKS = 50, 10
STORED, RUNS = 100_000, 10
STEPS, HORIZON, AHEAD = 600, 15, 15
# What a training does between two calls, so that an answer has as long as it has there: 15 steps are 0.3 s.
STEP_SECONDS = 0.02

# Name of a goal, of the figure that it is about, the limit, whether that is the least or the most, the unit.
GOALS = (
    ("one client, half of the decisions", "one client p50", 2.0, "at most", "ms"),
    ("one client, 99 of 100", "one client p99", 15.0, "at most", "ms"),
    (f"{MANY} clients, 99 of 100", f"{MANY} clients p99", 150.0, "at most", "ms"),
    ("times faster than Optuna's ask", "Optuna ask / decision, default sampler", 20.0, "at least", ""),
    (f"throughput with {STORED} stored decisions", "throughput full / empty", 0.9, "at least", ""),
    ("added to a step, prefetched", "added to a step", 0.1, "at most", "ms"),
)


class Client:
    """Asks in one run, one decision after the other.

    Args:
        service: which runs.
        run: its name.
        question: what to ask.
        first: number of the first decision.
    """

    def __init__(self, service: Service, run: str, question: dict[str, Any], first: int = 0) -> None:
        self._connection = service.connection()
        self._base, self._question, self._seq = f"{PROJECT}/runs/{run}", question, first
        self._call("PUT", self._base, RUN)

    def decide(self) -> None:
        body = {**self._question, "step": self._seq, "explore": hex(self._seq + 1)}
        self._call("PUT", f"{self._base}/decisions/{self._seq}", body)
        self._seq += 1

    def alive(self) -> None:
        self._call("GET", "/healthz")

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> None:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, path, content, {} if body is None else {"Content-Type": "application/json"})
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status in (200, 201), data

    def close(self) -> None:
        self._connection.close()


def timed(call: Callable[[], object], count: int) -> list[float]:
    """Return the milliseconds that each of `count` calls took."""
    taken = []
    for _ in range(count):
        begun = time.perf_counter()
        call()
        taken.append(1e3 * (time.perf_counter() - begun))
    return taken


def together(clients: Sequence[Client], count: int) -> tuple[list[float], float]:
    """Return the milliseconds of all decisions that clients take at the same time, and how many a second."""
    taken: list[list[float]] = [[] for _ in clients]
    start = threading.Barrier(len(clients) + 1)

    def work(number: int) -> None:
        start.wait()
        taken[number] = timed(clients[number].decide, count)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(clients))]
    for thread in threads:
        thread.start()
    start.wait()
    begun = time.perf_counter()
    for thread in threads:
        thread.join()
    return [one for each in taken for one in each], len(clients) * count / (time.perf_counter() - begun)


def optuna_asks(folder: Path) -> dict[str, Callable[[], float]]:
    """Return what asks Optuna on a file of SQLite and returns the milliseconds, by sampler; nothing if it is missing.

    The trial is told its value afterwards, outside the time, so that the sampler has something to learn from.
    """
    try:
        import optuna
    except ImportError:
        return {}
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = {"entry": optuna.distributions.CategoricalDistribution(list(range(17)))}
    samplers = {"default": optuna.samplers.TPESampler(seed=0), "random": optuna.samplers.RandomSampler(seed=0)}
    found = {}
    for name, sampler in samplers.items():
        study = optuna.create_study(storage=f"sqlite:///{folder}/{name}.db", sampler=sampler)

        def ask(study: Any = study) -> float:
            begun = time.perf_counter()
            trial = study.ask(space)
            taken = 1e3 * (time.perf_counter() - begun)
            study.tell(trial, float(trial.params["entry"] % 5))
            return taken

        found[name] = ask
    return found


def fill(path: Path) -> None:
    """Multiply the one decision in each of the first runs until there are STORED."""
    with contextlib.closing(sqlite3.connect(path, timeout=60)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(decisions)")]
        taken = ", ".join("n.i" if name == "seq" else f"d.{name}" for name in columns)
        connection.execute(
            f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {STORED // RUNS - 1}) "
            f"INSERT INTO decisions ({', '.join(columns)}) SELECT {taken} FROM decisions d, n WHERE d.seq = 0"
        )
        connection.commit()
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (STORED,)


def steps(url: str, folder: Path) -> dict[str, list[float]]:
    """Return the milliseconds of each step with a policy in process, and with the service, asked ahead."""
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(64) % 10
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))

    def controller(source: Any) -> rlmix.MixController:
        shape = {"num_classes": 10, "total_steps": STEPS, "num_examples": 50_000}
        return rlmix.MixController(source, **shape, seed=3, allow=["cutmix-1"])

    remote = rlmix.connect(url, prefetch=AHEAD, cache=folder / "cache")
    made = {"in process": controller(policy(HORIZON)), "service": controller(remote)}
    taken: dict[str, list[float]] = {name: [] for name in made}
    for step in range(STEPS):
        # In turns, so that neither always comes after the other.
        for name in sorted(made, reverse=bool(step % 2)):
            begun = time.perf_counter()
            made[name](images, labels, model=model)
            taken[name].append(1e3 * (time.perf_counter() - begun))
        time.sleep(STEP_SECONDS)
    reports = {name: one.close() for name, one in made.items()}
    print(f"rlmix: decisions of the steps that were timed: {dict(reports['service'].origins)}", file=sys.stderr)
    return {name: each[1:] for name, each in taken.items()}


@contextlib.contextmanager
def services(folder: Path, served: Path) -> Iterator[tuple[Service, Service]]:
    """Yield a service on an empty database, and one on a database that has STORED decisions."""
    found = []
    with contextlib.ExitStack() as stack:
        for name in ("empty", "full"):
            service = Service(folder, f"sqlite:///{folder}/{name}.db", served)
            stack.callback(service.close)
            service.start()
            found.append(service)
        yield found[0], found[1]


def measure(rounds: int, count: int) -> dict[str, Any]:
    """Return the figures, medians over the rounds.

    Args:
        rounds: in each of which everything is measured once.
        count: decisions of one client in a round.
    """
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rlmix-bench-")))
        save(folder / "policy", policy(HORIZON))
        empty, full = stack.enter_context(services(folder, folder / "policy"))
        question = question_for(folder / "policy")

        def client(service: Service, run: str, first: int = 0) -> Client:
            made = Client(service, run, question, first)
            stack.callback(made.close)
            return made

        for number in range(RUNS):
            client(full, f"r{number}").decide()
        fill(folder / "full.db")
        one, many = client(empty, "one"), [client(empty, f"many{number}") for number in range(MANY)]
        at_empty = [client(empty, f"r{number}") for number in range(THROUGHPUT)]
        at_full = [client(full, f"r{number}", STORED // RUNS) for number in range(THROUGHPUT)]
        asks = optuna_asks(folder)
        progress = stack.enter_context(Progress(transient=True))
        # The first of all are slower: what they need is read and compiled.
        for warm in (one, *many, *at_empty, *at_full):
            timed(warm.decide, 3)
        for _ in progress.track(range(rounds), description="decisions"):
            before, decided, asked = empty.cpu_seconds(), [], {name: [] for name in asks}
            for _ in range(count // TURN):
                decided += timed(one.decide, TURN)
                for name, ask in asks.items():
                    asked[name] += [ask() for _ in range(ASKS)]
            note("one client CPU of the service", 1e3 * (empty.cpu_seconds() - before) / len(decided))
            note("one client p50", float(np.quantile(decided, 0.5)))
            note("one client p99", float(np.quantile(decided, 0.99)))
            alive = float(np.median(timed(one.alive, count)))
            note("a request without a database p50", alive)
            note("decision / request without a database", found["one client p50"][-1] / alive)
            for name, each in asked.items():
                note(f"Optuna ask p50, {name} sampler", float(np.median(each)))
                note(f"Optuna ask / decision, {name} sampler", float(np.median(each)) / found["one client p50"][-1])
            crowd, rate = together(many, max(3, count // 10))
            note(f"{MANY} clients p99", float(np.quantile(crowd, 0.99)))
            note(f"{MANY} clients decisions a second", rate)
            for turn in range(4):
                # In turns, so that neither always comes after the other.
                sides = (at_empty, at_full) if turn % 2 else (at_full, at_empty)
                rates = {id(side): together(side, max(3, count // 5))[1] for side in sides}
                note("throughput full / empty", rates[id(at_full)] / rates[id(at_empty)])
            note("load", os.getloadavg()[0])
        taken = steps(f"http://127.0.0.1:{empty.port}", folder)
        added = np.array(taken["service"]) - np.array(taken["in process"])
        # Whichever comes second in a step finds the images in the cache: half of the difference, one way and the other.
        note("added to a step", float(np.mean([np.median(added[0::2]), np.median(added[1::2])])))
        note("added to a step, mean without the slowest 1 % of either side", trimmed(added))
    return {name: {"median": float(np.median(each)), "rounds": each} for name, each in found.items()}


def trimmed(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """Return the mean without the hundredth part on either side: pauses that other work makes on the machine."""
    low, high = np.quantile(values, [0.01, 0.99])
    return float(values[(values >= low) & (values <= high)].mean())


def verdicts(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (goal, limit, what was measured) for each goal."""
    lines = []
    for text, name, limit, kind, unit in GOALS:
        wanted = f"{kind} {limit:g} {unit}".strip()
        if name not in found:
            lines.append((text, wanted, "skipped: optuna is not installed (pip install 'rlmix[bench]')"))
            continue
        value = found[name]["median"]
        met = value <= limit if kind == "at most" else value >= limit
        lines.append((text, wanted, f"**{'met' if met else 'MISSED'}**: {value:.3g} {unit}".strip()))
    return lines


def markdown(where: dict[str, Any], found: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    lines = [f"# Speed of the service, {where['date'][:10]}", "", *(f"- {name}: {one}" for name, one in where.items())]
    lines += [
        "",
        "Milliseconds unless a ratio or a rate is named; medians over the rounds. The service, its clients and",
    ]
    lines += ["everything else share the cores: the ratios, and the CPU time, say more than the times."]
    lines += ["", "| goal | wanted | measured |", "|---|---|---|"]
    lines += ["| " + " | ".join(line) + " |" for line in verdicts(found)]
    lines += ["", "| figure | median | rounds |", "|---|---:|---|"]
    for name, one in found.items():
        each = ", ".join(f"{value:.3g}" for value in one["rounds"])
        lines.append(f"| {name} | {one['median']:.3g} | {each} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=ONE, help="decisions of one client in a round")
    parser.add_argument(
        "--out", type=Path, default=report.ROOT / "benchmarks" / "results", help="folder of the results"
    )
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    where = report.environment(["python", "-m", "benchmarks.service", *sys.argv[1:]])
    where |= {name: report._version(name) for name in ("fastapi", "uvicorn", "sqlalchemy", "optuna")}
    found = measure(chosen.rounds, chosen.count)
    where["load_at_end"] = round(os.getloadavg()[0], 2)
    text = markdown(where, found)
    chosen.out.mkdir(parents=True, exist_ok=True)
    stem = chosen.out / f"{report.file_name(where)}-service"
    stem.with_suffix(".json").write_text(json.dumps({"environment": where, "figures": found}, indent=1) + "\n", "utf-8")
    stem.with_suffix(".md").write_text(text, "utf-8")
    print(text)
    print(f"rlmix: written {stem}.md and .json", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
