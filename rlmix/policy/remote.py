"""A policy that a service decides for: the client's side, which never keeps a training waiting and never ends one.

Each decision is asked of the service. Where it does not answer in time, the training goes on with what it has: the
decision before (if that is recent enough), or its own copy of the policy, which says what the service would have
said. A training that never reached the service, and has no copy, is mixed by the default.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import secrets
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix._files import sha256_of, write_bytes, write_text
from rlmix.errors import ConfigError, OutputError, RlmixError, ServiceError
from rlmix.ops.rng import Streams
from rlmix.policy._courier import Courier, Letter, cache_folder
from rlmix.policy._transport import Transport
from rlmix.policy.artifact import DOCUMENT, TENSORS, load
from rlmix.policy.codec import catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.limits import Facts
from rlmix.policy.observer import AbstractObserver, Training
from rlmix.policy.sources import AbstractSource, Learned
from rlmix.policy.sources import source as local

OnError: TypeAlias = Literal["degrade", "raise"]

_LOGGER = logging.getLogger("rlmix")
_JSON_BYTES = 2**20
_BLOB_BYTES = 64 * 2**20
_CLOSE_SECONDS = 5.0
_NEWEST = "newest"
_NAME = r"[a-z0-9][a-z0-9._-]{0,62}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a training speaks to the service.

    Attributes:
        project: whose policies and runs.
        policy: name of the policy.
        alias: which of its versions: where this name leads when the training begins.
        run: name of the training, to go on with it after an interruption; None makes a new one.
        labels: what the training is, such as data, model and optimiser: trainings with equal ones are comparable.
        token: opens the service; None takes the variable RLMIX_TOKEN, if there is one.
        default: what mixes a training that never reached the service and has no copy of its policy: anything that a
            `MixController` takes. None: a mixture of methods without saliency in equal parts.
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
        if self.max_stale_steps < 0:
            raise ConfigError(f"`max_stale_steps` must be at least 0, got {self.max_stale_steps}.")
        if self.on_error not in ("degrade", "raise"):
            raise ConfigError(f'`on_error` must be "degrade" or "raise", got {self.on_error!r}.')


def connect(url_or_path: str | os.PathLike[str], **options: Any) -> AbstractSource:
    """Return who decides for one training, for `MixController`.

    Args:
        url_or_path: `http://HOST:PORT` of a service (`rlmix serve`), or a policy directory, which needs none.
        options: the fields of `Options`, for a service.

    Raises:
        ConfigError: an address or an option of a wrong form.
        PolicyError: a damaged policy directory.
        ServiceError: the service does not answer, with `on_error="raise"`.
    """
    if is_url(url_or_path):
        return Remote(str(url_or_path), Options(**options))
    if options:
        raise ConfigError(f"`{next(iter(options))}` belongs to a service, and `{url_or_path}` is a directory.")
    return Learned(load(url_or_path))


def source_of(given: Any) -> AbstractSource:
    """Return who decides, of whatever a user may give; see `rlmix.policy.sources.source`, and addresses of services."""
    return connect(given) if is_url(given) else local(given)


def is_url(given: Any) -> bool:
    """Say whether something is the address of a service."""
    return isinstance(given, str) and given.startswith(("http://", "https://"))


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """What the service last decided, and from which step on."""

    step: int
    entry: int
    decision: Decision


@final
class Remote(AbstractSource):
    """One training's side of the service.

    Args:
        url: the service's address.
        options: how to speak to it.

    Raises:
        ConfigError: the address has a wrong form.
        ServiceError: the service does not answer, with `on_error="raise"`.
    """

    def __init__(self, url: str, options: Options) -> None:
        token = os.environ.get("RLMIX_TOKEN") if options.token is None else options.token
        self._url, self._options = url.rstrip("/"), options
        self._transport = Transport(self._url, token)
        self._base = f"/v1/projects/{options.project}"
        self._run = secrets.token_hex(16) if options.run is None else options.run
        self._cache = _cache(options) / sha256_of(self._url.encode("utf-8"))[:16]
        self._courier = Courier(Transport(self._url, token), self._cache / "letters")
        self._setup_end = time.monotonic() + options.setup_deadline
        self._digest = ""
        self._policy: Learned | None = None
        self._counts: Counter[str] = Counter()
        try:
            self._policy, self._digest = self._fetched()
        except RlmixError as error:
            if options.on_error == "raise":
                self.close(finished=False)
            self._failed(error)
            self._policy, self._digest = self._kept() or (None, "")
            if self._policy is not None:
                self._courier.missed()
        self._inner: AbstractSource = self._policy or local(_default(options))
        if self._policy is None:
            _LOGGER.warning("no copy of the policy of %s: the default mixes this training.", self._url)
        self.stands_in = self._policy is None
        self.names, self.decisions, self.methods = self._inner.names, self._inner.decisions, self._inner.methods
        self._points: tuple[int, ...] = ()
        self._held: _Held | None = None
        self._taken: tuple[int, Decision] | None = None

    def points(self, total_steps: int) -> tuple[int, ...]:
        """Return the steps at which the policy, or the default, decides."""
        self._points = self._inner.points(total_steps)
        return self._points

    def observer(self, training: Training) -> AbstractObserver:
        """Tell the service of the training, and return an observer of what the policy reads."""
        if self._policy is not None:
            self._begin(training)
        return self._inner.observer(training)

    def choose(self, number: int, observation: Tensor | None, allowed: Tensor, explore: Streams | None) -> int:
        """Return the choice of the service, or what stands in for it."""
        if self._policy is None or observation is None:
            self._counts["default"] += 1
            return self._inner.choose(number, observation, allowed, explore)
        step = self._points[number]
        question = self._question(self._policy, step, observation, allowed, explore)
        answer = self._asked(number, question, allowed)
        if answer is not None:
            self._counts["server"] += 1
            self._taken, self._held = answer, _Held(step=step, entry=answer[0], decision=answer[1])
            return answer[0]
        origin, self._taken = self._stood_in(number, step, observation, allowed, explore)
        self._counts[origin] += 1
        entry, decision = self._taken
        if question is not None:
            taken = {"origin": origin, "entry": entry, "decision": decision.to_json()}
            self._tell("PUT", f"decisions/{number}", {**question, "taken": taken}, str(number))
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
        """Tell the service what came of a decision, now or when it is back."""
        if self._policy is not None:
            self._tell("PUT", f"feedback/{number}", {"values": dict(values)}, str(number))

    def close(self, *, finished: bool) -> Mapping[str, int]:
        """Deliver what is left, for a few seconds; return how many decisions came from where."""
        if self._policy is not None and finished:
            self._courier.send(Letter(method="POST", path=f"{self._path}:finish", body=None, subject=self._run))
        left = self._courier.close(_CLOSE_SECONDS)
        if left or self._courier.lost:
            _LOGGER.warning("%d messages to the policy service wait for the next training, %d are lost.", left,
                            self._courier.lost)  # fmt: skip
        self._transport.close()
        return dict(self._counts)

    @property
    def _path(self) -> str:
        return f"{self._base}/runs/{self._run}"

    def _tell(self, method: str, path: str, body: Mapping[str, Any], subject: str) -> None:
        subject = f"{self._run}/{subject}"
        self._courier.send(Letter(method=method, path=f"{self._path}/{path}", body=body, subject=subject))

    def _failed(self, error: RlmixError) -> None:
        """Take notice that the service did not do its part."""
        if self._options.on_error == "raise":
            raise ServiceError(f"{self._url}: {error}") from error
        _LOGGER.warning("%s: %s", self._url, error)

    def _called(self, method: str, path: str, body: Any, seconds: float, limit: int = _JSON_BYTES) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body, allow_nan=False).encode("utf-8")
        reply = self._transport.call(method, path, data, seconds=seconds, limit=limit)
        if reply.status >= 500 or reply.status == 429:
            raise ServiceError(f"the service answers {reply.status}.")
        return reply.status, reply.body

    def _set_up(self, method: str, path: str, body: Any = None, limit: int = _JSON_BYTES) -> tuple[int, bytes]:
        """Make one of the calls before the first step."""
        return self._called(method, path, body, max(0.0, self._setup_end - time.monotonic()), limit)

    def _fetched(self) -> tuple[Learned, str]:
        """Return the policy that the service decides with, and its digest; keep a copy."""
        version: Any = None
        if self._options.run is not None:
            status, body = self._set_up("GET", self._path)
            version = _parsed(body).get("policy") if status == 200 else None
        if version is None:
            place = f"{self._base}/policies/{self._options.policy}/aliases/{self._options.alias}"
            status, body = self._set_up("GET", place)
            if status != 200:
                raise ServiceError(f"there is no policy at {place} ({status}). Is the service given one?")
            version = _parsed(body).get("version")
        try:
            document, tensors = str(version["document"]), str(version["tensors"])
        except (KeyError, TypeError):
            raise ServiceError("the service does not say which policy it has.") from None
        data = {DOCUMENT: self._blob(document), TENSORS: self._blob(tensors)}
        self._courier.met()
        return self._stored(document, data), document

    def _blob(self, digest: str) -> bytes:
        status, data = self._set_up("GET", f"/v1/blobs/sha256/{digest}", limit=_BLOB_BYTES)
        if status != 200 or sha256_of(data) != digest:
            raise ServiceError(f"the service does not give the blob {digest[:12]}... that its policy consists of.")
        return data

    def _stored(self, digest: str, files: Mapping[str, bytes]) -> Learned:
        """Write a policy into the cache and return it as it is read back."""
        folder = self._copies / digest
        try:
            for name, data in files.items():
                write_bytes(folder / name, data)
            policy = Learned(load(folder))
            write_text(self._copies / _NEWEST, digest)
        except OutputError as error:
            _LOGGER.warning("no copy of the policy is kept for the next training (%s).", error)
            with tempfile.TemporaryDirectory(prefix="rlmix-") as passing:
                for name, data in files.items():
                    (Path(passing) / name).write_bytes(data)
                policy = Learned(load(passing))
        return policy

    def _kept(self) -> tuple[Learned, str] | None:
        """Return the policy that an earlier training got, and its digest."""
        try:
            digest = (self._copies / _NEWEST).read_text(encoding="utf-8").strip()
            if sha256_of((self._copies / digest / DOCUMENT).read_bytes()) != digest:
                return None
            return Learned(load(self._copies / digest)), digest
        except (OSError, ValueError):
            return None

    @property
    def _copies(self) -> Path:
        options = self._options
        return self._cache / "policies" / options.project / options.policy / options.alias

    def _begin(self, training: Training) -> None:
        """Make the run known."""
        options = self._options
        body = {
            "policy": options.policy,
            "alias": options.alias,
            "total_steps": training.total_steps,
            "num_classes": training.num_classes,
            "num_examples": training.num_examples,
            "labels": dict(options.labels or {}),
        }
        letter = Letter(method="PUT", path=self._path, body=body, subject=self._run)
        if self._courier.away:
            self._courier.send(letter)
            return
        try:
            status, answer = self._set_up(letter.method, letter.path, body)
        except ServiceError as error:
            self._failed(error)
            self._courier.missed()
            self._courier.send(letter)
            return
        if status >= 300:
            self._failed(ServiceError(f"the service refuses the run ({status}): {_said(answer)}"))

    @staticmethod
    def _question(
        policy: Learned, step: int, observation: Tensor, allowed: Tensor, explore: Streams | None
    ) -> dict[str, Any] | None:
        """Return what is asked of the service, or None of an observation that it would not take."""
        seen = torch.clamp(observation, policy.policy.low, policy.policy.high)
        if not bool(torch.isfinite(seen).all()):
            return None
        entries = [entry for entry, named in enumerate(allowed.tolist()) if named]
        return {
            "step": step,
            "observation": seen.tolist(),
            "allowed": None if len(entries) == len(allowed) else entries,
            "explore": None if explore is None else hex(explore.keys[0]),
        }

    def _asked(self, number: int, question: dict[str, Any] | None, allowed: Tensor) -> tuple[int, Decision] | None:
        """Return the entry and the Decision that the service answers, or None if it does not."""
        if question is None:
            return None
        question["policy"] = self._digest
        if self._courier.away:
            if self._options.on_error == "raise":
                self._failed(ServiceError("the service did not answer, and does not yet."))
            return None
        try:
            status, body = self._called("PUT", f"{self._path}/decisions/{number}", question, self._options.deadline)
            if status >= 300:
                self._failed(ServiceError(f"no decision ({status}): {_said(body)}"))
                return None
            answer = self._answer(number, _parsed(body), allowed)
        except ServiceError as error:
            self._courier.missed()
            self._failed(error)
            return None
        self._courier.met()
        return answer

    def _answer(self, number: int, reply: Mapping[str, Any], allowed: Tensor) -> tuple[int, Decision]:
        """Return what a reply says, if it is one to this question."""
        entry = reply.get("entry")
        fits = reply.get("seq") == number and type(entry) is int and 0 <= entry < len(allowed) and bool(allowed[entry])
        if not fits or type(entry) is not int:
            raise ServiceError("the service answers something else than what it was asked.")
        try:
            decision = Decision.from_json(reply.get("decision"))
            decision.build()
        except RlmixError as error:
            raise ServiceError(f"the service answers with a decision that is none ({error}).") from error
        return entry, decision

    def _stood_in(
        self, number: int, step: int, observation: Tensor, allowed: Tensor, explore: Streams | None
    ) -> tuple[str, tuple[int, Decision]]:
        """Return what is done without the service, and on whose word."""
        held = self._held
        if held is not None and step - held.step <= self._options.max_stale_steps and bool(allowed[held.entry]):
            return "held", (held.entry, held.decision)
        entry = self._inner.choose(number, observation, allowed, explore)
        return "snapshot", (entry, self._inner.decision(entry, observation, explore))


def _parsed(body: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError(f"the service answers what is no JSON ({error}).") from error
    if not isinstance(found, dict):
        raise ServiceError("the service answers what is no JSON object.")
    return found


def _said(body: bytes) -> str:
    return body[:300].decode("utf-8", "replace")


def _cache(options: Options) -> Path:
    return cache_folder() if options.cache is None else Path(options.cache)


def _default(options: Options) -> Any:
    return catalogue("cheap").decisions[-1] if options.default is None else options.default
