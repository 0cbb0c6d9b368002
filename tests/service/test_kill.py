"""A service that is killed in the middle of its writes has kept every one that it acknowledged."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from rlmix.policy.artifact import DOCUMENT, load

WRITERS = 4


class Writer(threading.Thread):
    """A client that asks and gives feedback until the service is gone, and remembers what was acknowledged."""

    def __init__(self, number: int, port: int, question: dict[str, Any], first: int = 0) -> None:
        super().__init__()
        self.base = f"/v1/projects/default/runs/w{number}"
        self.question = question
        self.seq = first
        self.acknowledged: dict[str, bytes] = {}
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def put(self, path: str, body: Any) -> bytes:
        self.connection.request("PUT", self.base + path, json.dumps(body), {"Content-Type": "application/json"})
        reply = self.connection.getresponse()
        data = reply.read()
        assert reply.status in (200, 201), data
        self.acknowledged[self.base + path] = data
        return data

    def run(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(self.connection):
            while True:
                self.put(f"/decisions/{self.seq}", {**self.question, "step": self.seq, "explore": hex(self.seq)})
                self.put(f"/feedback/{self.seq}", {"values": {"x": self.seq / 7}})
                self.seq += 1


@pytest.mark.slow
def test_nothing_that_was_acknowledged_is_lost_or_changed(
    start: Callable[..., Any], policy: Path, tmp_path: Path
) -> None:
    """The one promise that the service is for."""
    address, process = start("--port", "0", "--policy", str(policy))
    port = int(address.rsplit(":", 1)[1])
    names = load(policy).observation_names
    digest = hashlib.sha256((policy / DOCUMENT).read_bytes()).hexdigest()
    question = {"policy": digest, "observation": [0.25] * len(names)}
    run = {"policy": "default", "alias": "default", "total_steps": 10, "num_classes": 10}
    writers = [Writer(number, port, question) for number in range(WRITERS)]
    for writer in writers:
        writer.put("", run)
        writer.acknowledged.clear()
        writer.start()
    while min(len(writer.acknowledged) for writer in writers) < 40:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for writer in writers:
        writer.join()
    acknowledged = {path: data for writer in writers for path, data in writer.acknowledged.items()}
    assert len(acknowledged) >= 40 * WRITERS

    address, process = start("--port", "0", "--policy", str(policy))
    connection = http.client.HTTPConnection("127.0.0.1", int(address.rsplit(":", 1)[1]), timeout=30)

    def got(path: str) -> tuple[int, bytes]:
        connection.request("GET", path)
        reply = connection.getresponse()
        return reply.status, reply.read()

    lost = [path for path in acknowledged if got(path)[0] != 200]
    changed = [path for path, data in acknowledged.items() if got(path)[1] != data]
    assert (lost, changed) == ([], [])
    # What was under way may be stored or not; asked again it is answered once, and numbers follow each other.
    for writer in writers:
        again = Writer(int(writer.base[-1]), int(address.rsplit(":", 1)[1]), question)
        again.put(f"/decisions/{writer.seq}", {**question, "step": writer.seq, "explore": hex(writer.seq)})
        again.connection.close()
        seqs: list[int] = []
        while page := json.loads(got(f"{writer.base}/decisions?limit=500&after={seqs[-1] if seqs else -1}")[1])[
            "decisions"
        ]:
            seqs.extend(one["seq"] for one in page)
        assert seqs == list(range(writer.seq + 1))
    connection.close()
