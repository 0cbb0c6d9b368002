"""The learner: reads runs that have ended, updates the policy, publishes it as a version and lets an alias lead to it.

What is published is a function of the policy that learning began with and of the runs in the order in which they
ended. A learner that is killed, wherever it was, goes on from its last checkpoint, reads the same runs again, and comes
to the same bits: a version that is stored already is then not stored a second time, and an alias that leads there
already is left alone. So nothing has to be undone or found out after a crash.

                 read runs ──▶ enough of them ──▶ update ──▶ test ──▶ store version ──▶ move alias ──▶ checkpoint
                    ▲                                                                                      │
                    └──────────────────────────────────────────────────────────────────────────────────────┘
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import torch

from rlmix._files import load_tree, save_tree
from rlmix.agents.ppo_update import (
    Batch,
    UpdateOptions,
    UpdateStatistics,
    entries_and_values,
    optimizer_of,
    ppo_update,
    trainable,
)
from rlmix.errors import CheckpointError, ConfigError, ConflictError, FencedError, PolicyError
from rlmix.ops import rng
from rlmix.policy.artifact import DOCUMENT, TENSORS, LearnedPolicy, save
from rlmix.policy.limits import CARD_KEY
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.service.experience import Counts, Experience
from rlmix.service.failpoints import fail_point
from rlmix.service.policies import Policies
from rlmix.service.records import Learner, PolicyVersion
from rlmix.service.storage.abstract import AbstractStorage

SCHEMA = "rlmix.learner-checkpoint/1"
_LOGGER = logging.getLogger("rlmix")
# A run is read whole, with all its decisions.
_PAGE = 50
_TOLERANCE = 1e-6
# Word under the seed.
_ORDER = rng.words("learner order")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """What a learner does.

    Attributes:
        project: whose runs.
        policy: name of the policy.
        alias: what leads to the newest version; it must lead somewhere already.
        runs_per_update: how many runs must be there for an update, at least 1.
        learning_rate: step size of Adam, above 0.
        update: how an update is made.
        seed: orders the decisions in an update, in [0, 2**32).
        adopt: go on from where the alias leads, if somebody else has moved it.
        lease_seconds: for how long a learner that is gone keeps others away.

    Raises:
        ConfigError: a value out of its range.
    """

    project: str = "default"
    policy: str = "default"
    alias: str = "default"
    runs_per_update: int = 16
    learning_rate: float = 1e-3
    update: UpdateOptions = field(default_factory=UpdateOptions)
    seed: int = 0
    adopt: bool = False
    lease_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.runs_per_update < 1 or not 0 <= self.seed < 2**32 or not self.lease_seconds > 0:
            raise ConfigError(
                "`runs_per_update` must be at least 1, `seed` in [0, 2**32) and `lease_seconds` above 0, got "
                f"{self.runs_per_update}, {self.seed} and {self.lease_seconds}."
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerReport:
    """Where learning has come to.

    Attributes:
        counts: what became of the runs that were read.
        ready: runs that wait for an update.
        aside: runs that wait for others of their kind.
        updates: how many were made, ever.
        version: number of the version that the alias is to lead to.
        reward: mean reward of the trainings in the update that was just made; None if none was.
        statistics: of that update.
    """

    counts: Counts
    ready: int
    aside: int
    updates: int
    version: int
    reward: float | None = None
    statistics: UpdateStatistics | None = None


Hook = Callable[[LearnerReport], None]


def learn(
    storage: AbstractStorage,
    settings: LearnerSettings,
    *,
    report: Hook | None = None,
    more: Callable[[], bool] | None = None,
) -> LearnerReport:
    """Learn from all runs of a policy that have ended since the last time.

    Args:
        storage: where they are, and where versions go; may be in use by a service at the same time.
        settings: what to do.
        report: told of every update, and once at the beginning.
        more: called when everything is read; waits and says whether to look again. None ends then.

    Raises:
        CheckpointError: the checkpoint in the storage is damaged or of another alias.
        ConfigError: the policy cannot be trained.
        ConflictError: somebody else has moved the alias, or another learner is at work.
        MissingError: there is no such project, policy or alias.
        PolicyError: the policy is damaged, or an update made it so.
        StorageError: the database cannot answer.
    """
    lease = _Lease(storage, settings)
    try:
        learning = _Learning.begin(storage, settings, lease)
        told = report or _silent
        told(learning.report)
        learning.advance(told)
        while more is not None and more():
            learning.advance(told)
        return learning.report
    finally:
        lease.release()


def _silent(report: LearnerReport) -> None:
    """Tell nobody."""


@final
class _Lease:
    """Keeps other learners of the same policy away.

    Args:
        storage: where it is noted.
        settings: of the learner.

    Raises:
        ConflictError: another learner is at work.
    """

    def __init__(self, storage: AbstractStorage, settings: LearnerSettings) -> None:
        self.name = f"learner/{settings.project}/{settings.policy}"
        self._storage, self._seconds = storage, settings.lease_seconds
        self._holder = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(8)}"
        self.fence = self._taken()

    def keep(self) -> None:
        """Keep it for longer.

        Raises:
            FencedError: another learner has it, or had it.
        """
        if self._storage.acquire(self.name, self._holder, self._seconds) != self.fence:
            raise FencedError(f"another learner has taken over (lease `{self.name}`). Start again to go on from there.")

    def release(self) -> None:
        """Let others have it."""
        self._storage.release(self.name, self._holder)

    def _taken(self) -> int:
        # A learner that was killed holds it until it runs out; one that is alive will have renewed it by then.
        end = time.monotonic() + 1.5 * self._seconds
        fence = self._storage.acquire(self.name, self._holder, self._seconds)
        if fence is None:
            _LOGGER.warning("another learner is at work, or was killed just now: waiting up to %.0f s to see which.",
                            end - time.monotonic())  # fmt: skip
        while fence is None:
            if time.monotonic() > end:
                raise ConflictError(f"another learner is at work (lease `{self.name}`). One is enough: stop either.")
            time.sleep(min(0.5, self._seconds / 10))
            fence = self._storage.acquire(self.name, self._holder, self._seconds)
        return fence


@final
@dataclass(slots=True, kw_only=True, eq=False)
class _Learning:
    """A learner at work: everything that its checkpoint holds, in memory."""

    storage: AbstractStorage
    settings: LearnerSettings
    lease: _Lease
    policies: Policies
    cursor: int
    version: PolicyVersion
    policy: LearnedPolicy
    network: PolicyNetwork
    optimizer: torch.optim.Adam
    experience: Experience
    updates: int

    @classmethod
    def begin(cls, storage: AbstractStorage, settings: LearnerSettings, lease: _Lease) -> _Learning:
        """Go on from the checkpoint, or begin with the version that the alias leads to."""
        stored, policies = storage.learner(settings.project, settings.policy), Policies(storage)
        tree = None if stored.checkpoint is None else _read(storage.blob(stored.checkpoint), settings)
        led_to = storage.alias(settings.project, settings.policy, settings.alias).version
        version = led_to if tree is None else storage.version(settings.project, settings.policy, tree["version"])
        adopted = tree is not None and settings.adopt and led_to != version
        if adopted:
            version = led_to
        policy = policies.get(version.document, version.tensors).policy
        if policy.codec is not None:
            raise ConfigError(
                f"the policy `{settings.policy}` sets parameters, which `rlmix learn` does not learn. Begin with one "
                "that chooses from a catalogue: `rlmix policy new` makes it."
            )
        network = trainable(policy.network)
        made = cls(
            storage=storage,
            settings=settings,
            lease=lease,
            policies=policies,
            cursor=stored.cursor,
            version=version,
            policy=policy,
            network=network,
            optimizer=optimizer_of(network, settings.learning_rate),
            experience=Experience() if tree is None else Experience.from_tree(tree["experience"]),
            updates=0 if tree is None else tree["updates"],
        )
        if tree is not None and not adopted:
            _restore(made.optimizer, tree["optimizer"], settings.learning_rate)
        if adopted:
            made.experience.forget()
        if tree is None or settings.adopt:
            # From here on the alias may move: what learning began with must not be looked up again.
            made._save()
        return made

    @property
    def report(self) -> LearnerReport:
        """Where it has come to."""
        return LearnerReport(
            counts=self.experience.counts,
            ready=self.experience.ready,
            aside=self.experience.aside,
            updates=self.updates,
            version=self.version.number,
        )

    def advance(self, told: Hook) -> None:
        """Read everything that is there, and update whenever it is enough."""
        while True:
            self.lease.keep()
            page = self.storage.ended(self.settings.project, self.settings.policy, self.cursor, _PAGE)
            if not page:
                return
            for ended in page:
                self.cursor = ended.cursor
                self.experience.add(ended, self._taker(ended.run.version), self.policy)
                # One by one, so that it does not matter how many were there when somebody looked.
                if self.experience.ready >= self.settings.runs_per_update:
                    self._update(told)

    def _taker(self, version: PolicyVersion) -> LearnedPolicy | None:
        try:
            return self.policies.get(version.document, version.tensors).policy
        except PolicyError:
            return None

    def _update(self, told: Hook) -> None:
        batch, reward = self.experience.take()
        generator = torch.Generator().manual_seed(rng.derive(self.settings.seed, _ORDER, self.updates))
        statistics = ppo_update(self.network, self.optimizer, batch, self.settings.update, generator=generator)
        self.updates += 1
        fail_point("learner.after_update")
        self.lease.keep()
        self.policy = replace(self.policy, network=_fixed(self.network), card=self._card(reward))
        before, self.version = self.version, self._published(batch)
        fail_point("learner.after_publish")
        self._move_alias(before)
        fail_point("learner.after_alias")
        self._save()
        fail_point("learner.after_checkpoint")
        told(replace(self.report, reward=reward, statistics=statistics))

    def _card(self, reward: float) -> dict[str, Any]:
        """Return where the policy comes from: the same for the same runs at any time and place."""
        counts, settings = self.experience.counts, self.settings
        kept = {key: value for key, value in self.policy.card.items() if key == CARD_KEY}
        return {
            "algorithm": "PPO on the runs of a policy service",
            "parent": self.version.document,
            "updates": self.updates,
            "runs": counts.learned,
            "decisions": counts.decisions,
            "reward": reward,
            "learning_rate": settings.learning_rate,
            "seed": settings.seed,
            **kept,
        }

    def _published(self, batch: Batch) -> PolicyVersion:
        """Store the policy, test what was stored, and make it a version."""
        files = _files(self.policy)
        fail_point("learner.before_publish")
        document, tensors = (self.storage.put_blob(files[name])[0] for name in (DOCUMENT, TENSORS))
        check(self.policies.get(document, tensors).policy, self.network, batch)
        return self.storage.add_version(self.settings.project, self.settings.policy, document, tensors)[0]

    def _move_alias(self, before: PolicyVersion) -> None:
        """Let the alias lead from the version before to the new one, if it leads to neither of others."""
        project, policy, name = self.settings.project, self.settings.policy, self.settings.alias
        found = self.storage.alias(project, policy, name)
        if found.version == self.version:
            return
        if found.version != before:
            raise ConflictError(
                f"somebody else has moved the alias `{name}`: it leads to version {found.version.number}, and version "
                f"{before.number} was expected. Version {self.version.number}, learned from {before.number}, is stored "
                f"and not promoted. To learn on from version {found.version.number}, start with --adopt; to go on with "
                f"{before.number}, let the alias lead there again, and start again."
            )
        self.storage.set_alias(project, policy, name, self.version.number, found.revision)

    def _save(self) -> None:
        tree = {
            "schema": SCHEMA,
            "alias": self.settings.alias,
            "version": self.version.number,
            "updates": self.updates,
            "experience": self.experience.to_tree(),
            "optimizer": _captured(self.optimizer),
        }
        fail_point("learner.before_checkpoint")
        digest, _ = self.storage.put_blob(_bytes(tree))
        state = Learner(cursor=self.cursor, checkpoint=digest)
        lease, fence = self.lease.name, self.lease.fence
        self.storage.save_learner(self.settings.project, self.settings.policy, state, lease=lease, fence=fence)


def check(policy: LearnedPolicy, network: PolicyNetwork, batch: Batch) -> None:
    """Make sure that a policy which was read back answers as the network that it was written from.

    Args:
        policy: as it will be served.
        network: as it was trained.
        batch: observations that clients made.

    Raises:
        PolicyError: it does not, or its probabilities are no probabilities.
    """
    probabilities = policy.probabilities(batch.observations, batch.allowed)
    if (
        not bool(torch.isfinite(probabilities).all())
        or float((probabilities.sum(-1) - 1).abs().max()) > _TOLERANCE * 10
    ):
        raise PolicyError("the updated policy does not answer with probabilities. Lower --learning-rate.")
    wanted, values = entries_and_values(network, batch.observations, batch.allowed)
    served = policy.network.value(batch.observations)
    off = max(float((probabilities - wanted.exp()).abs().max()), float((served - values).abs().max()))
    if not off <= _TOLERANCE * max(1.0, float(values.abs().max())):
        raise PolicyError(
            f"the stored policy answers otherwise than the trained one (by {off:.2g}). Nothing is served."
        )


def _fixed(network: PolicyNetwork) -> PolicyNetwork:
    """Return a copy that no update changes."""

    def copies(layers: Layers) -> Layers:
        return tuple((weight.detach().clone(), bias.detach().clone()) for weight, bias in layers)

    return PolicyNetwork(actor=copies(network.actor), critic=copies(network.critic or ()))


def _files(policy: LearnedPolicy) -> dict[str, bytes]:
    """Return the files of a policy directory."""
    with tempfile.TemporaryDirectory(prefix="rlmix-") as folder:
        save(folder, policy)
        return {name: (Path(folder) / name).read_bytes() for name in (DOCUMENT, TENSORS)}


def _bytes(tree: Mapping[str, Any]) -> bytes:
    with tempfile.TemporaryDirectory(prefix="rlmix-") as folder:
        path = Path(folder) / "learner.safetensors"
        save_tree(path, tree)
        return path.read_bytes()


def _read(data: bytes, settings: LearnerSettings) -> Mapping[str, Any]:
    """Return a checkpoint, if it is one of this learner."""
    with tempfile.TemporaryDirectory(prefix="rlmix-") as folder:
        path = Path(folder) / "learner.safetensors"
        path.write_bytes(data)
        tree = load_tree(path)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        raise CheckpointError(f"the learner's checkpoint is none of this version of rlmix ({SCHEMA}).")
    if tree["alias"] != settings.alias and not settings.adopt:
        raise CheckpointError(
            f"the learner of `{settings.policy}` moves the alias `{tree['alias']}`, not `{settings.alias}`. Give that "
            "one, or start with --adopt to go on from where the other leads."
        )
    return tree


def _captured(optimizer: torch.optim.Adam) -> dict[str, Any]:
    state = optimizer.state_dict()
    return {str(index): dict(values) for index, values in state["state"].items()}


def _restore(optimizer: torch.optim.Adam, tree: Mapping[str, Any], learning_rate: float) -> None:
    state = optimizer.state_dict()
    state["state"] = {int(index): values for index, values in tree.items()}
    try:
        optimizer.load_state_dict(state)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"the learner's checkpoint does not fit its policy: {error}") from error
