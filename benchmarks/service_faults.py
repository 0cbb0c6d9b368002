"""What a policy service costs a training: when it fails, and when it answers, with and without prefetch.

Usage: python -m benchmarks.service_faults [REPEATS]

Trains a small model for 200 steps with a policy in process, and with a service that fails in the middle in one of
several ways; the median of the paired differences is what the fault cost (the deadline is 0.2 s). Then measures each
call of the mixer against a service on this machine whose every answer takes 5 ms.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

import rlmix
from rlmix._files import sha256_of
from rlmix.ops.rng import Streams
from rlmix.policy.artifact import DOCUMENT, TENSORS
from rlmix.policy.sources import Learned, source

POLICY = Path(__file__).parent.parent / "tests" / "policy" / "artefacts" / "discrete"
STEPS, DEADLINE, ANSWER_SECONDS, AHEAD = 200, 0.2, 0.005, 10
FAULTS = ("absent", "hung", "500", "garbage", "10 MB")


class Service(http.server.BaseHTTPRequestHandler):
    """What a client needs of a service, with faults: the real one would be measured along with it."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {name: (POLICY / name).read_bytes() for name in (DOCUMENT, TENSORS)}
    policy = source(POLICY)
    fault = ""
    over = threading.Event()

    def do_GET(self) -> None:
        version = {"document": sha256_of(self.files[DOCUMENT]), "tensors": sha256_of(self.files[TENSORS])}
        blobs = {sha256_of(data): data for data in self.files.values()}
        found = blobs.get(self.path.rpartition("/")[2])
        self._reply(json.dumps({"version": version, "status": "ready"}).encode() if found is None else found)

    def do_POST(self) -> None:
        self._body()
        self._reply(json.dumps({"run": self.path.rpartition("/")[2].partition(":")[0]}).encode())

    def do_PUT(self) -> None:
        body = self._body()
        run, _, seq = self.path.partition("/decisions/")
        answer: dict[str, Any] = {"run": run.rpartition("/")[2], "attempt": 1, "next_seq": 0}
        if "/feedback/" in self.path:
            answer = {"seq": int(self.path.rpartition("/")[2])}
        if seq:
            time.sleep(ANSWER_SECONDS)
            assert isinstance(self.policy, Learned)
            seen, mask = torch.tensor(body["observation"]), torch.full((len(self.policy.names),), not body["allowed"])
            mask[body["allowed"] or []] = True
            explore = None if body["explore"] is None else Streams([int(body["explore"], 16)])
            entry = self.policy.choose(0, seen, mask, explore)
            decision = self.policy.decision(entry, seen, explore).to_json()
            answer = {"seq": int(seq), "entry": entry, "decision": decision}
        self._reply(json.dumps(answer).encode())

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")

    def _reply(self, data: bytes) -> None:
        status = 200
        if self.fault == "hung":
            self.over.wait(60)
        if self.fault == "absent":
            self.connection.shutdown(socket.SHUT_RDWR)
        if self.fault in ("500", "garbage", "10 MB"):
            status = 500 if self.fault == "500" else 200
            data = {"500": b"{}", "garbage": b"\xff no json", "10 MB": b" " * 10_000_000}[self.fault]
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    class Server(http.server.ThreadingHTTPServer):
        def handle_error(self, *arguments: Any) -> None:
            """Say nothing of what a fault has broken."""

    server = Server(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def trained(given: Any, fault: str) -> tuple[float, list[torch.Tensor]]:
    """Return the seconds of a training, and the weights that it came to."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.rand(32, 3, 32, 32), torch.randint(10, (32,))
    mixer = rlmix.MixController(given, num_classes=10, total_steps=STEPS, seed=0)
    begun = time.perf_counter()
    for step in range(STEPS):
        if step == STEPS // 4:
            Service.fault = fault
        mixed, targets = mixer(images, labels)
        loss = functional.cross_entropy(model(mixed), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mixer.observe(loss=loss, lr=0.1)
    seconds = time.perf_counter() - begun
    Service.fault = ""
    Service.over.set()
    mixer.close()
    Service.over.clear()
    return seconds, [part.detach() for part in model.parameters()]


def called(given: Any) -> list[float]:
    """Return the seconds of each call of a mixer, in a training whose steps take 5 ms on a device."""
    images, labels = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))
    mixer = rlmix.MixController(given, num_classes=10, total_steps=STEPS, seed=0)
    calls = []
    for _ in range(STEPS):
        before = time.perf_counter()
        mixer(images, labels)
        calls.append(time.perf_counter() - before)
        mixer.observe(loss=1.0, lr=0.1)
        time.sleep(ANSWER_SECONDS)
    mixer.close()
    return calls


def main() -> None:
    """Print the figures."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache, serving() as url:
        os.environ["RLMIX_CACHE"] = cache
        trained(POLICY, "")
        for fault in FAULTS:
            lost = []
            for _ in range(repeats):
                alone, expected = trained(POLICY, "")
                seconds, found = trained(rlmix.connect(url, deadline=DEADLINE), fault)
                assert all(torch.equal(one, two) for one, two in zip(expected, found, strict=True))
                lost.append((seconds - alone, (seconds - alone - DEADLINE) / alone))
            added, share = (statistics.median(values) for values in zip(*lost, strict=True))
            print(f"{fault:8} adds {added:6.3f} s to a training; beyond one deadline {max(0.0, share):5.1%} of it")
        for name, options in (("in process", None), ("asked", {"prefetch": 0}), ("prefetched", {"prefetch": AHEAD})):
            special: list[float] = []
            others: list[float] = []
            for _ in range(repeats):
                given = POLICY if options is None else rlmix.connect(url, deadline=1.0, **options)
                calls = called(given)
                points = {number * STEPS // 8 for number in range(1, 8)}
                points |= {point - AHEAD for point in points} if name == "prefetched" else set()
                special += [calls[step] for step in sorted(points)]
                others += [seconds for step, seconds in enumerate(calls[1:], 1) if step not in points]
            middle, worst = statistics.median(special), sorted(special)[int(0.99 * len(special))]
            print(
                f"{name:10}: a call that looks, asks or decides takes {1e3 * middle:6.3f} ms (median), "
                f"{1e3 * worst:6.3f} ms (p99); another {1e3 * statistics.median(others):6.3f} ms (median)"
            )


if __name__ == "__main__":
    main()
