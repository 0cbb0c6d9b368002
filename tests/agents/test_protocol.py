"""The evaluation protocol on real, very short trainings."""

from __future__ import annotations

import collections
import json

import pytest
import torch

from rlmix.agents import jobs
from rlmix.agents import protocol as under_test
from rlmix.agents.agent import AbstractAgent, LearnedAgent
from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.comparison import BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE
from rlmix.agents.figures import study_figures, write_figures
from rlmix.agents.ledger import read
from rlmix.agents.protocol import (
    COSTS,
    HOLD,
    RUNS,
    Level,
    Protocol,
    digest_of_agent,
    evaluate_levels,
    load_levels,
    measure_costs,
    read_catalogue,
    scaled_steps,
)
from rlmix.agents.replay import replay
from rlmix.agents.results import REPLAYED, STATIC
from rlmix.envs.instances import Family, Recipe
from rlmix.envs.pool import Pool
from rlmix.errors import CheckpointError, ConfigError, InputError
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.parametric import find_codec
from rlmix.policy.signals import names

CHEAP = catalogue("cheap")
HORIZON = 4
# Seconds a step: cutmix takes twice as long as not mixing, everything else as long.
PRICES = tuple(2.0 if name == "cutmix-1" else 1.0 for name in CHEAP.names)


def tiny(part="heldout", count=2):
    family = Family(data="digits", total_steps={4: 1, 8: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    return Recipe(name="tiny", families=(family,), horizon=HORIZON).generate(part, count)


LEVEL = Level(name="L0", heldout=tiny(), validation=tiny("validation"))
PROTOCOL = Protocol(catalogue=CHEAP, replicates=2)


class Watcher(AbstractAgent):
    """Alternates with what it sees: one entry with validation images, others without, by the bits of an accuracy."""

    def __init__(self, shift):
        self.shift = shift

    def act(self, observations, mask=None):
        columns = [names(CHEAP).index(name) for name in ("has/val", "probe/accuracy")]
        shown, accuracy = observations[:, columns].T
        return (self.shift + (accuracy * 997).round().long().remainder(3) + shown.long()).remainder(4)

    def observe(self, feedback):
        pass

    def save(self, path):
        path.write_text(json.dumps({"shift": self.shift}), encoding="utf-8")


class Learner(AbstractAgent):
    """Changes with every interval that it has seen: what it chooses depends on what it was asked before."""

    def __init__(self):
        self.seen = 0

    def act(self, observations, mask=None):
        return torch.full((len(observations),), self.seen % 3)

    def observe(self, feedback):
        self.seen += 1

    def save(self, path):
        path.write_text("learner", encoding="utf-8")


def hybrid_policy() -> LearnedPolicy:
    """Return a policy with random weights that sets the parameters of the methods that it chooses."""
    codec, generator = find_codec("hybrid", "v0"), torch.Generator().manual_seed(0)
    read = ("time/progress", "probe/accuracy")
    weights = 3.0 * torch.randn(codec.outputs, len(read), generator=generator)
    return LearnedPolicy(
        network=PolicyNetwork(actor=((weights, torch.randn(codec.outputs, generator=generator)),), critic=None),
        observation_names=read,
        low=-torch.ones(len(read)),
        high=torch.ones(len(read)),
        catalogue=codec.catalogue,
        codec=codec,
        horizon=HORIZON,
        card={},
    )


def agents():
    return {"policy": [Watcher(0), Watcher(1)], "online": [Learner()]}


@pytest.fixture(autouse=True)
def _prices(monkeypatch):
    """Give every session the same costs: measured ones differ from run to run."""
    monkeypatch.setattr(under_test, "measure_costs", lambda pool, instance: PRICES)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study: its folder and its only level."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(under_test, "measure_costs", lambda pool, instance: PRICES)
        (result,) = evaluate_levels(agents(), [LEVEL], PROTOCOL, out=folder)
    return folder, result


def by_run(report, agent):
    return {(run.instance, run.replicate): run for run in report.of(agent)}


def test_every_column_of_the_protocol_is_there_with_every_run(study):
    """A baseline that is left out is one that was not beaten."""
    _, result = study
    assert list(result.reports) == ["steps", "no-validation", "time"]
    plain = {*CHEAP.names, BEST_FIXED, BEST_PER_BUDGET, ORACLE, ORACLE_OF_ONE, "policy/0", "policy/1", "online"}
    ablated = {f"{name}{mark}" for name in ("policy/0", "policy/1", "online") for mark in (REPLAYED, STATIC)}
    assert set(result.reports["steps"].agents) == plain | ablated | {HOLD}
    assert set(result.reports["no-validation"].agents) == plain | {HOLD}
    assert set(result.reports["time"].agents) == plain
    for report in result.reports.values():
        assert report.split == "test"
        for agent in report.agents:
            keys = [(run.instance, run.replicate) for run in report.of(agent)]
            assert keys == [(instance.id, replicate) for instance in LEVEL.heldout.instances for replicate in (0, 1)]
        assert all(run.ece is not None for run in report.runs)


def test_killed_study_resumes_to_the_same_runs_and_trains_none_twice(study, tmp_path, monkeypatch):
    """A night's study must survive Ctrl-C, and not by training everything again."""
    _, whole = study

    def interrupt(done, total):
        if done >= 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_levels(agents(), [LEVEL], PROTOCOL, out=tmp_path, progress=interrupt)
    kept = len(read(tmp_path / RUNS))
    assert 0 < kept < len(read(study[0] / RUNS))
    seen = []
    (resumed,) = evaluate_levels(
        agents(), [LEVEL], PROTOCOL, out=tmp_path, resume=True, progress=lambda *counts: seen.append(counts)
    )
    assert resumed.reports == whole.reports
    assert seen[-1][0] == seen[-1][1] > 0
    identities = collections.Counter(record.identity for record in read(tmp_path / RUNS))
    assert set(identities.values()) == {1}

    def forbidden(*arguments, **options):
        raise AssertionError("a recorded run was trained again")

    monkeypatch.setattr(jobs, "_train", forbidden)
    (again,) = evaluate_levels(agents(), [LEVEL], PROTOCOL, out=tmp_path, resume=True)
    assert again.reports == whole.reports


def test_study_grows_by_an_agent_without_training_the_others_again(study, tmp_path):
    """Adding a seed to a finished study costs that seed."""
    short = Protocol(catalogue=CHEAP, replicates=2, no_validation=False, equal_time=False, ablations=False)
    evaluate_levels({"policy": [Watcher(0)]}, [LEVEL], short, out=tmp_path)
    before = len(read(tmp_path / RUNS))
    (result,) = evaluate_levels({"policy": [Watcher(0), Watcher(1)]}, [LEVEL], short, out=tmp_path, resume=True)
    assert len(read(tmp_path / RUNS)) - before == len(LEVEL.heldout) * 2
    assert result.reports["steps"].of("policy/1") == study[1].reports["steps"].of("policy/1")


def test_without_validation_agents_see_none_and_fixed_ones_are_the_same(study):
    """The condition would otherwise be a second run of the first."""
    reports = study[1].reports
    assert not reports["no-validation"].with_validation
    assert reports["no-validation"].of("none") == reports["steps"].of("none")
    for run, blind in zip(reports["steps"].of("policy/0"), reports["no-validation"].of("policy/0"), strict=True):
        # Before the first step both see the same probe, and differ by the bit that says whether there is validation.
        assert (CHEAP.index(run.actions[0]) - CHEAP.index(blind.actions[0])) % 4 == 1


def test_at_equal_time_a_slower_entry_gets_fewer_steps(study):
    """At equal steps a method that costs twice as much looks better than it is."""
    folder, result = study
    steps, timed = (by_run(result.reports[condition], "cutmix-1") for condition in ("steps", "time"))
    trained = {
        (record.run.instance, record.run.replicate): record.run
        for record in read(folder / RUNS)
        if record.run.agent == "cutmix-1" and record.split == "test" and record.run.total_steps != 8
    }
    for instance in LEVEL.heldout.instances:
        for replicate in (0, 1):
            place = instance.id, replicate
            assert timed[place].total_steps == instance.total_steps
            if instance.total_steps == 8:
                assert trained[place].total_steps == 4
                assert timed[place].accuracy == trained[place].accuracy != steps[place].accuracy
    assert result.reports["time"].of("none") == result.reports["steps"].of("none")
    assert list(json.loads((folder / COSTS).read_text(encoding="utf-8")).values()) == [list(PRICES)]


@pytest.mark.parametrize(
    ("total", "cost", "expected"), [(16, 1.0, 16), (16, 2.0, 8), (16, 1.01, 12), (240, 1.5, 160), (8, 9.0, 4)]
)
def test_scaled_budget_is_rounded_down_to_whole_intervals(total, cost, expected):
    """Rounded up, the slower agent would get more time; rounded to nothing, no training."""
    assert scaled_steps(total, cost, HORIZON) == expected


def test_measured_costs_rank_a_saliency_method_above_not_mixing():
    """Saliency takes a second pass through the network; a clock that cannot see it sees nothing."""
    entries = catalogue("v0").subset(["none", "grafting-1"])
    pool = Pool(tiny(), seeds=[0], catalogue=entries, reward=None, masks=False)
    plain, salient = measure_costs(pool, tiny().instances[0])
    assert salient > plain > 0


def test_replayed_choices_are_those_of_the_other_replicate(study):
    """Replayed on its own replicate a policy would lose nothing, whatever it uses."""
    report = study[1].reports["steps"]
    own, replayed = by_run(report, "policy/1"), by_run(report, f"policy/1{REPLAYED}")
    assert any(own[instance, 0].actions != own[instance, 1].actions for instance in LEVEL.heldout.ids)
    for (instance, replicate), run in replayed.items():
        assert run.actions == own[instance, 1 - replicate].actions
        if run.actions == own[instance, replicate].actions:
            assert run.accuracy == own[instance, replicate].accuracy


def test_static_mixture_uses_what_the_policy_used_on_that_instance(study):
    """Frequencies over all instances would be another controller, and a worse one."""
    report = study[1].reports["steps"]
    own = by_run(report, "policy/0")
    for (instance, _), run in by_run(report, f"policy/0{STATIC}").items():
        assert set(run.actions) <= {entry for replicate in (0, 1) for entry in own[instance, replicate].actions}


def test_hold_draws_by_the_episode_and_not_by_the_place_in_a_block(study):
    """Equal draws in every training would be one schedule; draws by the place would change with what is recorded."""
    traces = [run.actions for run in study[1].reports["steps"].of(HOLD)]
    assert len(set(traces)) > 1
    assert {entry for trace in traces for entry in trace} <= set(CHEAP.names)


def test_policies_with_actions_of_their_own_are_compared_with_the_same_baselines(study, tmp_path):
    """A policy that sets parameters must not change what it is compared with."""
    short = Protocol(catalogue=CHEAP, replicates=2, no_validation=False, equal_time=False, ablations=False)
    policy = hybrid_policy()
    agent = LearnedAgent(policy, names(policy.catalogue))
    with pytest.raises(InputError, match="chooses from other actions than the protocol's catalogue"):
        evaluate_levels({"hybrid": [agent]}, [LEVEL], PROTOCOL, out=tmp_path / "refused")
    (result,) = evaluate_levels({"hybrid": [agent]}, [LEVEL], short, out=tmp_path)
    report, whole = result.reports["steps"], study[1].reports["steps"]
    assert all(report.of(entry) == whole.of(entry) for entry in (*CHEAP.names, ORACLE, HOLD))
    (again,) = evaluate_levels({"hybrid": [agent]}, [LEVEL], short, out=tmp_path, resume=True)
    assert again.reports == result.reports
    assert any("(" in action for run in report.of("hybrid") for action in run.actions)
    assert len(write_figures(tmp_path / "figures", study_figures([result], "hybrid"))) == 3


def test_agent_that_learns_begins_each_block_as_it_was_given(study):
    """Otherwise its runs would depend on what was trained before, and on where a study was interrupted."""
    expected = tuple(CHEAP.names[entry] for entry in (0, 1, 2, 0))
    assert {run.actions for run in study[1].reports["steps"].of("online")} == {expected}


def test_recorded_study_comes_out_again(study):
    """Every row, of every condition and ablation, is what its choices give."""
    folder, _ = study
    records = read(folder / RUNS)
    assert {record.variant for record in records} == {"steps", "no-validation", "replay", "static"}
    own = digest_of_agent(Watcher(1))
    assert replay(records, read_catalogue(folder / under_test.CATALOGUE), policy=(own, Watcher(1))) == []


def test_digest_is_of_what_the_agent_saves():
    """Two agents of one digest would share their runs."""
    kinds = [Watcher(0), Watcher(1), Learner(), FixedAgent("none", CHEAP), FixedAgent("cutmix-1", CHEAP)]
    assert len({digest_of_agent(agent) for agent in kinds}) == len(kinds)
    assert digest_of_agent(Watcher(0)) == digest_of_agent(Watcher(0))


@pytest.mark.parametrize("name", ["none", ORACLE, "a/b", f"x{STATIC}"])
def test_names_of_baselines_are_refused(tmp_path, name):
    """The policy would be compared with itself."""
    with pytest.raises(InputError, match="a name that no baseline has"):
        evaluate_levels({name: [Watcher(0)]}, [LEVEL], PROTOCOL, out=tmp_path)


def test_nothing_to_compare_is_an_error(tmp_path):
    """An empty study would end with an empty table, after hours."""
    with pytest.raises(InputError, match="no level"):
        evaluate_levels(agents(), [], PROTOCOL, out=tmp_path)
    with pytest.raises(InputError, match="no agent"):
        evaluate_levels({}, [LEVEL], PROTOCOL, out=tmp_path)
    with pytest.raises(InputError, match="`replicates` must be at least 2, got 1"):
        Protocol(catalogue=CHEAP, replicates=1)


def test_folder_of_another_study_is_refused(study, tmp_path):
    """Runs of another catalogue have actions of the same names and other meanings."""
    folder, _ = study
    with pytest.raises(CheckpointError, match="Go on with --resume"):
        evaluate_levels(agents(), [LEVEL], PROTOCOL, out=folder)
    (tmp_path / under_test.CATALOGUE).write_text(json.dumps(catalogue("v0").to_json()), encoding="utf-8")
    with pytest.raises(CheckpointError, match="holds another catalogue"):
        evaluate_levels(agents(), [LEVEL], PROTOCOL, out=tmp_path)
    (tmp_path / under_test.CATALOGUE).write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be read as a catalogue"):
        read_catalogue(tmp_path / under_test.CATALOGUE)


def test_levels_are_read_from_a_file_beside_their_recipes(tmp_path):
    """A study that can only be repeated from one folder cannot be repeated."""
    recipe = "name: own\nhorizon: 4\nfamilies: [{data: digits, total_steps: {8: 1}, train_size: [100, 200]}]\n"
    (tmp_path / "own.yaml").write_text(recipe, encoding="utf-8")
    file = tmp_path / "levels.yaml"
    file.write_text(
        "levels:\n- {name: L0, instances: own.yaml, limit: 3}\n- {name: L1, instances: digits, validation: digits}\n",
        encoding="utf-8",
    )
    first, second = load_levels(file)
    assert (first.name, first.heldout.name, len(first.heldout), len(first.validation)) == ("L0", "own-heldout", 3, 3)
    assert (second.heldout.name, second.validation.name) == ("digits-heldout", "digits-validation")
    file.write_text("levels:\n- {name: L0, instances: digits, validation: own.yaml}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must have one horizon, got 8 and 4"):
        load_levels(file)
    file.write_text("levels:\n- {name: L0, instances: digits}\n- {name: L0, instances: digits}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="different names"):
        load_levels(file)
    file.write_text("levels:\n- {name: L0, instance: digits}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="Did you mean `instances`"):
        load_levels(file)


def test_shipped_levels_name_recipes_that_exist(project, monkeypatch):
    """A study of hours must not end at a file that is not there."""
    monkeypatch.chdir(project)
    for file in sorted((project / "configs" / "levels").glob("*.yaml")):
        levels = load_levels(file)
        assert len({level.heldout.horizon for level in levels}) == 1
        assert all(len(level.heldout) >= 20 for level in levels)
