"""A policy that a service decides for: the client's side, which never keeps a training waiting and never ends one.

Each decision is asked of the service. Where it does not answer in time, the training goes on with what it has: the
decision before (if that is recent enough), or its own copy of the policy, which says what the service would have
said. A training that never reached the service, and has no copy, is mixed by the default.

A run that is there already is claimed first: whoever had it before is refused from then on, and goes on alone. Numbers
of decisions never go back, so a training that was resumed from an older checkpoint asks under new ones.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import math
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix._files import sha256_of
from rlmix.errors import ConfigError, MissingDependencyError, RlmixError, ServiceError
from rlmix.ops.rng import Streams
from rlmix.policy import _ranks
from rlmix.policy._copies import Copies, Files, built
from rlmix.policy._courier import FENCED, Courier, Letter, Question, cache_folder
from rlmix.policy._transport import AbstractTransport, Reply, Transport
from rlmix.policy.artifact import DOCUMENT, TENSORS, load
from rlmix.policy.codec import catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.limits import Facts
from rlmix.policy.observer import AbstractObserver, Training
from rlmix.policy.sources import AbstractSource, Learned
from rlmix.policy.sources import source as local

Mode: TypeAlias = Literal["remote", "snapshot"]
"""Who decides: the service, or always the copy of its policy, of which the service is told afterwards."""

OnError: TypeAlias = Literal["degrade", "raise"]

_LOGGER = logging.getLogger("rlmix")
_JSON_BYTES = 2**20
_BLOB_BYTES = 64 * 2**20
_CLOSE_SECONDS = 5.0
_SQLITE = "sqlite:///"
_NAME = r"[a-z0-9][a-z0-9._-]{0,62}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a training speaks to the service.

    Attributes:
        project: whose policies and runs.
        policy: name of the policy.
        alias: which of its versions: where this name leads when the training begins.
        run: name of the training, to go on with it after an interruption; None makes a new one. A training that
            begins under the name of one that goes on takes it over, and the other goes on alone.
        labels: what the training is, such as data, model and optimiser: trainings with equal ones are comparable.
        token: opens the service; None takes the variable RLMIX_TOKEN, if there is one.
        default: what mixes a training that never reached the service and has no copy of its policy: anything that a
            `MixController` takes. None: a mixture of methods without saliency in equal parts.
        mode: "remote" asks the service; "snapshot" always decides with the copy of its policy that is fetched at the
            beginning, and tells the service afterwards, so that no step ever waits.
        prefetch: 0 looks at the training and asks when a decision is due, and waits for the answer. Of a number of
            steps p, the training is looked at p steps earlier and the question is sent in the background, so that no
            step waits. The price: the policy sees the training as it was then (these p steps' losses are in no
            observation), and an answer that is not there in time is not waited for: the copy of the policy takes its
            place, which says the same. Each decision is recorded with the step from which on it holds. p steps should
            take longer than an answer, and be few beside those between two decisions. The first decision is waited
            for.
        deadline: seconds that one decision may wait for the service.
        setup_deadline: seconds that the beginning may wait for it, once.
        max_stale_steps: for how many steps the service's last decision may stand in for its next; 0 goes to the copy of
            the policy at once.
        on_error: "degrade" never raises because of the service; "raise" raises ServiceError.
        cache: folder for copies of policies and for what could not be delivered; None takes that of RLMIX_CACHE.

    Raises:
        ConfigError: a value out of its range.
    """

    project: str = "default"
    policy: str = "default"
    alias: str = "default"
    run: str | None = None
    labels: Mapping[str, str] | None = None
    token: str | None = None
    default: Any = None
    mode: Mode = "remote"
    prefetch: int = 0
    deadline: float = 0.2
    setup_deadline: float = 2.0
    max_stale_steps: int = 0
    on_error: OnError = "degrade"
    cache: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        """Check names and ranges."""
        for name in ("project", "policy", "alias", *(() if self.run is None else ("run",))):
            if re.fullmatch(_NAME, str(getattr(self, name))) is None:
                raise ConfigError(
                    f"`{name}` must be 1 to 63 of a to z, 0 to 9, `.`, `_` and `-`, beginning with a letter or digit, "
                    f"got {getattr(self, name)!r}."
                )
        for name in ("deadline", "setup_deadline"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"`{name}` must be a number of seconds above 0, got {getattr(self, name)!r}.")
        for name in ("max_stale_steps", "prefetch"):
            if getattr(self, name) < 0:
                raise ConfigError(f"`{name}` must be at least 0, got {getattr(self, name)!r}.")
        for name, known in (("mode", ("remote", "snapshot")), ("on_error", ("degrade", "raise"))):
            if getattr(self, name) not in known:
                raise ConfigError(f'`{name}` must be "{known[0]}" or "{known[1]}", got {getattr(self, name)!r}.')


def connect(url_or_path: str | os.PathLike[str], **options: Any) -> AbstractSource:
    """Return who decides for one training, for `MixController`.

    In a distributed training, call it in every process, after `torch.distributed.init_process_group`: the first one
    speaks to the service, and gives the others its policy.

    Args:
        url_or_path: `http://HOST:PORT` of a service (`rlmix serve`); `sqlite:///FILE`, a database that this process
            decides from and writes to itself (`mode="snapshot"`, no server; several processes of this machine may);
            or a policy directory, which needs none.
        options: the fields of `Options`, for a service.

    Raises:
        ConfigError: an address or an option of a wrong form.
        MissingDependencyError: a database, and the extra `serve` is not installed.
        PolicyError: a damaged policy directory.
        ServiceError: the service does not answer, with `on_error="raise"`.
    """
    if is_url(url_or_path):
        given = Options(**options)
        return Remote(str(url_or_path), given) if _ranks.leads() else _follower(str(url_or_path), given)
    if options:
        raise ConfigError(f"`{next(iter(options))}` belongs to a service, and `{url_or_path}` is a directory.")
    return Learned(load(url_or_path))


def source_of(given: Any) -> AbstractSource:
    """Return who decides, of whatever a user may give; see `rlmix.policy.sources.source`, and addresses of services."""
    return connect(given) if is_url(given) else local(given)


def is_url(given: Any) -> bool:
    """Say whether something is the address of a service."""
    return isinstance(given, str) and given.startswith(("http://", "https://", _SQLITE))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the service last decided, and from which step on."""

    step: int
    entry: int
    decision: Decision


@final
@dataclass(slots=True, kw_only=True)
class _Asking:
    """A decision of this training, with the number under which it is stored.

    Attributes:
        number: as the controller counts.
        seq: as the run counts.
        letter: the question.
        asked: the same, to be sent ahead; None of one that is asked when it is due.
        left: whether the service may have the question.
    """

    number: int
    seq: int
    letter: Letter
    asked: Question | None = None
    left: bool = False


@final
class Remote(AbstractSource):
    """One training's side of the service, in the only or first process of the training (see `connect`).

    It belongs to the process that made it: a child that is forked decides with the copy of the policy, and neither
    asks nor tells the service anything.

    Args:
        url: the service's address, as `connect` takes it.
        options: how to speak to it.

    Raises:
        ConfigError: the address has a wrong form.
        MissingDependencyError: a database, and the extra `serve` is not installed.
        ServiceError: the service does not answer, with `on_error="raise"`.
    """

    def __init__(self, url: str, options: Options) -> None:
        self._url, opened = _place(url, options)
        self._options = options
        self._asks = _is_asked(url, options)
        self._process, self._several = os.getpid(), _ranks.several()
        self._transport = opened()
        self._base = f"/v1/projects/{options.project}"
        self._run = secrets.token_hex(16) if options.run is None else options.run
        cache = _cache(options) / sha256_of(self._url.encode("utf-8"))[:16]
        self._copies = Copies(cache / "policies" / options.project / options.policy / options.alias)
        self._courier = Courier(opened(), cache / "letters")
        self._setup_end = time.monotonic() + options.setup_deadline
        self._counts: Counter[str] = Counter()
        try:
            document, tensors = _ranks.shared(self._found, 2)
        except RlmixError:
            self._courier.close(0.0)
            self._transport.close()
            raise
        self._digest = sha256_of(document)
        self._policy, self._inner, self.stands_in = _deciding(document, tensors, options)
        if self._policy is None:
            _LOGGER.warning("no copy of the policy of %s: the default mixes this training.", self._url)
        self.names, self.decisions, self.methods = self._inner.names, self._inner.decisions, self._inner.methods
        self.codec = self._inner.codec
        self.ahead = 0 if self._policy is None else _ahead(url, options)
        self._points: tuple[int, ...] = ()
        self._held: _Held | None = None
        self._taken: tuple[int, Decision] | None = None
        # Until a service says otherwise this is the run's first attempt; it goes on alone once it is shut out.
        self._attempt, self._next, self._known, self._alone = 1, 0, False, False
        self._asking: _Asking | None = None
        self._last: tuple[int, int, int] | None = None
        self._problem: RlmixError | None = None

    def points(self, total_steps: int) -> tuple[int, ...]:
        """Return the steps at which the policy, or the default, decides."""
        self._points = self._inner.points(total_steps)
        return self._points

    def observer(self, training: Training) -> AbstractObserver:
        """Tell the service of the training, and return an observer of what the policy reads."""
        if self._several != _ranks.several():
            raise ConfigError("call rlmix.connect after torch.distributed.init_process_group, in every process.")
        if self._policy is not None:
            try:
                self._begin(training)
            except ServiceError as error:
                if not self._several:
                    raise
                # The other processes are told at the first decision, which they wait for.
                self._problem = error
        return self._inner.observer(training)

    def prepare(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> None:
        """Send the question of a decision that is due in a few steps."""
        if self._policy is None or observation is None or self._is_alone():
            return
        asking = self._asking = self._posed(number, self._policy, observation, allowed, explore)
        if asking is None:
            return
        asking.asked, asking.left = Question(asking.letter, self._options.deadline), not self._courier.away
        if asking.left:
            self._courier.ask(asking.asked)

    def choose(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> int:
        """Return the choice of the service, or what stands in for it."""
        if self._problem is not None:
            raise self._problem
        if self._policy is None or observation is None:
            self._counts["default"] += 1
            return self._inner.choose(number, observation, allowed, explore)
        asking, self._asking, self._last = self._asking, None, None
        if asking is None or asking.number != number:
            asking = None if self._is_alone() else self._posed(number, self._policy, observation, allowed, explore)
        step = self._points[number]
        answer = None if asking is None or not self._asks else self._answered(asking, allowed)
        if answer is not None:
            self._counts["server"] += 1
            self._taken, self._held = answer, _Held(step=step, entry=answer[0], decision=answer[1])
        else:
            held = asking is None or not asking.left
            origin, self._taken = self._stood_in(number, step, observation, allowed, explore, held=held)
            self._counts[origin] += 1
        entry, decision = self._taken
        if asking is not None and not self._is_alone():
            self._last = (number, self._attempt, asking.seq)
            if answer is None:
                taken = {"origin": origin, "entry": entry, "decision": decision.to_json()}
                self._tell(f"decisions/{asking.seq}", {**asking.letter.body, "taken": taken}, asking.seq)
        return entry

    def decision(self, entry: int, observation: Tensor | None, explore: Streams | None) -> Decision:
        """Return what was answered."""
        if self._taken is not None and self._taken[0] == entry:
            return self._taken[1]
        return self._inner.decision(entry, observation, explore)

    def probabilities(self, observation: Tensor | None, allowed: Tensor) -> Tensor | None:
        """Return what the copy of the policy says."""
        return self._inner.probabilities(observation, allowed)

    def outside(self, facts: Facts) -> tuple[int, str] | None:
        """Return what the policy's card says."""
        return self._inner.outside(facts)

    def report(self, number: int, values: Mapping[str, float]) -> None:
        """Tell the service what came of its last decision, now or when it is back."""
        if self._last is not None and self._last[0] == number and not self._is_alone():
            _, attempt, seq = self._last
            self._tell(f"feedback/{seq}", {"attempt": attempt, "values": dict(values)}, seq)

    def state(self) -> Any:
        """Return where in its run the training is."""
        return {"run": self._run, "attempt": self._attempt, "next": self._next, "last": self._last}

    def load_state(self, state: Any) -> None:
        """Go on in the run, if it is the same. What the service said of it counts more."""
        if state is None or state["run"] != self._run:
            return
        self._last = None if state["last"] is None else tuple(state["last"])
        if not self._known:
            self._attempt, self._next = int(state["attempt"]), max(self._next, int(state["next"]))

    def close(self, *, finished: bool, failed: bool = False) -> Mapping[str, int]:
        """Deliver what is left, for a few seconds; return how many decisions came from where.

        Args:
            finished: ends the run as finished.
            failed: ends it as failed, unless it has a name, under which it can be gone on with.
        """
        if self._process != os.getpid():
            return dict(self._counts)
        ended = "finished" if finished else "failed" if failed and self._options.run is None else None
        if self._policy is not None and ended is not None and not self._is_alone():
            body = {"state": ended, "attempt": self._attempt}
            self._courier.send(Letter(method="POST", path=f"{self._path}:end", body=body, subject=f"{self._group}/end"))
        left = self._courier.close(_CLOSE_SECONDS)
        if left or self._courier.lost:
            _LOGGER.warning("%d messages to the policy service wait for the next training, %d are lost.", left,
                            self._courier.lost)  # fmt: skip
        self._transport.close()
        return dict(self._counts)

    @property
    def _path(self) -> str:
        return f"{self._base}/runs/{self._run}"

    @property
    def _group(self) -> str:
        """What a refusal shuts out as a whole; a later attempt is another."""
        return f"{self._run}@{self._attempt}"

    def _is_alone(self) -> bool:
        """Say whether this process has nothing more to ask or tell the service; the first time, say so."""
        if self._process != os.getpid() and not self._alone:
            self._leave(f"the client belongs to process {self._process}, this one was forked from it")
        return self._alone

    def _leave(self, why: str) -> None:
        self._alone = True
        _LOGGER.warning("%s: %s. The training goes on alone with its copy of the policy.", self._url, why)

    def _tell(self, path: str, body: Mapping[str, Any], seq: int) -> None:
        letter = Letter(method="PUT", path=f"{self._path}/{path}", body=body, subject=f"{self._group}/{seq}")
        self._courier.send(letter)

    def _failed(self, error: RlmixError) -> None:
        """Take notice that the service did not do its part."""
        if self._options.on_error == "raise":
            raise ServiceError(f"{self._url}: {error}") from error
        _LOGGER.warning("%s: %s", self._url, error)

    def _called(self, method: str, path: str, body: Any, seconds: float, limit: int = _JSON_BYTES) -> Reply:
        data = None if body is None else json.dumps(body, allow_nan=False).encode("utf-8")
        return _working(self._transport.call(method, path, data, seconds=seconds, limit=limit))

    def _set_up(self, method: str, path: str, body: Any = None, limit: int = _JSON_BYTES) -> Reply:
        """Make one of the calls before the first step."""
        return self._called(method, path, body, max(0.0, self._setup_end - time.monotonic()), limit)

    def _found(self) -> Sequence[bytes]:
        """Return the files of the policy: of the service, or of the newest copy; empty ones if there is none."""
        files: Files | None
        try:
            files = self._fetched()
            built(files)
            self._copies.keep(files)
            self._courier.met()
        except RlmixError as error:
            self._failed(error)
            files = self._copies.newest()
            if files is not None:
                self._courier.missed()
        return (b"", b"") if files is None else (files[DOCUMENT], files[TENSORS])

    def _fetched(self) -> Files:
        """Return the files of the policy that the service decides with."""
        version: Any = None
        if self._options.run is not None:
            reply = self._set_up("GET", self._path)
            version = _parsed(reply.body).get("policy") if reply.status == 200 else None
        if version is None:
            place = f"{self._base}/policies/{self._options.policy}/aliases/{self._options.alias}"
            reply = self._set_up("GET", place)
            if reply.status != 200:
                raise ServiceError(f"there is no policy at {place} ({reply.status}). Is the service given one?")
            version = _parsed(reply.body).get("version")
        try:
            document, tensors = str(version["document"]), str(version["tensors"])
        except (KeyError, TypeError):
            raise ServiceError("the service does not say which policy it has.") from None
        return {DOCUMENT: self._blob(document), TENSORS: self._blob(tensors)}

    def _blob(self, digest: str) -> bytes:
        reply = self._set_up("GET", f"/v1/blobs/sha256/{digest}", limit=_BLOB_BYTES)
        if reply.status != 200 or sha256_of(reply.body) != digest:
            raise ServiceError(f"the service does not give the blob {digest[:12]}... that its policy consists of.")
        return reply.body

    def _begin(self, training: Training) -> None:
        """Make the run known, or take it over."""
        options = self._options
        body = {
            "policy": options.policy,
            "alias": options.alias,
            # The alias may have moved since the policy was fetched, by hours if that was a copy.
            "document": self._digest,
            "total_steps": training.total_steps,
            "num_classes": training.num_classes,
            "num_examples": training.num_examples,
            "labels": dict(options.labels or {}),
        }
        letter = Letter(method="PUT", path=self._path, body=body, subject=self._group)
        if self._courier.away:
            self._courier.send(letter)
            return
        try:
            reply = self._set_up(letter.method, letter.path, body)
            refusal = self._refusal(reply)
            if refusal is None and reply.status == 200 and options.run is not None:
                # What an earlier attempt left on this machine is told first: the claim shuts it out.
                self._courier.wait(max(0.0, self._setup_end - time.monotonic()))
                if self._courier.away:
                    raise ServiceError("the service has gone away again.")
                reply = self._set_up("POST", f"{self._path}:claim")
                refusal = self._refusal(reply)
            if refusal is None:
                run = _parsed(reply.body)
                self._attempt, self._next, self._known = _count(run, "attempt", 1), _count(run, "next_seq", 0), True
                return
        except ServiceError as error:
            self._courier.missed()
            self._courier.send(letter)
            self._failed(error)
            return
        self._failed(ServiceError(refusal))
        self._leave("the run is not ours")

    def _refusal(self, reply: Reply) -> str | None:
        """Return why a run that was asked for cannot be ours, if so."""
        if reply.status >= 300:
            return f"the service refuses the run ({reply.status}): {reply.text}"
        pinned = _parsed(reply.body).get("policy")
        if isinstance(pinned, dict) and pinned.get("document") == self._digest:
            return None
        return f"the run `{self._run}` began with another version of the policy."

    def _posed(
        self, number: int, policy: Learned, observation: Tensor, allowed: Tensor, explore: Streams | None
    ) -> _Asking | None:
        """Return a question under the next number, or None of an observation that the service would not take."""
        seen = torch.clamp(observation, policy.policy.low, policy.policy.high)
        if not bool(torch.isfinite(seen).all()):
            return None
        entries = [entry for entry, named in enumerate(allowed.tolist()) if named]
        body = {
            "step": self._points[number],
            "attempt": self._attempt,
            "policy": self._digest,
            "observation": seen.tolist(),
            "allowed": None if len(entries) == len(allowed) else entries,
            "explore": None if explore is None else hex(explore.keys[0]),
        }
        seq, self._next = self._next, self._next + 1
        path = f"{self._path}/decisions/{seq}"
        letter = Letter(method="PUT", path=path, body=body, subject=f"{self._group}/{seq}")
        return _Asking(number=number, seq=seq, letter=letter)

    def _answered(self, asking: _Asking, allowed: Tensor) -> tuple[int, Decision] | None:
        """Return the entry and the Decision that the service answers, or None if it does not."""
        try:
            reply = self._reply(asking)
            if reply.status < 300:
                answer = self._answer(asking.seq, _parsed(reply.body), allowed)
                self._courier.met()
                return answer
        except _AwayError as error:
            if self._options.on_error == "raise":
                self._failed(error)
            return None
        except ServiceError as error:
            if asking.asked is None:
                self._courier.missed()
            self._failed(error)
            return None
        self._failed(ServiceError(f"no decision ({reply.status}): {reply.text}"))
        if reply.kind == FENCED:
            self._leave("another training goes on with this run")
        return None

    def _reply(self, asking: _Asking) -> Reply:
        """Return the reply to a question: of one that was sent ahead at once, of others after a while."""
        if self._courier.away if asking.asked is None else not asking.left:
            raise _AwayError("the service did not answer, and does not yet.")
        if asking.asked is not None:
            if asking.asked.reply is None:
                raise ServiceError("the answer was not there in time.")
            return _working(asking.asked.reply)
        asking.left = True
        letter = asking.letter
        return self._called(letter.method, letter.path, letter.body, self._options.deadline)

    def _answer(self, seq: int, reply: Mapping[str, Any], allowed: Tensor) -> tuple[int, Decision]:
        """Return what a reply says, if it is one to this question."""
        entry = reply.get("entry")
        fits = reply.get("seq") == seq and type(entry) is int and 0 <= entry < len(allowed) and bool(allowed[entry])
        if not fits or type(entry) is not int:
            raise ServiceError("the service answers something else than what it was asked.")
        try:
            decision = Decision.from_json(reply.get("decision"))
            decision.build()
            codec = self.codec
            # The other processes of a distributed training are told the action, so there must be one.
            means = codec is not None and codec.shape and codec.decode(codec.encode(decision)) == decision
        except RlmixError as error:
            raise ServiceError(f"the service answers with a decision that is none ({error}).") from error
        if not means and decision != self.decisions[entry]:
            raise ServiceError(f"the service answers `{decision.text}`, which its policy does not know.")
        return entry, decision

    def _stood_in(
        self,
        number: int,
        step: int,
        observation: Tensor,
        allowed: Tensor,
        explore: Streams | None,
        *,
        held: bool,
    ) -> tuple[str, tuple[int, Decision]]:
        """Return what is done without the service, and on whose word.

        Args:
            number: as `choose` takes it, like the others.
            step: of the training.
            observation: of it.
            allowed: entries.
            explore: a key.
            held: whether the last decision may stand in. Not if the service may have the question: it has stored what
                the copy of its policy says.
        """
        last = self._held
        if held and last is not None and step - last.step <= self._options.max_stale_steps and allowed[last.entry]:
            return "held", (last.entry, last.decision)
        entry = self._inner.choose(number, observation, allowed, explore)
        return "snapshot", (entry, self._inner.decision(entry, observation, explore))


class _AwayError(ServiceError):
    """The service was away already, which was said."""


def _follower(url: str, options: Options) -> AbstractSource:
    """Return what the later processes of a distributed training have: the policy of the first, and no service."""
    document, tensors = _ranks.shared(lambda: (b"", b""), 2)
    policy, source, stands_in = _deciding(document, tensors, options)
    source.stands_in, source.ahead = stands_in, 0 if policy is None else _ahead(url, options)
    return source


def _deciding(document: bytes, tensors: bytes, options: Options) -> tuple[Learned | None, AbstractSource, bool]:
    """Return the policy of two files (empty for none), what decides with or without it, and whether it stands in."""
    policy = built({DOCUMENT: document, TENSORS: tensors}) if document else None
    return policy, policy or local(_default(options)), policy is None


def _is_asked(url: str, options: Options) -> bool:
    """Say whether the service decides, or is told afterwards."""
    return options.mode == "remote" and not url.startswith(_SQLITE)


def _ahead(url: str, options: Options) -> int:
    return options.prefetch if _is_asked(url, options) else 0


def _place(url: str, options: Options) -> tuple[str, Callable[[], AbstractTransport]]:
    """Return the name of a service for the cache, and what reaches it."""
    if not url.startswith(_SQLITE):
        token = os.environ.get("RLMIX_TOKEN") if options.token is None else options.token
        url = url.rstrip("/")
        return url, functools.partial(Transport, url, token)
    url = f"{_SQLITE}{Path(url.removeprefix(_SQLITE)).resolve()}"
    try:
        # By name, since the service stands above the policies: only who asks for a database needs it.
        embedded = importlib.import_module("rlmix.service.embedded").Embedded
    except ImportError as error:
        raise MissingDependencyError(
            f"`{url}` needs what the service needs ({error}). Run: pip install 'rlmix[serve]'"
        ) from error
    return url, functools.partial(embedded, url)


def _working(reply: Reply) -> Reply:
    if reply.status >= 500 or reply.status == 429:
        raise ServiceError(f"the service answers {reply.status}.")
    return reply


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"the service answers what is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ServiceError("the service answers what is no JSON object.")
    return found


def _count(run: Mapping[str, Any], name: str, low: int) -> int:
    found = run.get(name)
    if type(found) is not int or not low <= found < 2**53:
        raise ServiceError(f"the service says of the run that its `{name}` is {str(found)[:60]}.")
    return found


def _cache(options: Options) -> Path:
    return cache_folder() if options.cache is None else Path(options.cache)


def _default(options: Options) -> Any:
    return catalogue("cheap").decisions[-1] if options.default is None else options.default
