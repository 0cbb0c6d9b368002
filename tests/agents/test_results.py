"""What a study says, against slow loops, and what it writes."""

from __future__ import annotations

import csv
import io
import itertools
import json

import numpy as np
import pytest

from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.comparison import BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE, with_best_fixed, with_oracle
from rlmix.agents.report import Report, Run
from rlmix.agents.results import (
    REPLAYED,
    STATIC,
    LevelResult,
    Team,
    comparisons_csv,
    document,
    tables_text,
)
from rlmix.agents.statistics import holm
from rlmix.envs.instances import digits_set
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
INSTANCES = digits_set("heldout", 12).instances
MEMBERS = ("learned/0", "learned/1", "learned/2")
GAIN = 0.05


def make_run(instance, agent, replicate, accuracy):
    entry = agent if agent in CHEAP.names else "cutmix-1"
    return Run(
        instance=instance.id, agent=agent, replicate=replicate, total_steps=instance.total_steps,
        epochs=instance.total_steps * 32 / instance.train_size, accuracy=accuracy, score=1.1 * accuracy,
        ts_nll=1.0 - accuracy, ece=0.3 - 0.2 * accuracy, actions=(entry, "none") * 4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result() -> LevelResult:
    """A level whose learned policy is better than everything by `GAIN`, with noise, and whose ablations are equal."""
    rng = np.random.default_rng(0)
    agents = (*CHEAP.names, "other", *MEMBERS)
    runs = [
        make_run(
            instance, agent, replicate,
            0.5 + 0.01 * place + (GAIN if agent in MEMBERS else 0.0) + float(rng.normal(0, 0.01)),
        )
        for (place, instance), replicate, agent in itertools.product(enumerate(INSTANCES), range(3), agents)
    ]  # fmt: skip
    report = Report(instances="toy", digest="d", seed=0, split="test", with_validation=True, runs=tuple(runs))
    report = with_oracle(with_best_fixed(report, report, CHEAP.names), CHEAP.names)
    for member, mark in itertools.product(MEMBERS, (REPLAYED, STATIC)):
        report = report.copied(f"{member}{mark}", lambda run, member=member: member)
    fixed = FixedAgent("none", CHEAP)
    teams = (
        Team(name="learned", members=dict.fromkeys(MEMBERS, fixed), observes=True),
        Team(name="other", members={"other": fixed}, observes=False),
    )
    return LevelResult(name="L0", instances=INSTANCES, catalogue=CHEAP, teams=teams, reports={"steps": report})


def accuracies(result, agent):
    """Return accuracies by instance and replicate."""
    return {(run.instance, run.replicate): run.accuracy for run in result.reports["steps"].of(agent)}


def found(result, agent, to):
    (row,) = (row for row in result.comparisons() if (row.agent, row.to) == (agent, to))
    return row


def test_comparison_is_that_of_a_slow_loop(result):
    """Seeds, replicates and instances are three axes that are easily mistaken for each other."""
    row, none = found(result, "learned", "none"), accuracies(result, "none")
    members = [accuracies(result, member) for member in MEMBERS]
    gains, wins = [], []
    for instance in INSTANCES:
        pairs = [(own[instance.id, r], none[instance.id, r]) for own in members for r in range(3)]
        gains.append(sum(a - b for a, b in pairs) / 9)
        wins.append(sum(float(a > b) for a, b in pairs) / 9)
    assert row.mean.estimate == pytest.approx(sum(gains) / 12)
    assert row.iqm.estimate == pytest.approx(sum(sorted(gains)[3:9]) / 6)
    assert row.worst.estimate == pytest.approx(sum(sorted(gains)[:2]) / 2)
    assert row.improvement.estimate == pytest.approx(sum(wins) / 12)
    assert row.ts_nll.estimate == pytest.approx(-sum(gains) / 12)
    assert row.ece.estimate == pytest.approx(-0.2 * sum(gains) / 12)
    assert row.accuracy - row.to_accuracy == pytest.approx(row.mean.estimate)
    assert row.iqm.low < GAIN < row.iqm.high


def test_z_is_the_reward_with_uniform_random_mixing_as_its_zero(result):
    """In units of .05, clipped at 2: a comparison of raw scores would let a few instances decide."""
    row = found(result, "learned", "none")
    scores = {name: {place: 1.1 * value for place, value in accuracies(result, name).items()} for name in
              ("none", "uniform-cheap", *MEMBERS)}  # fmt: skip
    gains = []
    for instance in INSTANCES:
        zero = sum(scores["uniform-cheap"][instance.id, r] for r in range(3)) / 3
        own, none = (
            [min(2.0, max(-2.0, (scores[name][instance.id, r] - zero) / 0.05)) for name in names for r in range(3)]
            for names in (MEMBERS, ("none",))
        )
        gains.append(sum(own) / 9 - sum(none) / 3)
    assert row.z_mean.estimate == pytest.approx(sum(gains) / 12)
    assert row.z_iqm.estimate == pytest.approx(sum(sorted(gains)[3:9]) / 6)


def test_every_baseline_is_compared_and_holm_counts_all_of_them(result):
    """A family of tests that leaves some out corrects too little."""
    rows = [row for row in result.comparisons() if row.agent == "learned"]
    made = {BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE, f"learned{REPLAYED}", f"learned{STATIC}"}
    expected = {*CHEAP.names, *made, "other"}
    assert {row.to for row in rows} == expected
    assert [row.p_holm for row in rows[:-2]] == holm([row.p for row in rows[:-2]])
    # Ablations ask another question, and make no baseline harder to beat.
    assert [row.to for row in rows[-2:]] == [f"learned{REPLAYED}", f"learned{STATIC}"]
    assert [row.p_holm for row in rows[-2:]] == holm([row.p for row in rows[-2:]])
    others = {row.to for row in result.comparisons() if row.agent == "other"}
    assert others == {*CHEAP.names, BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE, "learned"}


def test_ablation_is_compared_member_by_member(result):
    """Each with each would put the differences between seeds into what is a pair."""
    row = found(result, "learned", f"learned{REPLAYED}")
    assert (row.iqm.low, row.iqm.estimate, row.iqm.high, row.p) == (0.0, 0.0, 0.0, 1.0)
    assert found(result, "other", "learned").mean.estimate == pytest.approx(
        -found(result, "learned", "other").mean.estimate
    )


def test_small_strata_are_put_together(result):
    """A stratum of one instance would be resampled as itself, and the interval be too narrow."""
    strata = result.strata()
    assert len(strata) == 12
    assert all(label == "others" or strata.count(label) >= 5 for label in strata)


def test_table_csv_and_json_tell_the_same_numbers(result):
    """What is printed and what is stored must not disagree."""
    row = found(result, "learned", ORACLE)
    text = tables_text([result])
    assert f"{100 * row.iqm.estimate:+.2f} [{100 * row.iqm.low:+.2f}, {100 * row.iqm.high:+.2f}]" in text
    assert "instances: 12, replicates: 3; p by Holm" in text
    rows = list(csv.DictReader(io.StringIO(comparisons_csv(result.comparisons()))))
    (same,) = (one for one in rows if (one["agent"], one["to"]) == ("learned", ORACLE))
    assert (float(same["iqm"]), float(same["iqm_low"]), float(same["p_holm"])) == (
        row.iqm.estimate, row.iqm.low, row.p_holm,
    )  # fmt: skip
    (level,) = json.loads(json.dumps(document([result]), allow_nan=False))
    (again,) = (one for one in level["conditions"]["steps"] if (one["agent"], one["to"]) == ("learned", ORACLE))
    assert again["z_iqm"] == {"estimate": row.z_iqm.estimate, "low": row.z_iqm.low, "high": row.z_iqm.high}
    assert level["count"] == 12
