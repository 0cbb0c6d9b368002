"""Blocks of trainings: agents that choose alike share one, and get what they would have got alone."""

from __future__ import annotations

import pytest

from rlmix.agents.baselines.fixed import FixedAgent
from rlmix.agents.jobs import Job, episode_key, run_block
from rlmix.agents.replay import TraceAgent
from rlmix.envs.heldout import HeldOut
from rlmix.envs.instances import Family, Recipe
from rlmix.envs.pool import Pool
from rlmix.policy.codec import catalogue

CHEAP = catalogue("cheap")
TRACES = ([0, 0, 0, 0], [2, 2, 0, 0], [2, 2, 3, 0], [2, 2, 0, 0], [0, 4, 4, 4], [3, 3, 3, 3])


@pytest.fixture(params=["mlp", "convnet", "convnet-batchnorm"])
def setting(request):
    """Two trainings twice, six agents, and a pool."""
    family = Family(data="digits", model=request.param, total_steps={16: 1}, train_size=(100, 200), noise=(0.0, 0.4))
    instances = Recipe(name="tiny", families=(family,), horizon=4).generate("heldout", 2)
    agents = {f"trace-{number}": TraceAgent(trace) for number, trace in enumerate(TRACES)}
    agents["none"] = FixedAgent("none", CHEAP)
    jobs = [
        Job(one, replicate, agent, episode_key(0, one, replicate))
        for one in instances.instances
        for replicate in range(2)
        for agent in agents
    ]
    return agents, jobs, Pool(instances, seeds=[0], catalogue=CHEAP, reward=None, masks=False)


@pytest.mark.parametrize("split", ["test", "reward"])
def test_runs_side_by_side_are_those_of_each_alone(setting, split):
    """To the last bit: a run must not depend on who else was evaluated."""
    agents, jobs, pool = setting
    together = run_block(agents, jobs, pool, heldout=HeldOut(), split=split)
    alone = [run_block(agents, [job], pool, heldout=HeldOut(), split=split)[0] for job in jobs]
    assert together == alone
    assert len({run.score for run in together if run.instance == jobs[0].instance.id and run.replicate == 0}) == 5


def test_agents_that_choose_alike_share_one_training(setting, monkeypatch):
    """Of seven agents two begin differently from the rest; at the end there are five different trainings of each."""
    agents, jobs, pool = setting
    sizes, step = [], Pool.step
    monkeypatch.setattr(Pool, "step", lambda self, actions: (sizes.append(len(actions)), step(self, actions))[1])
    run_block(agents, jobs, pool, heldout=HeldOut())
    assert sizes == [4 * 3, 4 * 4, 4 * 5, 4 * 5]
    assert len(pool.slots) == 4


def test_a_shared_training_tells_each_agent_what_it_would_see_alone(setting):
    """Observations and actions reach every agent, in the order of its jobs."""
    _, jobs, pool = setting
    seen = {}

    class Watching(TraceAgent):
        def observe(self, feedback):
            seen.setdefault(id(self), []).append(feedback)
            super().observe(feedback)

    pair = {"first": Watching(TRACES[1]), "second": Watching(TRACES[2])}
    both = [Job(job.instance, job.replicate, name, job.key) for job in jobs[::7] for name in pair]
    run_block(pair, both, pool, heldout=HeldOut())
    first, second = (seen[id(agent)] for agent in pair.values())
    for decision, (one, other) in enumerate(zip(first, second, strict=True)):
        assert len(one.observations) == len(other.observations) == 4
        assert (one.observations == other.observations).all().item() == (decision < 2)
        assert one.actions.tolist() == [TRACES[1][decision]] * 4
