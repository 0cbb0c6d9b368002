"""Open loop: traces, static mixtures, and the replay of recorded runs."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json

import pytest
import torch

from rlmix.agents.agent import Feedback
from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.jobs import Job, blocks, episode_key, run_block
from rlmix.agents.ledger import Record, machine, problem_of, short
from rlmix.agents.protocol import digest_of_agent
from rlmix.agents.replay import TOLERANCE, TraceAgent, frequencies, replay, static_trace
from rlmix.envs.heldout import HeldOut
from rlmix.envs.instances import Family, Recipe
from rlmix.envs.pool import Pool
from rlmix.errors import CheckpointError, InputError
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
HORIZON = 4


@pytest.fixture(scope="module")
def records():
    """Runs of two blocks (two budgets), recorded as the protocol does."""
    family = Family(data="digits", total_steps={8: 1, 16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    instances = Recipe(name="tiny", families=(family,), horizon=HORIZON).generate("heldout", 2)
    agents = {"mixed": TraceAgent([0, 3, 1, 2]), "none": FixedAgent("none", CHEAP)}
    pool = Pool(instances, seeds=[0], catalogue=CHEAP, reward=None, masks=False)
    jobs = [Job(one, 0, agent, episode_key(0, one, 0)) for one in instances.instances for agent in agents]
    found = []
    for number, block in enumerate(blocks(jobs)):
        found += [
            Record(
                block=number, variant="steps", digest=digest_of_agent(agents[job.agent]), key=job.key, split="test",
                catalogue=short(CHEAP.digest), machine=machine("cpu"), problem=problem_of(job.instance), run=run,
            )
            for job, run in zip(block, run_block(agents, block, pool, heldout=HeldOut()), strict=True)
        ]  # fmt: skip
    return found


def changed(record, **fields):
    return dataclasses.replace(record, run=dataclasses.replace(record.run, **fields))


def test_trace_is_repeated_and_begins_again_with_the_next_training():
    """An agent that goes on where the last training ended would replay another sequence."""
    agent, seen = TraceAgent([2, 0, 1]), []
    for _ in range(2):
        for decision in range(3):
            actions = agent.act(torch.zeros(2, 5))
            seen.append(actions.tolist())
            agent.observe(
                Feedback(actions=actions, observations=torch.zeros(2, 5), rewards=torch.zeros(2), done=decision == 2)
            )
    assert seen == [[2, 2], [0, 0], [1, 1]] * 2


def test_trace_refuses_a_longer_training_and_no_entries(tmp_path):
    """Repeating the last entry in silence would be another controller."""
    agent = TraceAgent([1])
    agent.observe(Feedback(actions=torch.ones(1), observations=torch.zeros(1, 1), rewards=torch.zeros(1), done=False))
    with pytest.raises(InputError, match="the trace has 1 decisions, the training more"):
        agent.act(torch.zeros(1, 1))
    with pytest.raises(InputError, match="one or more entries"):
        TraceAgent([])
    agent.save(tmp_path / "trace.json")
    assert json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["trace"] == [1]


def test_static_mixture_has_the_frequencies_and_no_memory():
    """20,000 draws: shares within 5 standard errors, pairs of neighbours as if independent (false alarm below 1e-5)."""
    shares = frequencies([("none", "none", "cutmix-1", "none"), ("mixup-1", "none", "none", "cutmix-1")])
    assert shares == {"none": 0.625, "cutmix-1": 0.25, "mixup-1": 0.125}
    trace = static_trace(shares, 20_000, key=7)
    counts, pairs = collections.Counter(trace), collections.Counter(itertools.pairwise(trace))
    for name, share in shares.items():
        assert abs(counts[name] / 20_000 - share) < 5 * (share * (1 - share) / 20_000) ** 0.5
        for other, own in shares.items():
            product = share * own
            assert abs(pairs[name, other] / 19_999 - product) < 6 * (product / 19_999) ** 0.5
    assert trace == static_trace(shares, 20_000, key=7)
    assert trace != static_trace(shares, 20_000, key=8)
    # What is drawn at a decision does not depend on how many follow.
    assert static_trace(shares, 5, key=7) == trace[:5]


def test_static_mixture_of_one_entry_is_that_entry():
    """Rounding must never lead beyond the last share."""
    assert set(static_trace({"none": 1.0}, 100, key=1)) == {"none"}
    with pytest.raises(InputError, match="sum to 1"):
        static_trace({"none": 0.4}, 3, key=1)
    with pytest.raises(InputError, match="one or more choices"):
        frequencies([])


def test_recorded_runs_come_out_again_to_the_last_bit(records):
    """The record is the proof of the published numbers."""
    seen = []
    assert replay(records, CHEAP, progress=lambda done, total: seen.append((done, total))) == []
    assert seen == [(2, 4), (4, 4)]


@pytest.mark.parametrize("field", ["accuracy", "score"])
def test_changed_score_is_found_with_its_line(records, field):
    """One wrong digit in one row has to be seen."""
    value = getattr(records[2].run, field)
    wrong = [*records[:2], changed(records[2], **{field: value + 1e-9}), records[3]]
    (found,) = replay(wrong, CHEAP)
    assert (found.row, found.allowed, found.chosen) == (4, 0.0, None)
    assert getattr(found.run, field) == value


def test_changed_action_is_found(records):
    """A trace that was not the one that was trained gives another classifier."""
    (found,) = replay([changed(records[0], actions=("cutmix-1",) * HORIZON), *records[1:]], CHEAP)
    assert found.row == 2


def test_another_machine_has_the_stated_tolerance_and_no_more(records):
    """Rounding differs there, but results may not be just anything."""

    def elsewhere(shift):
        moved = changed(records[0], accuracy=records[0].run.accuracy + shift)
        return [dataclasses.replace(moved, machine="cuda")]

    assert replay(elsewhere(0.9 * TOLERANCE), CHEAP) == []
    (found,) = replay(elsewhere(1.1 * TOLERANCE), CHEAP)
    assert found.allowed == TOLERANCE
    assert len(replay(elsewhere(1.1 * TOLERANCE), CHEAP, tolerance=0.5)) == 0
    (broken,) = replay(elsewhere(float("nan")), CHEAP)
    assert broken.row == 2


def test_policy_that_chooses_otherwise_now_is_found(records):
    """Scores that come out again do not yet show that this policy made those choices."""
    own = digest_of_agent(TraceAgent([0, 3, 1, 2]))
    assert replay(records, CHEAP, policy=(own, TraceAgent([0, 3, 1, 2]))) == []
    found = replay(records, CHEAP, policy=(own, TraceAgent([0, 3, 1, 1])))
    assert [one.row for one in found] == [2, 4]
    assert found[0].chosen == tuple(CHEAP.names[entry] for entry in (0, 3, 1, 1))


def test_runs_of_another_catalogue_are_refused(records):
    """The same names may mean other mixes."""
    with pytest.raises(CheckpointError, match="line 2 has the catalogue"):
        replay(records, catalogue("v0"))
