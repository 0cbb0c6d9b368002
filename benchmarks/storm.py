"""A service in a process of its own, writers that remember what it acknowledged, and the comparison of the two."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlmix.policy.artifact import DOCUMENT, load
from rlmix.service.failpoints import CODE, VARIABLE

PROJECT = "/v1/projects/default"
WRITERS = 8

# A writer begins a new run after so many decisions, and takes over from itself in the middle.
_RUN = 60
_CLAIM = 25
_BLOB = 20
_BLOB_BYTES = 50_000
_TIMEOUT_SECONDS = 60
_TURN_SECONDS = 0.02


class Service:
    """`rlmix serve`, which can be killed and started again. Every start takes a free port.

    Args:
        folder: where it runs, and writes what it has to say.
        db: address of its database.
        policy: folder of the policy that it serves.
    """

    def __init__(self, folder: Path, db: str, policy: Path) -> None:
        self.db, self.port = db, 0
        self._folder, self._policy = folder, policy
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, fail_point: str | None = None) -> float:
        """Start it; return after how many seconds /readyz answered 200.

        Args:
            fail_point: where the process is to end by itself, `NAME:COUNT`.
        """
        command = [sys.executable, "-c", "from rlmix.cli.main import main; main()", "serve", "--port", "0"]
        command += ["--db", self.db, "--policy", str(self._policy)]
        surroundings = {**os.environ, "OMP_NUM_THREADS": "1"}
        if fail_point is not None:
            surroundings[VARIABLE] = fail_point
        begun = time.perf_counter()
        with (self._folder / "serve.log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=surroundings, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("rlmix serves http://"), line or f"ended with {self.wait()}"
        self.port = int(line.split()[2].rpartition(":")[2])
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", "/readyz")
            answer = connection.getresponse()
            said = answer.read()
        assert answer.status == 200, said
        return time.perf_counter() - begun

    def cpu_seconds(self) -> float:
        """Return how long it has computed, which other work on the machine hardly changes (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def connection(self) -> http.client.HTTPConnection:
        """Return a connection to it, of a client."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_TIMEOUT_SECONDS)

    def kill(self, number: int = signal.SIGKILL) -> int:
        """Send it a signal, and return its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code once it has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        code = self._process.wait(_TIMEOUT_SECONDS)
        self._process.stdout.close()
        self._process = None
        return code

    def close(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self.kill()


def question_for(policy: Path) -> dict[str, Any]:
    """Return a question that fits a policy."""
    digest = hashlib.sha256((policy / DOCUMENT).read_bytes()).hexdigest()
    names = load(policy).observation_names
    return {"policy": digest, "observation": [round(0.01 * place, 2) for place in range(len(names))]}


RUN = {"policy": "default", "alias": "default", "total_steps": 1000, "num_classes": 10, "labels": {"data": "storm"}}


@dataclass
class Ledger:
    """What a writer knows of what is stored.

    Attributes:
        replies: path of a decision or feedback -> what was acknowledged, byte for byte.
        blobs: path -> the bytes.
        runs: name -> (attempt, state).
        sending: path of the request whose reply has not come yet.
        decided: decisions that were acknowledged.
        reported: feedback that was.
        repeated: requests that were sent a second time after they had been acknowledged.
        faults: answers that should not have been.
    """

    replies: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    runs: dict[str, tuple[int, str]] = field(default_factory=dict)
    sending: str | None = None
    decided: int = 0
    reported: int = 0
    repeated: int = 0
    faults: list[str] = field(default_factory=list)


class Writer(threading.Thread):
    """A training after the other, until it is told to stop; what is not acknowledged is sent again.

    Args:
        number: of the writer; its runs are named by it.
        service: whom it asks, while `up` is set.
        up: whether it may.
        stopping: ends it after the request under way.
        question: what it asks.
    """

    def __init__(
        self, number: int, service: Service, up: threading.Event, stopping: threading.Event, question: dict[str, Any]
    ) -> None:
        super().__init__(name=f"writer-{number}")
        self.ledger = Ledger()
        self._number, self._service, self._question = number, service, question
        self._up, self._stopping = up, stopping
        self._rng = np.random.Generator(np.random.PCG64(number))
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        try:
            for turn in range(10**9):
                self._training(f"w{self._number}-{turn}")
        except InterruptedError:
            pass
        except Exception as error:
            self.ledger.faults.append(repr(error))
        finally:
            self._hang_up()

    def _training(self, run: str) -> None:
        """Begin a run, decide and report, and end it."""
        base, attempt, known = f"{PROJECT}/runs/{run}", 1, self.ledger
        self._send("PUT", base, RUN)
        known.runs[run] = (1, "active")
        held: dict[str, Any] = {}
        for seq in range(_RUN):
            if seq == _CLAIM:
                attempt = json.loads(self._send("POST", f"{base}:claim"))["attempt"]
                known.runs[run] = (attempt, "active")
            asked = {**self._question, "step": 10 * seq, "explore": hex(1000 * self._number + seq), "attempt": attempt}
            if seq % 10 == 9:
                asked["taken"] = {"origin": "held", "entry": held["entry"], "decision": held["decision"]}
            held = json.loads(self._put(f"{base}/decisions/{seq}", asked))
            known.decided += 1
            told = {"attempt": attempt, "values": {"loss": seq / 7, "accuracy": float(self._rng.random())}}
            self._put(f"{base}/feedback/{seq}", told)
            known.reported += 1
            if self._rng.random() < 0.1:
                place, body = ("decisions", asked) if self._rng.random() < 0.5 else ("feedback", told)
                self._put(f"{base}/{place}/{seq}", body)
                known.repeated += 1
            if seq % _BLOB == 0:
                data = self._rng.bytes(_BLOB_BYTES)
                path = f"/v1/blobs/sha256/{hashlib.sha256(data).hexdigest()}"
                self._send("PUT", path, data)
                known.blobs[path] = data
        state = ("finished", "failed", "cancelled")[int(self._rng.integers(3))]
        self._send("POST", f"{base}:end", {"state": state, "attempt": attempt})
        known.runs[run] = (attempt, state)

    def _put(self, path: str, body: dict[str, Any]) -> bytes:
        """Send what is to be stored once, and hold it against what was acknowledged before."""
        data = self._send("PUT", path, body)
        if self.ledger.replies.setdefault(path, data) != data:
            self.ledger.faults.append(f"{path}: acknowledged {self.ledger.replies[path]!r}, and then {data!r}")
        return data

    def _send(self, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> bytes:
        """Send until it is acknowledged.

        Raises:
            InterruptedError: the writer is to stop.
        """
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        content = json.dumps(body).encode() if isinstance(body, dict) else body
        while not self._stopping.is_set():
            if not self._up.wait(_TURN_SECONDS):
                continue
            self.ledger.sending = path
            try:
                if self._connection is None:
                    self._connection = self._service.connection()
                self._connection.request(method, path, content, {"Content-Type": kind} if content else {})
                answer = self._connection.getresponse()
                data = answer.read()
            except (OSError, http.client.HTTPException):
                self._hang_up()
                self._stopping.wait(_TURN_SECONDS)
                continue
            if answer.status in (200, 201):
                self.ledger.sending = None
                return data
            if answer.status != 503:
                raise AssertionError(f"{method} {path}: {answer.status} {data[:500]!r}")
            self._stopping.wait(_TURN_SECONDS)
        raise InterruptedError

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass
class Report:
    """What a storm has found.

    Attributes:
        decided: decisions that were acknowledged.
        reported: feedback that was.
        repeated: requests that were sent again although they had been acknowledged.
        deaths: how often the service ended.
        recovery: seconds from each start until it was ready.
        computed: CPU seconds of that: what would be left of it on an idle machine.
        lost: paths that were acknowledged and are not there.
        changed: paths that are there, and otherwise.
        unknown: paths that are there, and that nobody has sent, or that are there twice.
        faults: answers that should not have been.
    """

    decided: int = 0
    reported: int = 0
    repeated: int = 0
    deaths: int = 0
    recovery: list[float] = field(default_factory=list)
    computed: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    @property
    def wrong(self) -> tuple[list[str], ...]:
        """Everything that must be empty, the first few of each."""
        return tuple(found[:3] for found in (self.lost, self.changed, self.unknown, self.faults))

    def __str__(self) -> str:
        return (
            f"{self.deaths} deaths; {self.decided} decisions and {self.reported} feedback acknowledged, "
            f"{self.repeated} sent again; lost {len(self.lost)}, changed {len(self.changed)}, unknown or twice "
            f"{len(self.unknown)}, faults {len(self.faults)}; recovery at most {max(self.recovery):.2f} s, "
            f"median {np.median(self.recovery):.2f} s, {max(self.computed):.2f} s of CPU at most"
        )


class Storm:
    """Writers on a service, and the record of what became of what they wrote.

    Args:
        service: which does not run yet.
        policy: folder of its policy.
        writers: how many.
    """

    def __init__(self, service: Service, policy: Path, writers: int = WRITERS) -> None:
        self.service, self.report = service, Report()
        self._up, self._stopping = threading.Event(), threading.Event()
        question = question_for(policy)
        self.writers = [Writer(number, service, self._up, self._stopping, question) for number in range(writers)]

    def __enter__(self) -> Storm:
        for writer in self.writers:
            writer.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()
        self.service.close()

    def begin(self, fail_point: str | None = None) -> None:
        """Start the service, compare while all is quiet, and let the writers go."""
        self.report.recovery.append(self.service.start(fail_point))
        self.report.computed.append(self.service.cpu_seconds())
        self.compare()
        self._up.set()

    def die(self, death: float | str) -> None:
        """Kill the service after so many seconds, or wait until it has ended at its fail-point."""
        if isinstance(death, str):
            code, expected = self.service.wait(), CODE
        else:
            time.sleep(death)
            code, expected = self.service.kill(), -signal.SIGKILL
        self._up.clear()
        assert code == expected, code
        self.report.deaths += 1

    def terminate(self) -> None:
        """Ask the service to end, as a machine that shuts down does."""
        code = self.service.kill(signal.SIGTERM)
        self._up.clear()
        assert code in (0, -signal.SIGTERM), code
        self.report.deaths += 1

    def end(self) -> Report:
        """Let the writers come to rest, compare everything, and return what was found."""
        self._stop()
        self.compare()
        return self.report

    def _stop(self) -> None:
        self._stopping.set()
        for writer in self.writers:
            if writer.is_alive():
                writer.join()

    @property
    def acknowledged(self) -> int:
        """Decisions and feedback so far."""
        return sum(writer.ledger.decided + writer.ledger.reported for writer in self.writers)

    def compare(self) -> None:
        """Hold what is stored against what was acknowledged. The writers must be at rest."""
        report, ledgers = self.report, [writer.ledger for writer in self.writers]
        with contextlib.closing(self.service.connection()) as connection:
            reader = Reader(connection)
            for ledger in ledgers:
                self._compare(reader, ledger)
            runs = {run["run"] for run in reader.pages(f"{PROJECT}/runs", "runs", "run", "")}
        known = {run for ledger in ledgers for run in ledger.runs}
        sending = {ledger.sending for ledger in ledgers}
        report.lost += sorted(known - runs)
        report.unknown += sorted(run for run in runs - known if f"{PROJECT}/runs/{run}" not in sending)
        report.faults = [fault for ledger in ledgers for fault in ledger.faults]
        report.decided, report.reported, report.repeated = (
            sum(getattr(ledger, name) for ledger in ledgers) for name in ("decided", "reported", "repeated")
        )

    def _compare(self, reader: Reader, ledger: Ledger) -> None:
        report = self.report
        stored: dict[str, bytes] = {}
        for run, (attempt, state) in ledger.runs.items():
            base = f"{PROJECT}/runs/{run}"
            is_now = json.loads(reader.get(base))
            ahead = is_now["attempt"] > attempt and ledger.sending == f"{base}:claim"
            over = is_now["state"] != "active" and ledger.sending == f"{base}:end"
            if (is_now["attempt"] != attempt and not ahead) or (is_now["state"] != state and not over):
                report.changed.append(base)
            for kind in ("decisions", "feedback"):
                for item in reader.pages(f"{base}/{kind}", kind, "seq", -1):
                    path = f"{base}/{kind}/{item['seq']}"
                    if path in stored:
                        report.unknown.append(path)
                    stored[path] = json.dumps(item, separators=(",", ":")).encode()
        report.lost += sorted(ledger.replies.keys() - stored.keys())
        report.changed += [path for path, data in ledger.replies.items() if stored.get(path, data) != data]
        report.unknown += sorted(stored.keys() - ledger.replies.keys() - {ledger.sending})
        # Single answers are of the same bytes as those in a page: some of them are enough.
        for path in list(ledger.replies)[-5:]:
            if reader.get(path) != ledger.replies[path]:
                report.changed.append(path)
        for path, data in ledger.blobs.items():
            if reader.get(path) != data:
                report.changed.append(path)


class Reader:
    """Reads from a service.

    Args:
        connection: to it.
    """

    def __init__(self, connection: http.client.HTTPConnection) -> None:
        self._connection = connection

    def get(self, path: str) -> bytes:
        """Return what is there; nothing if it is not."""
        self._connection.request("GET", path)
        answer = self._connection.getresponse()
        data = answer.read()
        return data if answer.status == 200 else b"{}"

    def pages(self, path: str, name: str, key: str, after: str | int) -> Iterator[dict[str, Any]]:
        """Yield all of a list."""
        while page := json.loads(self.get(f"{path}?limit=500&after={after}")).get(name):
            yield from page
            after = page[-1][key]


def storm(storm: Storm, deaths: Sequence[float | str]) -> Report:
    """Kill the service again and again under writers, and return what was found.

    Args:
        storm: not begun yet.
        deaths: one for each start: after how many seconds it is killed, or the fail-point where it ends, `NAME:COUNT`.
    """
    with storm:
        for death in deaths:
            storm.begin(death if isinstance(death, str) else None)
            storm.die(death)
        storm.begin()
        return storm.end()
