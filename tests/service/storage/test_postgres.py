"""The storage contract over PostgreSQL, and what several processes and a lost database do to it."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy", reason="the extra `serve` is not installed")
pytest.importorskip("psycopg", reason="the extra `serve` is not installed")

from sqlalchemy import Connection, insert, text

from rlmix.errors import ConfigError, ConflictError, StorageError
from rlmix.policy.artifact import DOCUMENT, load
from rlmix.service.storage import postgres as module
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import open_storage
from rlmix.service.storage.postgres import Postgres, shown
from rlmix.service.storage.tables import projects
from rlmix.testing import StorageContract
from rlmix.testing.storage import SPEC, policy_in, record, run_in


class TestPostgres(StorageContract):
    """In PostgreSQL."""

    @pytest.fixture
    def storage(self, postgres: str) -> Iterator[AbstractStorage]:
        storage = open_storage(postgres)
        yield storage
        storage.close()


@pytest.fixture
def engine(postgres: str) -> Iterator[Postgres]:
    made = Postgres(postgres)
    yield made
    made.close()


def setting(connection: Connection, name: str) -> str:
    return str(connection.execute(text(f"SHOW {name}")).scalar())


def test_connections_are_set_as_the_promises_need(engine: Postgres) -> None:
    """A process that stops in the middle of a transaction must not stop all others for ever."""
    for run, isolation, read_only in ((engine.read, "repeatable read", "on"), (engine.write, "read committed", "off")):
        assert run(lambda connection: setting(connection, "transaction_isolation")) == isolation
        assert run(lambda connection: setting(connection, "transaction_read_only")) == read_only
        assert run(lambda connection: setting(connection, "statement_timeout")) == "15s"
        assert run(lambda connection: setting(connection, "lock_timeout")) == "5s"
        assert run(lambda connection: setting(connection, "idle_in_transaction_session_timeout")) == "10s"
    with pytest.raises(StorageError, match="read-only"):
        engine.read(lambda connection: connection.execute(text("DELETE FROM projects")))


def test_a_database_that_acknowledges_too_early_is_made_to_wait(engine: Postgres, postgres: str) -> None:
    """Somebody's setting for speed would take back what was acknowledged, at the next crash."""
    name = postgres.partition("?")[0].rpartition("/")[2]
    engine.write(lambda connection: connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off")))
    again = Postgres(postgres)
    assert again.write(lambda connection: setting(connection, "synchronous_commit")) == "on"
    again.close()


def test_names_have_the_same_order_as_on_sqlite(engine: Postgres) -> None:
    """A page of names goes on behind a name: an order of some language would skip or repeat some."""
    found = engine.read(
        lambda connection: connection.execute(
            text(
                "SELECT table_name, collation_name FROM information_schema.columns"
                " WHERE column_name = 'name' AND table_schema = 'public' AND table_name <> 'leases'"
            )
        ).all()
    )
    assert {collation for _, collation in found} == {"C"}
    assert {"projects", "policies", "policy_aliases", "runs"} <= {table for table, _ in found}


def test_a_write_that_comes_second_starts_again(engine: Postgres) -> None:
    """Between what one process has seen and what it writes, another may have written."""
    seen: list[int] = []

    def write(connection: Connection) -> int:
        seen.append(connection.execute(text("SELECT count(*) FROM projects")).scalar_one())
        if len(seen) == 1:
            engine.write(lambda other: other.execute(insert(projects).values(name="x", created=0)))
        if not seen[-1]:
            connection.execute(insert(projects).values(name="x", created=1))
        return len(seen)

    assert engine.write(write) == 2
    assert seen == [0, 1]


def test_a_write_that_never_succeeds_ends(engine: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of ours must not turn round for ever; one that time does not mend is not repeated at all."""
    monkeypatch.setattr(module, "_ATTEMPTS", 3)
    for name, tries in (("x", 3), (None, 1)):
        seen: list[int] = []

        def write(connection: Connection, name: str | None = name, seen: list[int] = seen) -> None:
            seen.append(1)
            for _ in range(2):
                connection.execute(insert(projects).values(name=name, created=1))

        with pytest.raises(StorageError, match="refuses"):
            engine.write(write)
        assert len(seen) == tries


def test_of_two_who_move_an_alias_at_once_one_fails(postgres: str) -> None:
    """Both have seen the same revision, in two processes: the second must not undo the first."""
    first, second = open_storage(postgres), open_storage(postgres)
    policy_in(first)
    policy_in(first, text=b"two")
    for revision in range(2, 12):
        together = threading.Barrier(2)

        def move(storage: AbstractStorage, revision: int = revision, together: Any = together) -> bool:
            together.wait()
            try:
                storage.set_alias("p", "q", "a", 1, revision)
            except ConflictError:
                return False
            return True

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(move, (first, second))) == [False, True]
    first.close()
    second.close()


def test_of_many_who_do_the_same_at_once_one_is_the_first(postgres: str) -> None:
    """Each says whether it was the one; exactly one may."""
    storages = [open_storage(postgres) for _ in range(4)]
    together = threading.Barrier(4)
    text_of = b"a policy"

    def begin(storage: AbstractStorage) -> list[object]:
        together.wait()
        made: list[object] = [storage.create_project("p")]
        together.wait()
        digest, new = storage.put_blob(text_of)
        together.wait()
        version, added = storage.add_version("p", "q", digest, digest)
        together.wait()
        if storage is storages[0]:
            storage.set_alias("p", "q", "a", 1, 0)
        together.wait()
        run, begun = storage.create_run("p", "r", "q", "a", SPEC)
        together.wait()
        ended = storage.end_run("p", "r", "finished", 1)
        return [*made, new, added, begun, version, run, ended]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(begin, storages))
    for place in range(4):
        assert sum(bool(answer[place]) for answer in answers) == 1
    assert all(answer[4:] == answers[0][4:] for answer in answers)
    for storage in storages:
        storage.close()


def test_servers_that_start_at_once_make_the_tables_once(postgres: str) -> None:
    """Two that are started by one command find the same empty database."""
    together = threading.Barrier(4)

    def begin(_: int) -> AbstractStorage:
        together.wait()
        return open_storage(postgres)

    with ThreadPoolExecutor(4) as pool:
        for storage in pool.map(begin, range(4)):
            storage.check()
            storage.close()


def test_a_database_that_is_lost_and_comes_back(postgres_server: Any, postgres: str) -> None:
    """The service says that it cannot write, and needs no restart; what it acknowledged is there."""
    storage = run_in(open_storage(postgres))
    for seq in range(20):
        storage.put_decision("p", "r", record(seq))
    postgres_server.kill()
    try:
        for call in (storage.check, lambda: storage.put_decision("p", "r", record(20)), storage.projects):
            with pytest.raises(StorageError):
                call()
        with pytest.raises(StorageError):
            open_storage(postgres)
    finally:
        postgres_server.start()
    storage.check()
    assert storage.put_decision("p", "r", record(20)) == (record(20), True)
    assert list(storage.decisions("p", "r", -1, 100)) == [record(seq) for seq in range(21)]
    storage.close()


WRITER = textwrap.dedent(
    """
    import sys
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier
    from rlmix.service.records import Feedback
    from rlmix.service.storage.opening import open_storage
    from rlmix.testing.storage import record

    storage = open_storage(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    together = Barrier(8)

    def write(writer):
        answers = []
        for seq in range(12):
            together.wait(60)
            entry = 10 * int(sys.argv[2]) + writer
            stored, new = storage.put_decision("p", "r", record(seq, entry=entry))
            given = Feedback(seq=seq, values={"x": float(seq)}, received=entry)
            feedback, first = storage.put_feedback("p", "r", given, 1)
            answers.append((stored.seq, stored.entry, new, feedback.received, first))
        return answers

    with ThreadPoolExecutor(8) as pool:
        for answers in pool.map(write, range(8)):
            print(*(" ".join(str(int(value)) for value in answer) for answer in answers), sep=",", flush=True)
    storage.close()
    """
)


def test_writers_in_two_processes_get_one_answer(postgres: str) -> None:
    """Sixteen writers ask the same twelve questions of two services: one decision each, whoever asks."""
    storage = run_in(open_storage(postgres))
    command = [sys.executable, "-W", "ignore", "-c", WRITER, postgres]
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(number)], **pipe) for number in range(2)]  # type: ignore[call-overload]
    try:
        assert [process.stdout.readline() for process in processes] == 2 * ["ready\n"]
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        lines = [line for process in processes for line in process.communicate(timeout=300)[0].splitlines()]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert len(lines) == 16
    answers = [[tuple(int(value) for value in one.split()) for one in line.split(",")] for line in lines]
    for seq, stored in enumerate(storage.decisions("p", "r", -1, 100)):
        received = storage.feedback("p", "r", seq).received
        mine = [answer[seq] for answer in answers]
        assert {(one[0], one[1], one[3]) for one in mine} == {(seq, stored.entry, received)}
        assert sum(one[2] for one in mine) == sum(one[4] for one in mine) == 1
    assert len(storage.decisions("p", "r", -1, 100)) == 12
    assert len({answer[seq][1] for answer in answers for seq in range(12)}) > 1
    storage.close()


Reply = tuple[int, bytes]


class Calls(threading.local):
    """Calls to some services, with connections of each thread."""

    def __init__(self, addresses: list[str]) -> None:
        hosts = [address.removeprefix("http://") for address in addresses]
        self.connections = [http.client.HTTPConnection(host, timeout=60) for host in hosts]

    def __call__(self, service: int, method: str, path: str, body: Any = None) -> Reply:
        data = None if body is None else json.dumps(body)
        place = f"/v1/projects/default/runs/r{path}"
        self.connections[service].request(method, place, data, {"Content-Type": "application/json"})
        reply = self.connections[service].getresponse()
        return reply.status, reply.read()

    def close(self) -> None:
        for connection in self.connections:
            connection.close()


@pytest.fixture
def both(start: Callable[..., Any], postgres: str, policy: Path) -> Iterator[Calls]:
    """Two services on one database, each a process of its own, in which a run has begun at the first."""
    calls = Calls([start("--port", "0", "--db", postgres, "--policy", str(policy))[0] for _ in range(2)])
    run = {"policy": "default", "alias": "default", "total_steps": 100, "num_classes": 10}
    assert [calls(service, "PUT", "", run)[0] for service in (0, 1)] == [201, 200]
    yield calls
    calls.close()


def test_whichever_of_two_services_is_asked_there_is_one_run(both: Calls, policy: Path) -> None:
    """Behind one address, a training reaches now this one and now the other, and must not notice."""
    names = load(policy).observation_names
    question = {
        "policy": hashlib.sha256((policy / DOCUMENT).read_bytes()).hexdigest(),
        "observation": [0.5] * len(names),
    }
    together = threading.Barrier(8)

    def ask(writer: int) -> list[Reply]:
        replies = []
        for seq in range(25):
            together.wait(60)
            body = {**question, "step": seq, "explore": hex(seq)}
            replies.append(both((writer + seq) % 2, "PUT", f"/decisions/{seq}", body))
        both.close()
        return replies

    with ThreadPoolExecutor(8) as pool:
        writers = list(pool.map(ask, range(8)))
    for seq, replies in enumerate(zip(*writers, strict=True)):
        assert sorted(status for status, _ in replies) == [*7 * [200], 201]
        # The time in it tells apart what two services would answer.
        assert {data for _, data in replies} == {both(service, "GET", f"/decisions/{seq}")[1] for service in (0, 1)}
    pages = [both(service, "GET", "/decisions?limit=500") for service in (0, 1)]
    assert pages[0] == pages[1]
    assert [one["seq"] for one in json.loads(pages[0][1])["decisions"]] == list(range(25))

    def refused(reply: Reply) -> tuple[int, object]:
        return reply[0], json.loads(reply[1]).get("title")

    # It is claimed at the other service: at the first, which has answered so far, whoever had it is shut out.
    claimed = both(1, "POST", ":claim")
    assert claimed == both(0, "GET", "")
    assert json.loads(claimed[1])["attempt"] == 2
    mine = {**question, "step": 25, "attempt": 2}
    assert refused(both(0, "PUT", "/decisions/25", {**mine, "attempt": 1})) == (409, "fenced")
    first, again = both(0, "PUT", "/decisions/25", mine), both(1, "PUT", "/decisions/25", mine)
    assert (first[0], again) == (201, (200, first[1]))
    # And it has ended at both.
    values = {"attempt": 2, "values": {"x": 0.5}}
    told = [both(service, "PUT", "/feedback/25", values) for service in (1, 0)]
    assert ([status for status, _ in told], told[0][1]) == ([201, 200], told[1][1])
    assert both(0, "POST", ":end", {"state": "finished", "attempt": 2}) == both(1, "GET", "")
    assert refused(both(1, "PUT", "/decisions/26", {**mine, "step": 26})) == (409, "conflict")


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:s@cret@host/db?x=1", "postgresql://me:***@host/db?x=1"),
        ("postgresql://host/db?user=me&password=secret&x=1", "postgresql://host/db?user=me&password=***&x=1"),
        ("postgresql://me@host:5432/db", "postgresql://me@host:5432/db"),
        ("sqlite:////srv/a:b@c.db", "sqlite:////srv/a:b@c.db"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, wanted: str) -> None:
    """Messages are logged, and logs are read by many."""
    assert shown(url) == wanted


@pytest.mark.parametrize("url", ["postgresql://me:secret@host:port/db", "postgresql://", "mysql://me:secret@host/db"])
def test_an_address_that_is_none_is_refused_without_its_password(url: str) -> None:
    """The same for what is refused."""
    with pytest.raises(ConfigError, match="no address of a database") as refused:
        open_storage(url)
    assert "secret" not in str(refused.value)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has served SQLite so far must learn what to install."""
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ImportError, match="pip install 'rlmix\\[serve\\]'"):
        open_storage("postgresql://host/db")


def test_calls_that_wait_are_counted_and_have_their_turn(engine: Postgres) -> None:
    """More threads than connections: nobody is turned away, and the number shows how many are too many."""
    go, begun = threading.Event(), threading.Semaphore(0)

    def hold(connection: Connection) -> int:
        begun.release()
        assert go.wait(30)
        return int(connection.execute(text("SELECT 1")).scalar_one())

    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(engine.read, hold) for _ in range(12)]
        for _ in range(8):
            assert begun.acquire(timeout=30)
        while engine.waiting() < 4:
            pass
        go.set()
        assert [answer.result() for answer in answers] == 12 * [1]
    assert engine.waiting() == 0


def test_a_closed_engine_is_not_read(engine: Postgres) -> None:
    """Connections that come back after the end would never be closed."""
    engine.close()
    calls: tuple[Callable[[Callable[[Connection], object]], object], ...] = (engine.read, engine.write)
    for run in calls:
        with pytest.raises(StorageError, match="closed"):
            run(lambda connection: None)
