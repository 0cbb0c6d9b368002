"""What a training has to tell the service arrives, now or when the service is back, and never keeps the training."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

from rlmix._files import writable_folder
from rlmix.errors import ConfigError, OutputError, ServiceError
from rlmix.policy._transport import AbstractTransport, Reply

_LOGGER = logging.getLogger("rlmix")
_SECONDS, _LEAVE_SECONDS = 5.0, 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_REPLY_BYTES = 2**20
_MOST = 10_000

FENCED = "fenced"
"""The kind of problem that says that somebody else goes on with the run."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A request that may be repeated without harm.

    Attributes:
        method: of HTTP.
        path: after the service's address.
        body: JSON.
        subject: what it is about, as GROUP or GROUP/PART. Once a letter is refused, later ones about the same part or
            of a group that was refused itself are not sent.
    """

    method: str
    path: str
    body: Any
    subject: str

    @property
    def group(self) -> str:
        """The first part of the subject."""
        return self.subject.partition("/")[0]


@final
class Question:
    """A request whose reply is waited for by nobody, and looked at later.

    Args:
        letter: the request.
        seconds: after which no answer is one.

    Attributes:
        reply: None until there is one.
    """

    def __init__(self, letter: Letter, seconds: float) -> None:
        self.letter, self.seconds = letter, seconds
        self.reply: Reply | None = None


@final
class Courier:
    """Delivers letters in order from a thread of its own, and watches for the service while it is away.

    Letters are written to a file before anything else, so that those of a training that was killed are delivered by
    the next one on this machine.

    Args:
        transport: used by the thread alone.
        folder: for the files of all trainings that speak to this service, or None to keep letters in memory.
    """

    def __init__(self, transport: AbstractTransport, folder: Path | None) -> None:
        self._transport = transport
        self._letters: deque[Letter] = deque()
        self._question: Question | None = None
        self._refused: set[str] = set()
        self._changed = threading.Condition()
        self._away = self._stopped = False
        self._pause = _FIRST_PAUSE
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        self._folder = folder
        # Written without a buffer: a process that forks would take a part of it along, and write it once more.
        self._file: IO[bytes] | None = None
        self._old: list[IO[bytes]] = []
        self.lost = 0
        if folder is not None:
            self._adopt(folder)

    @property
    def away(self) -> bool:
        """Whether the service did not answer when it was last spoken to."""
        return self._away

    def missed(self) -> None:
        """Take notice that the service did not answer; the thread finds out when it does again."""
        with self._changed:
            self._away = True
            self._wake()

    def met(self) -> None:
        """Take notice that the service answered a request of the training itself."""
        self._pause = _FIRST_PAUSE

    def send(self, letter: Letter) -> None:
        """Take a letter."""
        with self._changed:
            if len(self._letters) >= _MOST:
                self.lost += 1
                return
            if self._file is None and self._folder is not None:
                self._file = _opened(self._folder)
                self._folder = None
            if self._file is not None:
                line = json.dumps([letter.method, letter.path, letter.body, letter.subject]) + "\n"
                with contextlib.suppress(OSError):
                    self._file.write(line.encode("utf-8"))
            self._letters.append(letter)
            self._wake()

    def ask(self, question: Question) -> None:
        """Send a question before all letters; it takes the place of one that was not sent yet."""
        with self._changed:
            self._question = question
            self._wake()

    def wait(self, seconds: float) -> None:
        """Wait until all letters are delivered or the service is away, but not longer than `seconds`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._letters or self._away, seconds)

    def close(self, seconds: float) -> int:
        """Wait until all is delivered, but not longer than `seconds`; return how many letters are left."""
        self.wait(seconds)
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            left = len(self._letters)
        if not left and self._thread is not None:
            # It has nothing to do but to let go of the service.
            self._thread.join(_LEAVE_SECONDS)
        for file in (self._file, *self._old):
            if file is not None:
                if not left:
                    with contextlib.suppress(OSError):
                        Path(file.name).unlink()
                file.close()
        self._file, self._old = None, []
        return left

    def _wake(self) -> None:
        """See to it that the thread runs and looks; with the lock held."""
        if self._thread is None or self._process != os.getpid():
            self._process = os.getpid()
            self._thread = threading.Thread(target=self._work, name="rlmix-courier", daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (self._stopped or self._away or self._letters or self._question is not None):
                    self._changed.wait()
                if self._away and not self._stopped:
                    self._changed.wait_for(lambda: self._stopped or not self._away, self._pause)
                if self._stopped:
                    self._transport.close()
                    return
                away = self._away
                question, self._question = self._question, None
                letter = self._letters[0] if self._letters else None
            if away:
                self._probe()
            elif question is not None:
                self._answer(question)
            elif letter is not None:
                self._deliver(letter)

    def _probe(self) -> None:
        """Ask whether the service is ready; wait longer before the next time until a request of the training works."""
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        try:
            reply = self._called("GET", "/readyz", None)
            ready = reply.status == 200 and reply.parsed.get("status") == "ready"
        except ServiceError:
            ready = False
        with self._changed:
            self._away = not ready
            self._changed.notify_all()

    def _answer(self, question: Question) -> None:
        letter = question.letter
        try:
            reply = self._called(letter.method, letter.path, letter.body, question.seconds)
        except ServiceError:
            self.missed()
            return
        if _failed(reply):
            self.missed()
        question.reply = reply

    def _deliver(self, letter: Letter) -> None:
        reply = None
        if not {letter.subject, letter.group} & self._refused:
            try:
                reply = self._called(letter.method, letter.path, letter.body)
            except ServiceError:
                self.missed()
                return
            # What answers everything with 200 is no service, and a letter that it took would be lost.
            if _failed(reply) or (reply.status < 300 and not _acknowledges(reply, letter)):
                self.missed()
                return
            if reply.status >= 300:
                # Who was taken over from cannot tell anything any more.
                self._refused.add(letter.group if reply.kind == FENCED else letter.subject)
                _LOGGER.warning("the policy service refuses %s (%d): %s", letter.path, reply.status, reply.text)
        with self._changed:
            self._letters.popleft()
            self.lost += reply is None or reply.status >= 300
            if not self._letters:
                self._emptied()
            self._changed.notify_all()

    def _called(self, method: str, path: str, body: Any, seconds: float = _SECONDS) -> Reply:
        data = None if body is None else json.dumps(body).encode("utf-8")
        return self._transport.call(method, path, data, seconds=seconds, limit=_REPLY_BYTES)

    def _emptied(self) -> None:
        """Forget what was delivered."""
        with contextlib.suppress(OSError):
            if self._file is not None:
                self._file.truncate(0)
            for file in self._old:
                Path(file.name).unlink()
                file.close()
        self._old = []

    def _adopt(self, folder: Path) -> None:
        """Take over the letters of trainings that have ended without delivering them."""
        for path in sorted(folder.glob("*.jsonl")):
            with contextlib.suppress(OSError, ValueError, TypeError):
                file = path.open("r+b", buffering=0)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._letters.extend(_letters(file))
                    self._old.append(file)
                except OSError:
                    file.close()
        if self._letters:
            with self._changed:
                self._wake()


def _failed(reply: Reply) -> bool:
    """Say whether a reply means that the service cannot do its part now."""
    return reply.status >= 500 or reply.status == 429


def _acknowledges(reply: Reply, letter: Letter) -> bool:
    """Say whether a reply is about what a letter is about: it names the decision's number, or the run."""
    name = letter.path.rpartition("/")[2].partition(":")[0]
    return str(reply.parsed.get("seq", reply.parsed.get("run"))) == name


def _letters(file: IO[bytes]) -> list[Letter]:
    """Return the letters of a file; the last line may have been cut off by a kill."""
    found = []
    for line in file.read().splitlines():
        with contextlib.suppress(ValueError, TypeError):
            method, path, body, subject = json.loads(line)
            found.append(Letter(method=str(method), path=str(path), body=body, subject=str(subject)))
    return found


def _opened(folder: Path) -> IO[bytes] | None:
    """Return a new file of this process in `folder`, or None where nothing can be written."""
    try:
        path = writable_folder(folder) / f"{time.time_ns():020d}-{os.getpid()}.jsonl"
        file = path.open("ab", buffering=0)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OutputError, OSError) as error:
        _LOGGER.warning("what cannot be delivered to the policy service now is kept in memory only (%s).", error)
        return None
    return file


def cache_folder() -> Path:
    """Return where policies and letters are kept: that of the variable RLMIX_CACHE, or ~/.cache/rlmix.

    Raises:
        ConfigError: there is neither the variable nor a home.
    """
    given = os.environ.get("RLMIX_CACHE")
    try:
        return (Path(given) if given else Path.home() / ".cache" / "rlmix") / "service"
    except RuntimeError as error:
        raise ConfigError("there is no home directory. Set RLMIX_CACHE to a folder.") from error
