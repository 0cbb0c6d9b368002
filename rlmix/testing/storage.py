"""What every storage of the policy service promises, as pytest classes.

A storage of your own is tested by a subclass with a fixture:

    class TestMyStorage(StorageContract):
        @pytest.fixture
        def storage(self):
            storage = MyStorage()
            yield storage
            storage.close()

`ServedContract` is the part that holds over HTTP too, for a client with the methods that the service has routes for: it
sends nothing that the service refuses for its form.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from rlmix.errors import ConflictError, FencedError, MissingError, StorageError
from rlmix.service.records import (
    LEASE_SECONDS,
    LOST_SECONDS,
    DecisionRecord,
    Feedback,
    Learner,
    PolicyVersion,
    Spec,
    Token,
)
from rlmix.service.storage.abstract import AbstractStorage

SPEC: Spec = {"total_steps": 100, "num_classes": 10, "num_examples": None, "label/data": "digits"}

TOKEN = Token(name="a", project=None, scopes=("read", "decide"), created=5, expires=None, revoked=None)


def record(seq: int, **changes: Any) -> DecisionRecord:
    """Return a decision of the service."""
    made = DecisionRecord(
        seq=seq,
        attempt=1,
        step=10 * seq,
        observation=bytes(range(20)),
        allowed=(0, 2, 3),
        explore=2**63 - 1,
        origin="server",
        entry=2,
        decision='{"method": "cutmix", "params": {}, "probability": 1.0}',
        probability=0.1 + 0.2,
        value=-1e-300,
        issued=1_800_000_000_000_000 + seq,
    )
    return replace(made, **changes)


def policy_in(storage: AbstractStorage, project: str = "p", policy: str = "q", text: bytes = b"one") -> PolicyVersion:
    """Add a version of a policy and let the alias `a` lead to it."""
    storage.create_project(project)
    document, tensors = storage.put_blob(text)[0], storage.put_blob(b"tensors")[0]
    version, _ = storage.add_version(project, policy, document, tensors)
    try:
        revision = storage.alias(project, policy, "a").revision
    except MissingError:
        revision = 0
    storage.set_alias(project, policy, "a", version.number, revision)
    return version


def run_in(storage: AbstractStorage, run: str = "r") -> AbstractStorage:
    """Begin a run of such a policy."""
    policy_in(storage)
    storage.create_run("p", run, "q", "a", SPEC)
    return storage


def found_by(storage: AbstractStorage, calls: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the calls (name of a method, arguments) after which something was there."""
    found = []
    for call in calls:
        try:
            getattr(storage, call[0])(*call[1:])
        except MissingError:
            continue
        found.append(call)
    return found


class ServedContract:
    """Tests that any storage passes, and any client of the service in front of one; each begins with an empty one."""

    @pytest.fixture
    def storage(self) -> AbstractStorage:
        """Return an empty storage. Subclasses override this, and close it afterwards."""
        raise NotImplementedError

    def test_a_project_is_made_once(self, storage: AbstractStorage) -> None:
        """A client that repeats itself after a lost reply must not fail."""
        assert storage.create_project("b")
        assert storage.create_project("a")
        assert not storage.create_project("b")
        assert storage.projects() == ("a", "b")

    def test_a_blob_is_what_its_digest_says(self, storage: AbstractStorage) -> None:
        """A digest is all that versions keep of a policy."""
        for data in (b"", b"\x00\xff" * 1000):
            digest, new = storage.put_blob(data)
            assert (digest, new) == (hashlib.sha256(data).hexdigest(), True)
            assert storage.put_blob(data) == (digest, False)
            assert storage.blob(digest) == data

    def test_what_is_not_there_is_missing(self, storage: AbstractStorage) -> None:
        """Anything but a MissingError would be answered as a fault of the service."""
        run_in(storage)
        calls: tuple[tuple[Any, ...], ...] = (
            ("blob", "0" * 64),
            ("add_version", "p", "q", "0" * 64, "1" * 64),
            ("add_version", "nobody", "q", *2 * [hashlib.sha256(b"one").hexdigest()]),
            ("version", "p", "q", 7),
            ("version", "p", "nobody", 1),
            ("versions", "nobody", "q", 0, 1),
            ("alias", "p", "q", "nobody"),
            ("set_alias", "p", "q", "a", 7, 1),
            ("create_run", "p", "new", "q", "nobody", SPEC),
            ("create_run", "nobody", "new", "q", "a", SPEC),
            ("create_run", "p", "new", "q", "a", SPEC, "0" * 64),
            ("run", "p", "nobody"),
            ("runs", "nobody", "", 1),
            ("claim_run", "p", "nobody"),
            ("end_run", "p", "nobody", "finished", 1),
            ("policies", "nobody"),
            ("aliases", "p", "nobody"),
            ("ended", "p", "nobody", 0, 1),
            ("put_decision", "p", "nobody", record(0)),
            ("decision", "p", "r", 7),
            ("decisions", "p", "nobody", -1, 1),
            ("put_feedback", "p", "r", Feedback(seq=7, values={"x": 1.0}, received=0), 1),
            ("feedbacks", "p", "nobody", -1, 1),
            ("feedback", "p", "r", 7),
        )
        assert found_by(storage, calls) == []

    def test_the_same_document_is_the_same_version(self, storage: AbstractStorage) -> None:
        """A learner that publishes again after a crash must not make a version twice."""
        first, second = policy_in(storage), policy_in(storage, text=b"two")
        assert (first.number, second.number) == (1, 2)
        assert storage.add_version("p", "q", first.document, first.tensors) == (first, False)
        assert storage.version("p", "q", 2) == second
        assert list(storage.versions("p", "q", 0, 10)) == [first, second]
        assert list(storage.versions("p", "q", 1, 10)) == [second]
        assert list(storage.versions("p", "q", 0, 1)) == [first]

    def test_policies_of_two_projects_are_apart(self, storage: AbstractStorage) -> None:
        """Equal names must not lead into somebody else's project."""
        mine, other = policy_in(storage), policy_in(storage, project="other", text=b"two")
        assert storage.alias("p", "q", "a").version == mine
        assert storage.alias("other", "q", "a").version == other

    def test_runs_of_two_projects_are_apart(self, storage: AbstractStorage) -> None:
        """Two teams that give their trainings one name must not write into each other's record."""
        answers = {"p": record(0, entry=2), "other": record(0, entry=3)}
        for project, answer in answers.items():
            version = policy_in(storage, project=project, text=project.encode())
            assert storage.create_run(project, "r", "q", "a", SPEC)[0].version == version
            assert storage.put_decision(project, "r", answer) == (answer, True)
        storage.end_run("other", "r", "finished", 1)
        assert {project: storage.decision(project, "r", 0) for project in answers} == answers
        assert [storage.run(project, "r").state for project in answers] == ["active", "finished"]

    def test_an_alias_moves_only_from_where_it_was_seen(self, storage: AbstractStorage) -> None:
        """Two learners that promote at once must not undo each other, nor must a way there and back go unseen."""
        policy_in(storage)
        policy_in(storage, text=b"two")
        assert storage.alias("p", "q", "a").revision == 2
        back = storage.set_alias("p", "q", "a", 1, 2)
        assert (back.version.number, back.revision) == (1, 3)
        for revision in (0, 1, 2, 4):
            with pytest.raises(ConflictError):
                storage.set_alias("p", "q", "a", 2, revision)
        assert storage.alias("p", "q", "a") == back

    def test_a_run_keeps_the_version_that_it_began_with(self, storage: AbstractStorage) -> None:
        """A training must not change its policy because somebody promotes another."""
        run_in(storage)
        before = storage.run("p", "r")
        policy_in(storage, text=b"two")
        assert storage.create_run("p", "r", "q", "a", SPEC) == (before, False)
        assert storage.run("p", "r") == before
        assert (before.version.number, before.state, before.spec, before.ended) == (1, "active", SPEC, None)
        assert storage.create_run("p", "s", "q", "a", SPEC)[0].version.number == 2

    def test_a_run_is_pinned_to_the_policy_that_the_training_has(self, storage: AbstractStorage) -> None:
        """An alias that moves between a look and a beginning would make the service refuse all its questions."""
        first = policy_in(storage)
        policy_in(storage, text=b"two")
        begun, new = storage.create_run("p", "r", "q", "a", SPEC, first.document)
        assert (begun.version, new) == (first, True)
        assert storage.create_run("p", "r", "q", "a", SPEC) == (begun, False)
        # A policy of another name is not this one, whatever it consists of.
        other = policy_in(storage, policy="other", text=b"three")
        with pytest.raises(MissingError):
            storage.create_run("p", "s", "q", "a", SPEC, other.document)

    def test_a_run_of_another_kind_under_the_same_name_is_refused(self, storage: AbstractStorage) -> None:
        """Two trainings that share a name would write into each other's record."""
        run_in(storage)
        policy_in(storage, policy="other")
        before = storage.run("p", "r")
        for policy, alias, spec in (("q", "a", {**SPEC, "total_steps": 99}), ("other", "a", SPEC), ("q", "b", SPEC)):
            with pytest.raises(ConflictError):
                storage.create_run("p", "r", policy, alias, spec)
        assert storage.run("p", "r") == before

    def test_runs_come_in_pages(self, storage: AbstractStorage) -> None:
        """Every run once, whatever the size of a page."""
        for name in ("c", "a", "b"):
            run_in(storage, name)
        assert [run.name for run in storage.runs("p", "", 2)] == ["a", "b"]
        assert [run.name for run in storage.runs("p", "b", 2)] == ["c"]
        assert list(storage.runs("p", "c", 2)) == []

    def test_a_run_ends_once(self, storage: AbstractStorage) -> None:
        """A repeated end must not move the time of the first; what a client did before may still arrive."""
        run_in(storage)
        ended = storage.end_run("p", "r", "finished", 1)
        assert ended.state == "finished"
        assert ended.ended is not None
        assert storage.end_run("p", "r", "finished", 1) == ended
        with pytest.raises(ConflictError):
            storage.end_run("p", "r", "failed", 1)
        with pytest.raises(ConflictError):
            storage.claim_run("p", "r")
        assert storage.run("p", "r") == ended
        with pytest.raises(ConflictError):
            storage.put_decision("p", "r", record(0))
        assert storage.put_decision("p", "r", record(0, origin="snapshot"))[1]

    def test_a_decision_is_read_as_it_was_written(self, storage: AbstractStorage) -> None:
        """A replay must be equal to the last bit, extreme numbers included."""
        run_in(storage)
        unweighed: dict[str, Any] = {"allowed": None, "explore": None, "probability": None, "value": None}
        plain = record(2**53 - 1, step=2**53 - 1, observation=bytes(20), **unweighed)
        for wanted in (record(3), plain, record(0, explore=0, allowed=(0,), probability=5e-324)):
            assert storage.put_decision("p", "r", wanted) == (wanted, True)
            assert storage.decision("p", "r", wanted.seq) == wanted
        assert [one.seq for one in storage.decisions("p", "r", -1, 10)] == [0, 3, 2**53 - 1]
        assert [one.seq for one in storage.decisions("p", "r", 0, 1)] == [3]

    def test_a_decision_never_changes(self, storage: AbstractStorage) -> None:
        """The answer that a client acts on is the first one, also where a new process would answer otherwise."""
        run_in(storage)
        first = record(0)
        storage.put_decision("p", "r", first)
        assert storage.put_decision("p", "r", record(0, entry=3, probability=0.5, issued=7)) == (first, False)
        assert storage.put_decision("p", "r", record(0, origin="snapshot")) == (first, False)
        others: tuple[dict[str, Any], ...] = (
            {"step": 9},
            {"observation": bytes(20)},
            {"allowed": None},
            {"explore": None},
            {"origin": "held", "entry": 3},
        )
        for changes in others:
            with pytest.raises(ConflictError):
                storage.put_decision("p", "r", record(0, **changes))
        assert storage.decision("p", "r", 0) == first

    def test_feedback_needs_its_decision_and_never_changes(self, storage: AbstractStorage) -> None:
        """What a learner has read must not be another thing later."""
        run_in(storage)
        storage.put_decision("p", "r", record(0))
        given = Feedback(seq=0, values={"val_accuracy": 0.1 + 0.2, "n": -1e12}, received=5)
        assert storage.put_feedback("p", "r", given, 1) == (given, True)
        assert storage.put_feedback("p", "r", replace(given, received=9), 1) == (given, False)
        with pytest.raises(ConflictError):
            storage.put_feedback("p", "r", replace(given, values={"val_accuracy": 0.3}), 1)
        assert storage.feedback("p", "r", 0) == given

    def test_feedback_comes_in_pages(self, storage: AbstractStorage) -> None:
        """Each once, in the order of the decisions, whenever it arrived."""
        run_in(storage)
        wanted = [Feedback(seq=seq, values={"loss": seq / 3}, received=seq) for seq in range(3)]
        for one in reversed(wanted):
            storage.put_decision("p", "r", record(one.seq))
            storage.put_feedback("p", "r", one, 1)
        assert list(storage.feedbacks("p", "r", -1, 2)) == wanted[:2]
        assert list(storage.feedbacks("p", "r", 1, 2)) == wanted[2:]

    def test_whoever_was_taken_over_from_may_not_write(self, storage: AbstractStorage) -> None:
        """A training that was believed dead, and is not, must not write into the record of the one that goes on."""
        run_in(storage)
        storage.put_decision("p", "r", record(0))
        storage.put_decision("p", "r", record(1))
        claimed = storage.claim_run("p", "r")
        assert (claimed.attempt, claimed.next_seq, claimed.state) == (2, 2, "active")
        for refused in (record(0), record(2), record(2, origin="snapshot")):
            with pytest.raises(FencedError):
                storage.put_decision("p", "r", refused)
        with pytest.raises(FencedError):
            storage.end_run("p", "r", "finished", 1)
        with pytest.raises(ConflictError):
            storage.put_decision("p", "r", record(2, attempt=3))
        mine = record(2, attempt=2)
        assert storage.put_decision("p", "r", mine) == (mine, True)
        # What came of a decision is known to whoever took it.
        values = {"loss": 1.0}
        storage.put_feedback("p", "r", Feedback(seq=1, values=values, received=0), 1)
        for seq, attempt in ((2, 1), (0, 2)):
            with pytest.raises(FencedError):
                storage.put_feedback("p", "r", Feedback(seq=seq, values=values, received=0), attempt)
        assert storage.end_run("p", "r", "failed", 2).state == "failed"

    def test_policies_and_aliases_are_listed(self, storage: AbstractStorage) -> None:
        """Each with where it leads."""
        first = policy_in(storage)
        policy_in(storage, policy="b")
        policy_in(storage, project="other", policy="z")
        assert storage.policies("p") == ("b", "q")
        storage.set_alias("p", "q", "0", first.number, 0)
        assert [(alias.name, alias.version) for alias in storage.aliases("p", "q")] == [("0", first), ("a", first)]

    def test_runs_that_ended_are_read_once_in_their_order(self, storage: AbstractStorage) -> None:
        """A learner that goes on from where it was must miss none and learn from none twice."""
        policy_in(storage)
        policy_in(storage, policy="other")
        for name, policy in (("c", "q"), ("a", "q"), ("x", "other"), ("b", "q"), ("on", "q")):
            storage.create_run("p", name, policy, "a", SPEC)
            storage.put_decision("p", name, record(0))
            storage.put_decision("p", name, record(1))
        came = Feedback(seq=1, values={"val_accuracy": 0.5}, received=3)
        storage.put_feedback("p", "a", came, 1)
        for name, state in (("b", "finished"), ("x", "finished"), ("a", "failed"), ("c", "cancelled")):
            storage.end_run("p", name, state, 1)  # type: ignore[arg-type]
            storage.end_run("p", name, state, 1)  # type: ignore[arg-type]
        found = list(storage.ended("p", "q", 0, 10))
        assert [one.run for one in found] == [storage.run("p", name) for name in ("b", "a", "c")]
        assert all(one.decisions == (record(0), record(1)) for one in found)
        assert [one.feedback for one in found] == [(), (came,), ()]
        assert [one.cursor for one in found] == sorted({one.cursor for one in found})
        assert list(storage.ended("p", "q", found[0].cursor, 1)) == found[1:2]
        assert list(storage.ended("p", "q", found[2].cursor, 1)) == []

    def test_of_writers_at_once_one_wins(self, storage: AbstractStorage) -> None:
        """Two replicas of one client that ask at the same moment must act alike."""
        run_in(storage)

        def ask(writer: int) -> list[tuple[DecisionRecord, bool]]:
            return [storage.put_decision("p", "r", record(seq, entry=writer)) for seq in range(20)]

        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(4)))
        for seq, stored in enumerate(storage.decisions("p", "r", -1, 100)):
            assert stored.seq == seq
            assert [answer[seq][0] for answer in answers] == 4 * [stored]
            assert sum(answer[seq][1] for answer in answers) == 1
        assert len(storage.decisions("p", "r", -1, 100)) == 20

    def test_what_fails_leaves_what_is_written_beside_it(self, storage: AbstractStorage) -> None:
        """Writes that are committed together must not fail together."""
        run_in(storage)
        storage.put_decision("p", "r", record(0))

        def write(seq: int) -> bool:
            wanted = record(seq) if seq % 2 else record(0, step=seq + 1)
            try:
                return storage.put_decision("p", "r", wanted)[1]
            except ConflictError:
                return False

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(write, range(2, 42))) == [seq % 2 == 1 for seq in range(2, 42)]
        assert len(storage.decisions("p", "r", 0, 100)) == 20


class StorageContract(ServedContract):
    """Tests that any storage passes; each begins with an empty one."""

    def test_what_only_the_service_asks_for_is_missing_too(self, storage: AbstractStorage) -> None:
        """The learner and the pages tell a wrong name from a fault by the same error."""
        run_in(storage)
        calls: tuple[tuple[Any, ...], ...] = (
            ("newest_runs", "nobody", 1),
            ("origins", "nobody", ["r"]),
            ("learner", "p", "nobody"),
            ("revoke_token", "nobody"),
            ("create_token", replace(TOKEN, project="nobody"), "0" * 64),
        )
        assert found_by(storage, calls) == []

    def test_numbers_that_no_request_may_bring_are_kept_exactly(self, storage: AbstractStorage) -> None:
        """The limits are the service's: a database that is copied must not lose what another release let in."""
        run_in(storage)
        wanted = record(2**53 - 1, observation=b"")
        assert storage.put_decision("p", "r", wanted) == (wanted, True)
        assert storage.decision("p", "r", wanted.seq) == wanted
        given = Feedback(seq=wanted.seq, values={"n": -1e300}, received=5)
        assert storage.put_feedback("p", "r", given, 1) == (given, True)
        assert storage.feedback("p", "r", wanted.seq) == given

    def test_the_newest_runs_come_first(self, storage: AbstractStorage) -> None:
        """Whoever looks wants to see what goes on now."""
        for name in ("c", "a", "b"):
            run_in(storage, name)
        assert [run.name for run in storage.newest_runs("p", 2)] == ["b", "a"]

    def test_the_origins_of_decisions_are_counted(self, storage: AbstractStorage) -> None:
        """Runs of equal names in other projects, and runs that were not asked for, do not count."""
        run_in(storage)
        run_in(storage, "none")
        run_in(storage, "unasked")
        policy_in(storage, project="other")
        storage.create_run("other", "r", "q", "a", SPEC)
        storage.put_decision("other", "r", record(0))
        storage.put_decision("p", "unasked", record(0))
        for seq, origin in enumerate(("server", "snapshot", "server")):
            storage.put_decision("p", "r", record(seq, origin=origin))
        assert storage.origins("p", ["r", "none"]) == {"r": {"server": 2, "snapshot": 1}, "none": {}}

    def test_runs_are_counted_by_phase(self, storage: AbstractStorage) -> None:
        """As each of them says it of itself, whoever was not heard while the service was away included."""
        for name in ("a", "b", "c"):
            run_in(storage, name)
        storage.end_run("p", "c", "failed", 1)
        begun = storage.run("p", "a").renewed
        for later, since in ((0, 0), (LEASE_SECONDS + 1, 0), (LOST_SECONDS + 1, 0), (LOST_SECONDS, begun + 10**12)):
            moment = begun + later * 1_000_000
            expected = Counter(storage.run("p", name).phase(moment, since) for name in ("a", "b", "c"))
            assert {phase: count for phase, count in storage.census(moment, since).items() if count} == expected
        assert storage.waiting() == 0

    def test_a_lease_has_one_holder(self, storage: AbstractStorage) -> None:
        """Two learners at once would publish twice."""
        assert storage.acquire("learner", "one", 60) == 1
        assert storage.acquire("learner", "two", 60) is None
        assert storage.acquire("another", "two", 60) == 1
        assert storage.acquire("learner", "one", 0) == 1
        # It has run out, so the next who comes has it.
        assert storage.acquire("learner", "two", 60) == 2
        assert storage.acquire("learner", "one", 60) is None
        storage.release("learner", "one")
        assert storage.acquire("learner", "one", 60) is None
        storage.release("learner", "two")
        assert storage.acquire("learner", "one", 60) == 3

    def test_where_learning_has_come_to_is_written_by_the_holder_alone(self, storage: AbstractStorage) -> None:
        """A learner that was suspended, and wakes up, must not undo what its successor has done."""
        policy_in(storage)
        assert storage.learner("p", "q") == Learner()
        digest, _ = storage.put_blob(b"checkpoint")
        state = Learner(cursor=7, checkpoint=digest)
        with pytest.raises(FencedError):
            storage.save_learner("p", "q", state, lease="learner", fence=1)
        fence = storage.acquire("learner", "one", 0)
        assert fence is not None
        storage.save_learner("p", "q", state, lease="learner", fence=fence)
        assert storage.learner("p", "q") == state
        storage.acquire("learner", "two", 60)
        with pytest.raises(FencedError):
            storage.save_learner("p", "q", Learner(cursor=9), lease="learner", fence=fence)
        with pytest.raises(MissingError):
            storage.save_learner("p", "q", Learner(cursor=9, checkpoint="0" * 64), lease="learner", fence=fence + 1)
        assert storage.learner("p", "q") == state

    def test_tokens_are_found_by_their_digest_and_stay_revoked(self, storage: AbstractStorage) -> None:
        """A token that opens again, or another than the one that was meant, is a hole."""
        storage.create_project("p")
        mine, other = replace(TOKEN, project="p"), replace(TOKEN, name="b", expires=9)
        storage.create_token(other, "1" * 64)
        storage.create_token(mine, "0" * 64)
        for clash in (("2" * 64, mine), ("0" * 64, replace(TOKEN, name="c"))):
            with pytest.raises(ConflictError):
                storage.create_token(clash[1], clash[0])
        assert storage.tokens() == (mine, other)
        assert (storage.token("0" * 64), storage.token("1" * 64), storage.token("2" * 64)) == (mine, other, None)
        revoked = storage.revoke_token("a")
        assert revoked.revoked is not None
        assert storage.revoke_token("a") == revoked == storage.token("0" * 64)
        assert storage.token("1" * 64) == other

    def test_a_closed_storage_says_so(self, storage: AbstractStorage) -> None:
        """A write that waits for ever would keep a request, and with it a training."""
        storage.check()
        storage.close()
        storage.close()
        with pytest.raises(StorageError):
            storage.create_project("p")
