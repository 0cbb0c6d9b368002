"""Paired evaluation on real, very short trainings."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlmix.agents import jobs
from rlmix.agents.agent import AbstractAgent
from rlmix.agents.baselines.fixed import BestFixedPerBudget, BudgetLookup, BudgetRanges, FixedAgent
from rlmix.agents.evaluate import evaluate
from rlmix.envs import heldout
from rlmix.envs.instances import Family, InstanceSet, Recipe
from rlmix.envs.pool import Pool
from rlmix.errors import DataError, InputError
from rlmix.ops import rng
from rlmix.ops.calibration import expected_calibration_error, temperature_scaled_nll
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
HORIZON = 4


def tiny(part="heldout", count=3) -> InstanceSet:
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate(part, count)


def fixed(*names):
    return {name: FixedAgent(name, CHEAP) for name in names}


class Recorder(AbstractAgent):
    """Chooses entry 1 always, and keeps what it was shown."""

    def __init__(self):
        self.shapes, self.feedback = [], []

    def act(self, observations, mask=None):
        self.shapes.append(tuple(observations.shape))
        return torch.ones(len(observations), dtype=torch.int64)

    def observe(self, feedback):
        self.feedback.append(feedback)

    def save(self, path):
        raise NotImplementedError


def test_accuracy_is_that_of_the_same_training_run_alone():
    """Runs that share a block with others must be what they would be by themselves, with the key that is documented."""
    instances = tiny()
    report = evaluate(fixed("none", "cutmix-1"), instances, catalogue=CHEAP, replicates=2, seed=3)
    assert [(run.instance, run.replicate, run.agent) for run in report.runs[:4]] == [
        (instances.ids[0], 0, "none"),
        (instances.ids[0], 0, "cutmix-1"),
        (instances.ids[0], 1, "none"),
        (instances.ids[0], 1, "cutmix-1"),
    ]
    instance = instances.instances[1]
    (run,) = (run for run in report.of("cutmix-1") if (run.instance, run.replicate) == (instance.id, 1))
    pool = Pool(instances, seeds=[0], catalogue=CHEAP, reward=None, masks=False)
    pool.begin([instance], [rng.derive(3, rng.words(instance.id), 1)])
    for _ in range(HORIZON):
        pool.step([CHEAP.index("cutmix-1")])
    images, labels = heldout.test_split(instance)
    assert run.accuracy == pytest.approx(float((pool.predict(images)[0].argmax(1) == labels).double().mean()))
    assert run.actions == ("cutmix-1",) * HORIZON
    assert run.total_steps == instance.total_steps
    assert run.epochs == pytest.approx(instance.total_steps * 32 / instance.train_size)


def test_agents_of_equal_choices_get_equal_runs():
    """Pairing: what differs between two agents' runs may only come from what they chose."""
    report = evaluate({**fixed("mixup-1"), "recorder": Recorder(), "again": FixedAgent("mixup-1", CHEAP)}, tiny(),
                      catalogue=CHEAP)  # fmt: skip
    same = [replace(run, agent="") for run in report.of("mixup-1")]
    assert [replace(run, agent="") for run in report.of("again")] == same
    assert {run.actions for run in report.of("recorder")} == {("mixup-0.2",) * HORIZON}


def test_report_does_not_depend_on_who_else_is_evaluated():
    """Adding a baseline must not change the published numbers of the others."""
    few = evaluate(fixed("none"), tiny(), catalogue=CHEAP)
    many = evaluate(fixed("mixup-1", "none", "cutmix-1"), tiny(), catalogue=CHEAP)
    assert few.runs == many.of("none")
    assert evaluate(fixed("none"), tiny(), catalogue=CHEAP, seed=1).runs != few.runs


def test_agents_are_shown_their_own_rows_and_told_what_followed():
    """An agent that learns online needs the feedback of its own trainings, and no others."""
    recorder = Recorder()
    evaluate({**fixed("none"), "recorder": recorder}, tiny(count=2), catalogue=CHEAP)
    # Two budgets, so two blocks of one training each.
    assert len(recorder.shapes) == 2 * HORIZON
    assert {shape[0] for shape in recorder.shapes} == {1}
    assert [feedback.done for feedback in recorder.feedback] == [False, False, False, True] * 2
    assert recorder.feedback[0].actions.tolist() == [1]


def test_best_fixed_per_budget_trained_is_what_copied_runs_say():
    """The report copies the runs of fixed agents instead of training again; both must be the same, bit for bit."""
    lookup = BudgetLookup(ranges=BudgetRanges(measure="steps", bounds=(12.0,)), entries=("none", "cutmix-1"))
    agent = BestFixedPerBudget(lookup=lookup, otherwise="none", catalogue=CHEAP)
    report = evaluate({**fixed("none", "cutmix-1"), "trained": agent}, tiny(), catalogue=CHEAP)
    copied = report.copied("copied", lambda run: lookup.entry(steps=run.total_steps, epochs=run.epochs))
    assert [replace(run, agent="") for run in copied.of("copied")] == [
        replace(run, agent="") for run in report.of("trained")
    ]


def test_reward_split_measures_on_other_images_than_test(monkeypatch):
    """Choosing between agents by test images would make the published test accuracy too good."""

    def forbidden(*arguments):
        raise AssertionError("test images were read")

    monkeypatch.setattr(heldout.HeldOut, "of", forbidden)
    report = evaluate(fixed("none"), tiny(), catalogue=CHEAP, split="reward")
    assert all(0.0 < run.accuracy <= 1.0 for run in report.runs)
    with pytest.raises(AssertionError, match="test images were read"):
        evaluate(fixed("none"), tiny(), catalogue=CHEAP)


def test_progress_counts_trainings():
    """A bar that never fills looks like a hang."""
    seen = []
    evaluate(fixed("none", "mixup-1"), tiny(), catalogue=CHEAP, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


@pytest.mark.parametrize(("agents", "replicates"), [({}, 1), (fixed("none"), 0)])
def test_nothing_to_evaluate_is_an_error(agents, replicates):
    """An empty report would fail later, in a statistic, with a message about shapes."""
    with pytest.raises(InputError, match="needs agents and `replicates` of at least 1"):
        evaluate(agents, tiny(), catalogue=CHEAP, replicates=replicates)


def test_calibration_is_measured_on_the_same_logits_as_accuracy():
    """Mixing changes confidence more than accuracy, so a report without it tells half."""
    instances = tiny(count=1)
    (run,) = evaluate(fixed("cutmix-1"), instances, catalogue=CHEAP, seed=3).runs
    pool = Pool(instances, seeds=[0], catalogue=CHEAP, reward=None, masks=False)
    pool.begin(instances.instances, [rng.derive(3, rng.words(instances.ids[0]), 0)])
    for _ in range(HORIZON):
        pool.step([CHEAP.index("cutmix-1")])
    images, labels = heldout.test_split(instances.instances[0])
    logits = pool.predict(images)[0]
    assert run.ece == pytest.approx(float(expected_calibration_error(logits.softmax(-1), labels)), abs=1e-4)
    assert run.ts_nll == pytest.approx(float(temperature_scaled_nll(logits, labels)[0]), abs=1e-5)
    (rewarded,) = evaluate(fixed("cutmix-1"), instances, catalogue=CHEAP, seed=3, split="reward").runs
    assert rewarded.ece is None
    assert rewarded.ts_nll != run.ts_nll


def test_each_instance_is_measured_on_its_own_test_images(monkeypatch):
    """Instances that use some of the classes have test images of those; side by side their numbers may differ."""
    family = Family(data="digits", total_steps={8: 1}, train_size=(100, 200))
    instances = Recipe(name="parts", families=(family,), horizon=HORIZON).generate("heldout", 3)
    sizes = {instance.id: 100 + 37 * number for number, instance in enumerate(instances.instances)}

    whole = heldout.HeldOut.of

    def part(self, instance):
        images, labels = whole(self, instance)
        return images[-sizes[instance.id] :], labels[-sizes[instance.id] :]

    monkeypatch.setattr(heldout.HeldOut, "of", part)
    together = evaluate(fixed("none", "mixup-1"), instances, catalogue=CHEAP)
    for instance in instances.instances:
        alone = evaluate(fixed("none", "mixup-1"), replace(instances, instances=(instance,)), catalogue=CHEAP)
        beside = [run for run in together.runs if run.instance == instance.id]
        for run, same in zip(alone.runs, beside, strict=True):
            assert run.accuracy == same.accuracy
            assert run.ts_nll == pytest.approx(same.ts_nll, abs=1e-6)
            right = run.accuracy * sizes[instance.id]
            assert right == pytest.approx(round(right))


def test_large_test_sets_are_measured_in_portions(monkeypatch):
    """A stack of every classifier's copy of 10,000 images does not fit in memory; portions must change no accuracy."""
    whole = evaluate(fixed("none", "mixup-1"), tiny(), catalogue=CHEAP)
    monkeypatch.setattr(jobs, "_PIXELS", 64 * 48)
    monkeypatch.setattr(jobs, "_LOGITS", 4_000)
    parts = evaluate(fixed("none", "mixup-1"), tiny(), catalogue=CHEAP)
    for one, other in zip(whole.runs, parts.runs, strict=True):
        assert one.accuracy == pytest.approx(other.accuracy, abs=0.003)
        assert one.ts_nll == pytest.approx(other.ts_nll, abs=1e-5)


def test_classifier_that_is_not_finite_is_never_right_and_knows_nothing():
    """One diverged training must not turn a table into NaN, nor be called well calibrated."""
    family = Family(data="digits", total_steps={8: 1}, train_size=(100, 200), learning_rate=(1e30, 1e30))
    instances = Recipe(name="broken", families=(family,), horizon=HORIZON).generate("heldout", 1)
    (run,) = evaluate(fixed("none"), instances, catalogue=CHEAP).runs
    assert (run.accuracy, run.score, run.ece) == (0.0, 0.0, pytest.approx(0.1))


def test_the_number_of_processes_changes_no_run():
    """Evaluations of thousands of trainings use every core, and must say the same."""
    agents = fixed("none", "cutmix-1")
    expected = evaluate(agents, tiny(), catalogue=CHEAP, replicates=2)
    seen = []
    found = evaluate(
        agents, tiny(), catalogue=CHEAP, replicates=2, processes=2, progress=lambda *counts: seen.append(counts)
    )
    assert found == expected
    assert seen[-1][0] == seen[-1][1] == len(expected.runs)
    with pytest.raises(InputError, match="`processes` must be at least 1, got 0"):
        evaluate(agents, tiny(), catalogue=CHEAP, processes=0)


def test_an_error_in_a_process_is_raised_here(tmp_path):
    """A missing data set must not end as a broken pool."""
    family = Family(data="fashion-mnist", total_steps={8: 1}, train_size=(100, 200))
    instances = Recipe(name="missing", families=(family,), horizon=HORIZON).generate("heldout", 1)
    with pytest.raises(DataError, match="`fashion-mnist` cannot be read"):
        evaluate(fixed("none"), instances, catalogue=CHEAP, processes=2, data_dir=tmp_path)
