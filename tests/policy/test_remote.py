"""The client of a policy service that is absent, hangs, fails, or sends what no service sends."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import rlmix
from rlmix.errors import ConfigError, InputError, ServiceError
from rlmix.policy._transport import Transport
from rlmix.policy.codec import catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.remote import Options, Remote, connect
from rlmix.policy.sources import Learned

STEPS = 200
DEFAULT = catalogue("cheap").decisions[-1]
POLICY = Path(__file__).parent / "artefacts" / "discrete"


def trained(source: Any, **options: Any) -> tuple[list[Tensor], MixController, float]:
    """Train for 200 steps; return the weights, the controller and the seconds that its calls took after the first."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images, labels = torch.rand(400, 1, 8, 8), torch.randint(10, (400,))
    mixer = MixController(source, num_classes=10, total_steps=STEPS, seed=0, **options)
    seconds = 0.0
    for step in range(STEPS):
        rows = torch.arange(step * 8, step * 8 + 8) % 400
        begun = time.perf_counter()
        mixed, targets = mixer(images[rows], labels[rows])
        seconds += time.perf_counter() - begun
        loss = functional.cross_entropy(model(mixed), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mixer.observe(loss=loss, lr=0.1)
    mixer.report(val_accuracy=0.5)
    return [part.detach() for part in model.parameters()], mixer, seconds


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


Handler = Callable[[socket.socket], None]


@contextlib.contextmanager
def serving(handler: Handler) -> Iterator[str]:
    """Yield the address of a server that hands each connection to `handler`."""
    ended = threading.Event()

    def accept() -> None:
        while not ended.is_set():
            with contextlib.suppress(OSError):
                connection, _ = listening.accept()
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            handler(connection)

    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listening:
        listening.settimeout(0.1)
        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        ended.set()
        thread.join()


def reply(connection: socket.socket, status: str, body: bytes, *, length: int | None = None) -> None:
    connection.recv(65536)
    size = len(body) if length is None else length
    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {size}\r\n\r\n".encode() + body)


def hang(connection: socket.socket) -> None:
    time.sleep(30)


def drip(connection: socket.socket) -> None:
    connection.recv(65536)
    for _ in range(1000):
        connection.sendall(b"H")
        time.sleep(0.02)


FAULTS: dict[str, Handler] = {
    "hung": hang,
    "dripping": drip,
    "closing": lambda connection: None,
    "failing": lambda connection: reply(connection, "500 Oops", b"{}"),
    "busy": lambda connection: reply(connection, "503 Busy", b"{}"),
    "garbage": lambda connection: reply(connection, "200 OK", b"\xff\x00 no json"),
    "no object": lambda connection: reply(connection, "200 OK", b"[1, 2]"),
    "nested": lambda connection: reply(connection, "200 OK", b"[" * 100_000),
    "no http": lambda connection: connection.sendall(b"220 smtp ready\r\n" * 10),
    "10 MB": lambda connection: reply(connection, "200 OK", b" " * 10_000_000),
    "endless": lambda connection: reply(connection, "200 OK", b"{}", length=10**12),
    "another service": lambda connection: reply(connection, "200 OK", b'{"version": {"document": 3}}'),
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLMIX_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("fault", ["absent", *FAULTS])
def test_a_training_ends_as_with_the_default_whatever_the_service_does(fault: str, cache: Path) -> None:
    """A service that can end a training is worse than none."""
    local, _, _ = trained(DEFAULT)
    with serving(FAULTS.get(fault, hang)) as url:
        address = "http://127.0.0.1:9" if fault == "absent" else url
        begun = time.perf_counter()
        source = connect(address, setup_deadline=0.3)
        assert time.perf_counter() - begun < 10
        remote, mixer, _ = trained(source)
    assert same(local, remote)
    report = mixer.close()
    assert report.origins == {"default": 1}
    assert "(1 default)" in report.text
    assert mixer.close() == report


def test_what_was_allowed_of_the_policy_does_not_end_a_training_by_the_default(cache: Path) -> None:
    """The names in `allow` are the policy's, and without the service nobody knows them."""
    mixer = MixController("http://127.0.0.1:9", num_classes=10, total_steps=5, seed=0, allow=["cutmix-1"])
    mixer(torch.rand(4, 1, 8, 8), torch.arange(4))
    assert mixer.decision == DEFAULT


def test_another_default_is_used(cache: Path) -> None:
    """It may be a policy directory."""
    local, _, _ = trained(POLICY)
    remote, mixer, _ = trained(connect("http://127.0.0.1:9", default=POLICY, setup_deadline=0.2))
    assert same(local, remote)
    assert set(mixer.close().origins) == {"default"}


def test_who_asks_for_it_is_told_at_once(cache: Path) -> None:
    """An experiment about the service itself must not measure the default."""
    with pytest.raises(ServiceError, match="127.0.0.1:9"):
        connect("http://127.0.0.1:9", on_error="raise")


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("http://", {}, "no address"),
        ("http://x:99999999", {}, "no address"),
        ("http://user:password@x", {}, "no address"),
        ("http://x?y", {}, "no address"),
        ("http://example.org", {"token": "t"}, "https"),
        ("http://127.0.0.1:9", {"project": "../etc"}, "project"),
        ("http://127.0.0.1:9", {"run": "A"}, "run"),
        ("http://127.0.0.1:9", {"deadline": 0}, "deadline"),
        ("http://127.0.0.1:9", {"max_stale_steps": -1}, "max_stale_steps"),
        ("http://127.0.0.1:9", {"on_error": "panic"}, "on_error"),
        ("http://127.0.0.1:9", {"mode": "local"}, "mode"),
        ("http://127.0.0.1:9", {"prefetch": -1}, "prefetch"),
        (str(POLICY), {"project": "x"}, "is a directory"),
    ],
)
def test_an_address_or_option_of_a_wrong_form_is_the_users_to_mend(
    url: str, options: dict[str, Any], message: str, cache: Path
) -> None:
    """These are mistakes, not faults of a service: going on would hide them."""
    with pytest.raises(ConfigError, match=message):
        connect(url, **options)


def test_a_directory_needs_no_service() -> None:
    """One call for every kind of deployment."""
    assert isinstance(connect(POLICY), Learned)
    assert rlmix.connect is connect


def test_a_call_ends_in_time_whatever_the_other_side_does() -> None:
    """A time limit for each read of a socket is none for all of them."""
    for fault in ("hung", "dripping", "endless"):
        with serving(FAULTS[fault]) as url:
            transport = Transport(url, None)
            begun = time.monotonic()
            with pytest.raises(ServiceError):
                transport.call("GET", "/", None, seconds=0.3, limit=10)
            assert time.monotonic() - begun < 5
            transport.close()


def test_a_dead_connection_is_replaced_without_a_word() -> None:
    """Between two decisions a server closes what is idle."""
    seen = []

    def once(connection: socket.socket) -> None:
        seen.append(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with serving(once) as url:
        transport = Transport(url, "secret")
        for _ in range(3):
            assert transport.call("PUT", "/x", b"{}", seconds=5, limit=10).body == b"ok"
        transport.close()
    assert len(seen) == 3
    assert all(b"Authorization: Bearer secret" in one for one in seen)


def test_a_busy_service_is_asked_once_more_when_it_says_so() -> None:
    """A short refusal is not an outage, and a long one is not waited for."""
    answers = [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]

    def busy(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answers.pop(0))

    with serving(busy) as url:
        transport = Transport(url, None)
        assert transport.call("GET", "/", None, seconds=5, limit=10).status == 200
        transport.close()
    later = b"HTTP/1.1 503 Busy\r\nRetry-After: 60\r\nContent-Length: 0\r\n\r\n"
    with serving(lambda connection: connection.sendall(later) if connection.recv(65536) else None) as url:
        begun = time.monotonic()
        transport = Transport(url, None)
        assert transport.call("GET", "/", None, seconds=5, limit=10).status == 503
        assert time.monotonic() - begun < 3
        transport.close()


def test_a_report_before_a_decision_or_of_no_number_is_a_mistake() -> None:
    """Feedback that belongs to nothing, or that JSON cannot hold, would be refused when nobody looks any more."""
    mixer = MixController("mixup", num_classes=10, total_steps=5, seed=0)
    with pytest.raises(InputError, match="none was taken"):
        mixer.report(val_accuracy=0.5)
    mixer(torch.rand(4, 1, 8, 8), torch.arange(4))
    mixer.report(val_accuracy=0.5)
    for values in ({}, {"val_accuracy": float("nan")}):
        with pytest.raises(InputError, match="finite"):
            mixer.report(**values)


def test_the_token_is_in_no_log(cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Logs are read by more people than tokens are meant for."""
    with caplog.at_level(logging.DEBUG), serving(FAULTS["failing"]) as url:
        Remote(url, Options(token="very-secret", setup_deadline=0.3)).close(finished=False)
    assert caplog.text
    assert "very-secret" not in caplog.text
