"""The learner: what it learns from, that nothing stops or doubles it, and that it learns."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("alembic", reason="the extra `serve` is not installed")

from rlmix.agents.ppo_update import Batch, UpdateOptions, trainable
from rlmix.errors import CheckpointError, ConfigError, ConflictError, FencedError, PolicyError, RlmixError
from rlmix.ops import rng
from rlmix.ops.rng import Streams
from rlmix.policy.artifact import DOCUMENT, TENSORS, LearnedPolicy, save
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.parametric import find_codec
from rlmix.policy.untrained import untrained
from rlmix.service import learner
from rlmix.service.experience import ACCURACY, TS_NLL, Experience, score_of
from rlmix.service.failpoints import CODE
from rlmix.service.learner import LearnerReport, LearnerSettings, check, learn
from rlmix.service.policies import Policies
from rlmix.service.records import DecisionRecord, Ended, Feedback, PolicyVersion, Run, Spec
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import MEMORY, open_storage

HORIZON = 4
ENTRIES = catalogue("cheap")
# Which entry is the best for which data.
BEST = {"plain": 1, "noisy": 3}
WHOLE = {"project": "p", "policy": "q", "alias": "a"}


def settings(**changes: Any) -> LearnerSettings:
    return LearnerSettings(**{**WHOLE, "runs_per_update": 6, "lease_seconds": 0.2, **changes})


def publish(storage: AbstractStorage, policy: LearnedPolicy, folder: Path, revision: int = 0) -> PolicyVersion:
    """Add a policy as a version, and let the alias lead to it."""
    save(folder, policy)
    document, tensors = (storage.put_blob((folder / name).read_bytes())[0] for name in (DOCUMENT, TENSORS))
    version, _ = storage.add_version("p", "q", document, tensors)
    storage.set_alias("p", "q", "a", version.number, revision)
    return version


def begun(folder: Path, policy: LearnedPolicy | None = None) -> AbstractStorage:
    """Return a storage in memory with an untrained policy."""
    storage = open_storage(MEMORY)
    storage.create_project("p")
    publish(storage, policy or untrained(ENTRIES, horizon=HORIZON, hidden=(16, 16)), folder)
    return storage


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[AbstractStorage]:
    with contextlib.closing(begun(tmp_path / "policy")) as made:
        yield made


def spec(data: str) -> Spec:
    return {"total_steps": 80, "num_classes": 10, "num_examples": None, "label/data": data}


def trained(storage: AbstractStorage, policies: Policies, number: int, *, noise: float = 0.01) -> float:
    """Run one training, whose score says how often it chose the best entry for its data; return that share."""
    data = ("plain", "noisy")[number % 2]
    run, _ = storage.create_run("p", f"r{number:04d}", "q", "a", spec(data))
    policy = policies.get(run.version.document, run.version.tensors).policy
    drawn = torch.Generator().manual_seed(number)
    observations = torch.randn(HORIZON, len(policy.observation_names), generator=drawn) / 3
    observations[:, policy.observation_names.index("context/n")] = -0.5 if data == "plain" else 0.5
    observations = torch.clamp(observations, policy.low, policy.high)
    keys = [rng.derive(number, seq) for seq in range(HORIZON)]
    entries = policy.entries(observations, None, Streams(keys))
    probabilities = policy.probabilities(observations)
    for seq, entry in enumerate(entries.tolist()):
        storage.put_decision("p", run.name, DecisionRecord(
            seq=seq, attempt=1, step=20 * seq, observation=observations[seq].numpy().astype("<f4").tobytes(),
            allowed=None, explore=keys[seq], origin="server", entry=entry,
            decision=json.dumps(ENTRIES.decisions[entry].to_json(), sort_keys=True),
            probability=float(probabilities[seq, entry]), value=None, issued=0,
        ))  # fmt: skip
    share = float((entries == BEST[data]).double().mean())
    accuracy = 0.7 + 0.1 * share + noise * float(torch.randn((), generator=drawn))
    values = {ACCURACY: accuracy, TS_NLL: math.log(10)}
    storage.put_feedback("p", run.name, Feedback(seq=HORIZON - 1, values=values, received=0), 1)
    storage.end_run("p", run.name, "finished", 1)
    return share


def documents(storage: AbstractStorage) -> list[str]:
    return [version.document for version in storage.versions("p", "q", 0, 500)]


# What is learned from.


def decision(seq: int, **changes: Any) -> DecisionRecord:
    values = torch.full((4,), 0.25).numpy().astype("<f4").tobytes()
    made = DecisionRecord(
        seq=seq, attempt=1, step=10 * seq, observation=values, allowed=None, explore=7, origin="server", entry=0,
        decision="{}", probability=0.25, value=None, issued=0,
    )  # fmt: skip
    return replace(made, **changes)


def small_policy(names: tuple[str, ...] = ("time/progress", "context/n", "has/n", "has/val")) -> LearnedPolicy:
    size, entries = len(names), len(ENTRIES)
    head, critic = (torch.zeros(entries, size), torch.zeros(entries)), (torch.zeros(1, size), torch.zeros(1))
    return LearnedPolicy(
        network=PolicyNetwork(actor=(head,), critic=(critic,)), observation_names=names, low=torch.full((size,), -1.0),
        high=torch.ones(size), catalogue=ENTRIES, horizon=4, card={},
    )  # fmt: skip


def ended(
    *decisions: DecisionRecord, values: dict[str, float] | None = None, at: int | None = None, **run: Any
) -> Ended:
    """Return a run with feedback on its last decision, or on decision `at`."""
    version = PolicyVersion(project="p", policy="q", number=1, document="d", tensors="t", created=0)
    made = Run(
        name="r", spec=spec("plain"), alias="a", version=version, state="finished", attempt=1, next_seq=len(decisions),
        created=0, renewed=0, ended=0,
    )  # fmt: skip
    seq = decisions[-1].seq if at is None and decisions else at or 0
    given = {ACCURACY: 0.8, TS_NLL: 1.0} if values is None else values
    feedback = (Feedback(seq=seq, values=given, received=0),) if given else ()
    return Ended(cursor=1, run=replace(made, **run), decisions=decisions, feedback=feedback)


def test_the_score_is_accuracy_and_calibrated_likelihood() -> None:
    """It must be the one that agents are trained with, or a policy would be pulled two ways."""
    from rlmix.envs.reward import measure

    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0)).double()
    labels = logits.argmax(1).roll(3)
    labels[:120] = logits.argmax(1)[:120]
    scores = measure(logits, labels)
    values = {ACCURACY: float(scores.accuracy), TS_NLL: float(scores.ts_nll)}
    assert score_of(ended(decision(0), values=values)) == pytest.approx(float(scores.score), abs=1e-12)


@pytest.mark.parametrize(
    "run",
    [
        ended(decision(0), values={}),
        ended(decision(0), values={ACCURACY: 0.8}),
        ended(decision(0), values={ACCURACY: 80.0, TS_NLL: 1.0}),
        ended(decision(0), values={ACCURACY: 0.8, TS_NLL: -1.0}),
        ended(decision(0), decision(1), at=0),
        ended(decision(0), state="failed"),
        ended(decision(0), state="cancelled"),
        ended(decision(0), spec={"num_classes": 1}),
        ended(),
    ],
)
def test_a_run_without_a_final_score_is_neither_good_nor_bad(run: Ended) -> None:
    """Counted as bad, a training whose machine died would teach the policy to avoid what it had chosen."""
    experience, policy = Experience(), small_policy()
    experience.add(run, policy, policy)
    assert (experience.counts.read, experience.counts.censored) == (1, 1)
    assert (experience.ready, experience.aside) == (0, 0)
    experience.add(ended(decision(0)), policy, policy)
    experience.add(ended(decision(0)), policy, policy)
    assert (experience.ready, experience.aside) == (0, 2)


def taken(*runs: Ended) -> Batch:
    """Return the decisions of the runs, and of others of their kind that make them comparable."""
    experience, policy = Experience(), small_policy()
    for run in (*runs, ended(decision(0)), ended(decision(0))):
        experience.add(run, policy, policy)
    return experience.take()[0]


def test_only_what_the_policy_drew_is_learned_about() -> None:
    """A held decision, or the most probable entry, says nothing of a distribution that it was not drawn from."""
    changes: tuple[dict[str, Any], ...] = (
        {}, {"origin": "snapshot"}, {"origin": "held", "probability": None}, {"explore": None}, {"probability": None},
        {"allowed": (0, 2), "probability": 0.5},
    )  # fmt: skip
    found = taken(ended(*(decision(seq, **change) for seq, change in enumerate(changes))))
    assert found.known.tolist()[: len(changes)] == [True, True, False, False, False, True]
    assert found.log_probabilities[5].exp() == pytest.approx(0.5)
    assert found.allowed[5].tolist() == [True, False, True, False, False]
    assert found.ends.tolist() == [False, False, False, False, False, True, True, True]
    silent, policy = Experience(), small_policy()
    silent.add(ended(decision(0, explore=None)), policy, policy)
    assert (silent.counts.silent, silent.aside) == (1, 0)


def test_what_a_resumed_training_did_again_is_left_out() -> None:
    """The classifier that was measured did not come from the decisions that were lost with the checkpoint."""
    first = [decision(seq) for seq in range(4)]
    again = [decision(seq, attempt=2, step=10 * (seq - 2), entry=1) for seq in range(4, 6)]
    found = taken(ended(*first, *again))
    assert found.entries.tolist()[:4] == [0, 0, 1, 1]
    assert found.rewards.tolist()[:3] == [0.0, 0.0, 0.0]


def test_a_missing_decision_is_a_gap() -> None:
    """The decision before it must not be paid with what came after."""
    found = taken(ended(decision(0), decision(1), decision(3)))
    assert [math.isnan(reward) for reward in found.rewards.tolist()[:3]] == [False, True, False]
    assert found.known.tolist()[:3] == [True, False, True]


def test_the_reward_is_relative_to_the_others_of_a_kind() -> None:
    """Accuracies differ by tens of points between data sets, which is nobody's merit."""
    experience, policy = Experience(), small_policy()
    log_classes = math.log(10)

    def scored(accuracy: float, data: str) -> Ended:
        return ended(decision(0), values={ACCURACY: accuracy, TS_NLL: log_classes}, spec=spec(data))

    for accuracy, data in ((0.9, "plain"), (0.5, "noisy"), (0.94, "plain")):
        experience.add(scored(accuracy, data), policy, policy)
    assert (experience.ready, experience.aside) == (0, 3)
    experience.add(scored(0.91, "plain"), policy, policy)
    assert (experience.ready, experience.aside) == (3, 1)
    batch, mean = experience.take()
    wanted = [(0.9 - 0.925) / 0.05, (0.94 - 0.905) / 0.05, (0.91 - 0.92) / 0.05]
    assert batch.rewards.tolist() == pytest.approx(wanted, abs=1e-6)
    assert mean == pytest.approx(sum(wanted) / 3)
    assert (experience.ready, experience.aside, experience.counts.learned) == (0, 1, 3)
    # Of more than two deviations on either side nothing more is made.
    for accuracy in (0.1, 0.99):
        experience.add(scored(accuracy, "plain"), policy, policy)
    assert experience.take()[0].rewards.tolist() == [-2.0, 2.0]


def test_runs_of_another_policy_count_for_comparison_alone() -> None:
    """Their entries mean something else, and their scores are scores all the same."""
    experience, policy = Experience(), small_policy()
    entries = dict(zip(("other", *ENTRIES.names[1:]), ENTRIES.decisions, strict=True))
    foreign = replace(policy, catalogue=Catalogue(entries))
    renamed = small_policy(("time/progress", "context/n", "has/n", "has/model"))
    for taker in (foreign, renamed, None):
        experience.add(ended(decision(0)), taker, policy)
    experience.add(ended(decision(0)), policy, policy)
    assert (experience.counts.silent, experience.ready) == (3, 1)


def test_runs_without_company_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that grows with every training would end by filling the disk."""
    from rlmix.service import experience as module

    monkeypatch.setattr(module, "_ASIDE", 3)
    experience, policy = Experience(), small_policy()
    for number in range(5):
        experience.add(ended(decision(0), spec=spec(f"data {number}")), policy, policy)
    assert (experience.aside, experience.counts.dropped) == (3, 2)


# What is published.


def test_a_version_is_published_and_the_alias_moved(storage: AbstractStorage) -> None:
    """And a learner that finds nothing new leaves everything as it is."""
    policies, told = Policies(storage), []
    for number in range(8):
        trained(storage, policies, number)
    found = learn(storage, settings(), report=told.append)
    assert (found.updates, found.version, found.counts.read, found.counts.learned) == (1, 2, 8, 6)
    assert [one.updates for one in told] == [0, 1]
    assert (told[0].reward, told[0].statistics) == (None, None)
    assert told[1].statistics is not None
    assert told[1].statistics.decisions == 6 * HORIZON
    alias = storage.alias("p", "q", "a")
    assert (alias.version.number, alias.revision) == (2, 2)
    policy = policies.get(alias.version.document, alias.version.tensors).policy
    assert policy.card["runs"] == 6
    assert policy.card["parent"] == storage.version("p", "q", 1).document
    before = (documents(storage), storage.alias("p", "q", "a"), storage.learner("p", "q"))
    again = learn(storage, settings())
    assert (documents(storage), storage.alias("p", "q", "a"), storage.learner("p", "q")) == before
    assert (again.updates, again.version, again.counts.read) == (1, 2, 8)


class Died(Exception):  # noqa: N818  (it is what happened)
    """The process ended here."""


PLACES = ("after_update", "before_publish", "after_publish", "after_alias", "before_checkpoint", "after_checkpoint")


def fed(storage: AbstractStorage) -> None:
    """Put the runs of the first policy into a storage: the same in every storage."""
    first = storage.version("p", "q", 1)
    policies = Policies(storage)
    for number in range(20):
        # All are pinned to version 1, so that they do not depend on when the learner comes.
        assert storage.alias("p", "q", "a").version == first
        trained(storage, policies, number)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Any]:
    """Return what an uninterrupted learner publishes: documents, and its state."""
    with contextlib.closing(begun(tmp_path_factory.mktemp("policy"))) as storage:
        fed(storage)
        found = learn(storage, settings())
        assert found.updates >= 3
        return documents(storage), storage.learner("p", "q")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("time", [1, 3])
def test_a_learner_that_died_anywhere_comes_to_the_same_bits(
    storage: AbstractStorage, straight: tuple[list[str], Any], monkeypatch: pytest.MonkeyPatch, place: str, time: int
) -> None:
    """No version twice, none lost, and no run learned from twice."""
    fed(storage)
    passed = 0

    def fail(name: str) -> None:
        nonlocal passed
        passed += name == f"learner.{place}"
        if name == f"learner.{place}" and passed == time:
            raise Died

    monkeypatch.setattr(learner, "fail_point", fail)
    with pytest.raises(Died):
        learn(storage, settings())
    learn(storage, settings())
    assert (documents(storage), storage.learner("p", "q")) == straight
    alias = storage.alias("p", "q", "a")
    assert (alias.version.number, alias.revision) == (len(straight[0]), len(straight[0]))


def test_the_fail_points_are_all_there_are() -> None:
    """A place without a test is where the next learner dies."""
    assert learner.__file__ is not None
    text = Path(learner.__file__).read_text(encoding="utf-8")
    assert sorted(PLACES) == sorted(part.split('"')[0] for part in text.split('fail_point("learner.')[1:])


def test_it_does_not_matter_when_somebody_looks(tmp_path: Path, storage: AbstractStorage) -> None:
    """Runs that come one by one and runs that are all there must give the same versions."""
    fed(storage)
    learn(storage, settings())
    with contextlib.closing(begun(tmp_path / "other")) as other:
        fed(other)
        allowed = 0
        page = other.ended

        def some(project: str, policy: str, after: int, limit: int) -> Any:
            return [one for one in page(project, policy, after, limit) if one.cursor <= allowed][:3]

        other.ended = some  # type: ignore[method-assign]

        def more() -> bool:
            nonlocal allowed
            allowed += 1
            return allowed <= 20

        learn(other, settings(), more=more)
        assert documents(other) == documents(storage)


def test_an_alias_that_somebody_else_moved_is_left_alone(storage: AbstractStorage, tmp_path: Path) -> None:
    """Somebody who took a bad version back must not find it served again."""
    fed(storage)
    learn(storage, settings(runs_per_update=20))
    trained_version = storage.alias("p", "q", "a").version
    theirs = publish(storage, untrained(ENTRIES, horizon=HORIZON, hidden=(16, 16), seed=5), tmp_path / "theirs", 2)
    policies = Policies(storage)
    for number in range(100, 112):
        trained(storage, policies, number)
    for _ in range(2):
        with pytest.raises(ConflictError, match="leads to version 3, and version 2 was expected.*--adopt"):
            learn(storage, settings())
    assert storage.alias("p", "q", "a").version == theirs
    assert len(documents(storage)) == 4
    # Either way on: from theirs, or from the learner's own.
    found = learn(storage, settings(adopt=True))
    newest = storage.alias("p", "q", "a").version
    assert found.version == newest.number
    card = policies.get(storage.version("p", "q", 5).document, storage.version("p", "q", 5).tensors).policy.card
    assert card["parent"] == theirs.document
    assert trained_version.number == 2


def test_an_alias_that_was_moved_back_is_taken_up_again(storage: AbstractStorage, tmp_path: Path) -> None:
    """The other way out that the message names."""
    publish(storage, untrained(ENTRIES, horizon=HORIZON, hidden=(16, 16), seed=5), tmp_path / "theirs", 1)
    storage.set_alias("p", "q", "a", 1, 2)
    fed(storage)
    learn(storage, settings(runs_per_update=10))
    storage.set_alias("p", "q", "a", 2, storage.alias("p", "q", "a").revision)
    policies = Policies(storage)
    for number in range(100, 112):
        trained(storage, policies, number)
    with pytest.raises(ConflictError):
        learn(storage, settings(runs_per_update=10))
    published = storage.versions("p", "q", 0, 100)[-1]
    before = policies.get(published.document, published.tensors).policy.card["parent"]
    expected = next(version for version in storage.versions("p", "q", 0, 100) if version.document == before)
    storage.set_alias("p", "q", "a", expected.number, storage.alias("p", "q", "a").revision)
    learn(storage, settings(runs_per_update=10))
    assert storage.alias("p", "q", "a").version == published


def test_another_alias_is_another_matter(storage: AbstractStorage) -> None:
    """A learner that is told the wrong alias must not promote there."""
    learn(storage, settings())
    storage.set_alias("p", "q", "other", 1, 0)
    with pytest.raises(CheckpointError, match="moves the alias `a`, not `other`"):
        learn(storage, settings(alias="other"))
    learn(storage, settings(alias="other", adopt=True))


def test_only_one_learner_is_at_work(storage: AbstractStorage) -> None:
    """Two would learn from the same runs twice."""

    def second() -> bool:
        storage.acquire("learner/p/q", "another", 60)
        with pytest.raises(ConflictError, match="another learner is at work"):
            learn(storage, settings(lease_seconds=0.05))
        return False

    learn(storage, settings(lease_seconds=30.0), more=second)
    # After the first has ended, the next one begins at once.
    learn(storage, settings(lease_seconds=30.0))


def test_a_learner_that_was_overtaken_stops(storage: AbstractStorage) -> None:
    """After a long sleep its state is old, and somebody else has gone on."""
    fed(storage)

    def overtaken() -> bool:
        while storage.acquire("learner/p/q", "another", 60) is None:
            pass
        return True

    with pytest.raises(FencedError, match="another learner has taken over"):
        learn(storage, settings(runs_per_update=100, lease_seconds=0.01), more=overtaken)


def test_what_is_stored_must_answer_as_what_was_trained(
    storage: AbstractStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy that was written wrongly would decide for every training from now on."""
    fed(storage)
    fixed = learner._fixed

    def wrong(network: PolicyNetwork) -> PolicyNetwork:
        made = fixed(network)
        made.actor[-1][1][0] += 1e-3
        return made

    monkeypatch.setattr(learner, "_fixed", wrong)
    with pytest.raises(PolicyError, match="answers otherwise than the trained one"):
        learn(storage, settings())
    assert len(documents(storage)) == 1
    assert storage.alias("p", "q", "a").revision == 1
    policy = small_policy()
    batch = taken(ended(decision(0)))
    check(policy, trainable(policy.network), batch)


def test_what_cannot_be_trained_is_said(tmp_path: Path) -> None:
    """Before it is served for days in the belief that it learns."""
    policy = small_policy()
    codec = find_codec("hybrid", "cheap")
    head, critic = (torch.zeros(codec.outputs, 4), torch.zeros(codec.outputs)), (torch.zeros(1, 4), torch.zeros(1))
    hybrid = replace(
        policy, codec=codec, catalogue=codec.catalogue, network=PolicyNetwork(actor=(head,), critic=(critic,))
    )
    mute = replace(policy, network=PolicyNetwork(actor=policy.network.actor))
    for given, message in ((mute, "no critic"), (hybrid, "sets parameters")):
        storage = begun(tmp_path / message, given)
        with contextlib.closing(storage), pytest.raises(ConfigError, match=message):
            learn(storage, settings())
    with pytest.raises(ConfigError, match="runs_per_update"):
        settings(runs_per_update=0)


def test_a_damaged_checkpoint_is_one_message(storage: AbstractStorage) -> None:
    """As everywhere."""
    from rlmix.service.records import Learner

    fence = storage.acquire("learner/p/q", "me", 60)
    assert fence is not None
    digest, _ = storage.put_blob(b"damaged")
    storage.save_learner("p", "q", Learner(cursor=0, checkpoint=digest), lease="learner/p/q", fence=fence)
    storage.release("learner/p/q", "me")
    with pytest.raises(RlmixError):
        learn(storage, settings())


# As a process, beside the service.


@contextlib.contextmanager
def started(folder: Path, *arguments: str, fail: str = "") -> Iterator[subprocess.Popen[str]]:
    """Run `rlmix learn` on the database in a folder, and not longer than the test."""
    command = [sys.executable, "-c", "from rlmix.cli.main import main; main()", "learn", "--db", "sqlite:///x.db"]
    command += ["--project", "p", "--policy", "q", "--alias", "a", "--runs-per-update", "6", "--lease", "1", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RLMIX_FAILPOINT": fail}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=folder, env=environment, text=True, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_learner_is_killed_and_goes_on_beside_a_service(
    start: Callable[..., Any], straight: tuple[list[str], Any], tmp_path: Path
) -> None:
    """The service holds the database, in another process, and sees at once what is promoted."""
    pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
    address, _ = start("--port", "0", "--db", "sqlite:///x.db")
    with contextlib.closing(open_storage(f"sqlite:///{tmp_path}/x.db", shared=True)) as storage:
        storage.create_project("p")
        publish(storage, untrained(ENTRIES, horizon=HORIZON, hidden=(16, 16)), tmp_path / "policy")
        fed(storage)
        with started(tmp_path, fail="learner.after_alias:2") as killed:
            assert killed.wait() == CODE
        assert len(documents(storage)) == 3
        with started(tmp_path, "--out", "board") as going:
            text, problems = going.communicate()
        assert going.returncode == 0, problems
        assert f"`a` leads to version {len(straight[0])}" in text.splitlines()[-1]
        assert documents(storage) == straight[0]
        assert storage.learner("p", "q") == straight[1]
        with urllib.request.urlopen(f"{address}/v1/projects/p/policies/q/aliases/a") as reply:
            assert json.load(reply)["version"]["version"] == len(straight[0])
    assert list((tmp_path / "board").glob("events.*"))


@pytest.mark.slow
def test_a_learner_that_follows_waits_and_ends_at_ctrl_c(tmp_path: Path) -> None:
    """It is left running for weeks, and stopped by whoever restarts the machine."""
    url = f"sqlite:///{tmp_path}/x.db"
    with contextlib.closing(open_storage(url)) as storage:
        storage.create_project("p")
        publish(storage, untrained(ENTRIES, horizon=HORIZON, hidden=(16, 16)), tmp_path / "policy")
    with started(tmp_path, "--follow") as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("update 0: 0 trainings read")
        with contextlib.closing(open_storage(url, shared=True)) as storage:
            policies = Policies(storage)
            for number in range(8):
                trained(storage, policies, number)
            assert process.stdout.readline().startswith("update 1: 6 trainings read, 6 learned from")
            process.send_signal(signal.SIGINT)
            _, problems = process.communicate(timeout=60)
            assert (process.returncode, problems) == (130, "Stopped. The same command goes on.\n")
            # The lease is free at once.
            assert storage.acquire("learner/p/q", "another", 1) is not None


# That it learns.


def test_it_learns_which_entry_is_best_for_which_data(storage: AbstractStorage) -> None:
    """A constant policy is right in half of the trainings at most; uniform in a fifth."""
    policies = Policies(storage)
    given = settings(runs_per_update=16, learning_rate=3e-3, update=UpdateOptions(entropy=0.01))
    shares = []
    last: LearnerReport | None = None
    for number in range(320):
        shares.append(trained(storage, policies, number))
        if number % 16 == 15:
            last = learn(storage, given)
    assert last is not None
    assert (last.updates, last.counts.learned) == (20, 320)
    assert sum(shares[:32]) / 32 < 0.4
    for data in (0, 1):
        late = shares[256 + data :: 2]
        assert sum(late) / len(late) > 0.7
