"""Reports: pairing, copied runs, baselines chosen on validation, and what is printed and written."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest
from rich.console import Console

from rlmix.agents.report import Report, Run, best_fixed, best_fixed_per_budget, budget_ranges
from rlmix.agents.statistics import Interval
from rlmix.errors import InputError, UnknownNameError

BUDGETS = (56, 120, 240)


def make_run(instance, agent, replicate, accuracy, *, total_steps=56, epochs=1.0):
    return Run(
        instance=f"i{instance}",
        agent=agent,
        replicate=replicate,
        total_steps=total_steps,
        epochs=epochs,
        accuracy=accuracy,
        score=accuracy + 0.1,
        ts_nll=1.0 - accuracy,
        ece=0.1,
        actions=(agent,) * 3,
    )


def make_report(accuracy_of, *, instances=12, agents=("none", "cutmix-1", "uniform"), replicates=2, epochs_of=float):
    runs = [
        make_run(
            number,
            agent,
            replicate,
            accuracy_of(number, agent, replicate),
            total_steps=BUDGETS[number % 3],
            epochs=epochs_of(number),
        )
        for number, replicate, agent in itertools.product(range(instances), range(replicates), agents)
    ]
    return Report(instances="toy", digest="d", seed=0, split="test", with_validation=True, runs=tuple(runs))


def noisy(number, agent, replicate):
    shift = {"none": 0.0, "cutmix-1": 0.02, "uniform": 0.01}[agent]
    noise = np.random.default_rng((number, replicate, len(agent))).normal(0, 0.01)
    return 0.5 + 0.03 * number + shift + noise


def test_differences_are_those_of_a_slow_loop_over_pairs():
    """Runs paired with those of another instance would drown the difference in that between instances."""
    report = make_report(noisy)
    found = {row.agent: row for row in report.differences("uniform")}
    accuracy = {(run.instance, run.replicate, run.agent): run.accuracy for run in report.runs}
    for agent in ("none", "cutmix-1"):
        gains, wins = [], []
        for number in range(12):
            pairs = [(accuracy[f"i{number}", r, agent], accuracy[f"i{number}", r, "uniform"]) for r in range(2)]
            gains.append(sum(a - b for a, b in pairs) / 2)
            wins.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / 2)
        assert found[agent].mean.estimate == pytest.approx(sum(gains) / 12, abs=1e-12)
        assert found[agent].iqm.estimate == pytest.approx(sum(sorted(gains)[3:9]) / 6, abs=1e-12)
        assert found[agent].improvement.estimate == pytest.approx(sum(wins) / 12, abs=1e-12)
        assert found[agent].mean.low < found[agent].mean.estimate < found[agent].mean.high


def test_reference_differs_from_itself_by_nothing_and_the_best_comes_first():
    """A reference with an interval of its own would mean that runs were not paired."""
    rows = make_report(noisy).differences("uniform")
    assert [row.agent for row in rows] == ["cutmix-1", "uniform", "none"]
    assert rows[1].mean == Interval(estimate=0.0, low=0.0, high=0.0)
    assert rows[1].improvement.estimate == 0.5


def test_best_fixed_looks_at_the_named_entries_only():
    """A learned agent in the validation report must not be taken for a fixed method."""
    report = make_report(lambda number, agent, replicate: {"none": 0.1, "cutmix-1": 0.9, "uniform": 0.5}[agent])
    assert best_fixed(report, ["none", "cutmix-1", "uniform"]) == "cutmix-1"
    assert best_fixed(report, ["none", "uniform"]) == "uniform"
    with pytest.raises(InputError, match="None of the fixed agents mixup-1 was evaluated"):
        best_fixed(report, ["mixup-1"])


def test_few_budgets_are_looked_up_by_steps_with_geometric_means_between():
    """The strong baseline: short trainings get one method, long ones another."""

    def accuracy(number, agent, replicate):
        return float({56: "none", 120: "uniform", 240: "cutmix-1"}[BUDGETS[number % 3]] == agent)

    report = make_report(accuracy)
    lookup = best_fixed_per_budget(report, ["none", "cutmix-1", "uniform"])
    assert lookup.ranges.measure == "steps"
    assert lookup.entries == ("none", "uniform", "cutmix-1")
    assert lookup.ranges.bounds == pytest.approx(((56 * 120) ** 0.5, (120 * 240) ** 0.5))
    assert [lookup.entry(steps=steps, epochs=0.0) for steps in (10, 56, 100, 120, 160, 240, 999)] == [
        "none",
        "none",
        "uniform",
        "uniform",
        "uniform",
        "cutmix-1",
        "cutmix-1",
    ]


def test_many_budgets_are_looked_up_by_terciles_of_epochs():
    """With a budget of its own for every instance a lookup by steps would only remember noise."""
    runs = [
        make_run(n, agent, 0, float((n < 4) == (agent == "none")), total_steps=50 + n, epochs=float(n))
        for n, agent in itertools.product(range(12), ("none", "uniform"))
    ]
    report = Report(instances="toy", digest="d", seed=0, split="test", with_validation=True, runs=tuple(runs))
    ranges = budget_ranges(report.runs)
    assert ranges.measure == "epochs"
    assert [ranges.bucket(steps=0, epochs=float(n)) for n in range(12)] == [0] * 4 + [1] * 4 + [2] * 4
    assert best_fixed_per_budget(report, ["none", "uniform"]).entries == ("none", "uniform", "uniform")


def test_copied_agent_has_the_runs_of_the_agents_it_stands_for():
    """Best fixed per budget is computed from runs that exist; a wrong pair would give it another classifier's luck."""
    report = make_report(noisy)
    extended = report.copied("mixed", lambda run: "none" if run.total_steps == 56 else "cutmix-1")
    assert extended.agents == ("none", "cutmix-1", "uniform", "mixed")
    for run in extended.of("mixed"):
        source = "none" if run.total_steps == 56 else "cutmix-1"
        (same,) = (r for r in report.of(source) if (r.instance, r.replicate) == (run.instance, run.replicate))
        assert (run.accuracy, run.actions) == (same.accuracy, same.actions)
    with pytest.raises(UnknownNameError, match="No agent `cutmix` was evaluated. Did you mean `cutmix-1`?"):
        report.copied("mixed", lambda run: "cutmix")


def test_csv_gives_every_run_back_exactly():
    """The published numbers are recomputed from this file."""
    report = make_report(noisy)
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    assert len(rows) == len(report.runs) == 72
    for row, run in zip(rows, report.runs, strict=True):
        assert (row["instance"], row["agent"], int(row["replicate"])) == (run.instance, run.agent, run.replicate)
        assert (float(row["accuracy"]), float(row["score"])) == (run.accuracy, run.score)
        assert tuple(row["actions"].split()) == run.actions


def test_table_and_json_tell_the_same_numbers():
    """What is printed and what is stored must not disagree."""
    report = make_report(noisy)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(report.table("uniform"))
    text = console.export_text()
    document = json.loads(json.dumps(report.to_json("uniform")))
    assert document["reference"] == "uniform"
    for row in document["differences"]:
        low, high = row["mean"]["low"], row["mean"]["high"]
        assert f"{100 * row['mean']['estimate']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]" in text
        assert f"{100 * row['accuracy']:.2f}" in text


def test_unknown_reference_names_the_nearest_agent():
    """`--reference unifrom` deserves better than a KeyError."""
    with pytest.raises(UnknownNameError, match="Did you mean `uniform`?"):
        make_report(noisy).differences("unifrom")
