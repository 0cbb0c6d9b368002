"""The pool: N trainings side by side, wave after wave. All environments of this package are thin shells on it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmix.envs import dynamics
from rlmix.envs.block import Block, Library, Slot, buckets
from rlmix.envs.dynamics import Visible
from rlmix.envs.instances import Instance, InstanceSet, check_horizon
from rlmix.envs.reference import Progress, References
from rlmix.envs.reward import LIMIT, Scores, relative
from rlmix.errors import CheckpointError, EnvError, InputError
from rlmix.ops import rng
from rlmix.policy import signals
from rlmix.policy.codec import AbstractCodec, Action, Catalogue, codec_of
from rlmix.policy.decision import Decision

Reward: TypeAlias = Literal["reference"] | None

_SCHEMA = "rlmix.pool/1"
# The word under an episode key that a fork's fresh key belongs to.
_FORK = 6


@final
class Pool:
    """N trainings that begin and end together: a wave.

    Slot i with seed s picks its instance and its keys by s and the number of the wave alone, so it does what a pool of
    that one slot would do. Slots of one bucket are trained as one stack.

    Args:
        instances: what slots pick from.
        seeds: one for each slot, in [0, 2**63).
        catalogue: what actions mean: a catalogue, whose entries they count, or another codec.
        reward: "reference" compares the score with that of uniform random mixing on the same instance; None gives
            zeros, and needs no reference.
        masks: whether observations hide sources at random, as an agent's training should.
        with_validation: whether observations show the validation images at all.
        data_dir: where data sets lie that are not part of a package.
        device: where classifiers train.
        progress: called with the references computed so far and those to compute in all.

    Raises:
        EnvError: no seed, a seed out of range, or `reward` without a mixture in the catalogue.
        OutputError: the folder of references cannot be written.
    """

    def __init__(
        self,
        instances: InstanceSet,
        *,
        seeds: Sequence[int],
        catalogue: Catalogue | AbstractCodec,
        reward: Reward = "reference",
        masks: bool = True,
        with_validation: bool = True,
        data_dir: str | os.PathLike[str] | None = None,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> None:
        if reward not in ("reference", None):
            raise EnvError(f'`reward` must be "reference" or None, got {reward!r}.')
        self.instances, self.codec = instances, codec_of(catalogue)
        self.catalogue = self.codec.catalogue
        self.horizon = instances.horizon
        self.observation_names = signals.names(self.catalogue)
        self._library = Library(self.catalogue, data_dir, device)
        self._digest = instances.digest
        self._masks, self._with_validation = masks, with_validation
        self._references = None if reward is None else References(instances, self._library, progress)
        self._blocks: list[tuple[list[int], Block]] = []
        self._decision = self.horizon
        self._trace: list[tuple[str, ...]] = []
        self._slots: tuple[Slot, ...] = ()
        self.seed(seeds)

    def seed(self, seeds: Sequence[int], wave: int = 0) -> None:
        """Give the slots new seeds and say which wave the next `reset` begins.

        Raises:
            EnvError: no seed, or one out of range.
        """
        if not seeds or not all(0 <= seed < 2**63 for seed in seeds) or wave < 0:
            raise EnvError(
                f"`seeds` must be one or more whole numbers in [0, 2**63) and `wave` at least 0, got {list(seeds)} and "
                f"{wave}."
            )
        self._seeds, self._wave = tuple(int(seed) for seed in seeds), wave

    @property
    def seeds(self) -> tuple[int, ...]:
        """What the slots pick by."""
        return self._seeds

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The trainings of this wave."""
        return self._slots

    @property
    def decision(self) -> int:
        """How many decisions of this wave are made, in [0, H]; H also before the first wave."""
        return self._decision

    @property
    def wave(self) -> int:
        """The wave that the next `reset` begins."""
        return self._wave

    def reset(self, seeds: Sequence[int] | None = None, instances: Sequence[str | None] | None = None) -> Tensor:
        """Begin the next wave.

        Args:
            seeds: new ones restart the count of waves.
            instances: id of the instance of each slot, None where the slot picks; None for all to pick.

        Returns:
            float32 [N, D].

        Raises:
            EnvError: an id that the set does not have, or not one for each slot.
            DataError: a data set is missing or too small.
        """
        if seeds is not None:
            self.seed(seeds)
        given = [None] * len(self._seeds) if instances is None else list(instances)
        if len(given) != len(self._seeds):
            raise EnvError(f"`instances` must be one for each of {len(self._seeds)} slots, got {len(given)}.")
        menu = dynamics.menu(self.instances, self._digest, self._wave)
        picked = [
            dynamics.pick(menu, self._wave, seed) if name is None else self.instances.find(name)
            for seed, name in zip(self._seeds, given, strict=True)
        ]
        keys = [dynamics.episode_key(seed, self._wave) for seed in self._seeds]
        self._wave += 1
        return self.begin(picked, keys)

    def begin(self, instances: Sequence[Instance], keys: Sequence[int]) -> Tensor:
        """Begin a wave of these instances with these episode keys, any number of them.

        Args:
            instances: of the set or not.
            keys: in [0, 2**63); equal keys give equal weights, batches and mixing numbers.

        Returns:
            float32 [N, D].

        Raises:
            EnvError: not one key for each instance.
            ConfigError: the horizon does not divide a budget, or a model cannot be stacked.
            DataError: a data set is missing or too small.
        """
        if not instances or len(instances) != len(keys):
            raise EnvError(f"a wave needs instances and a key for each, got {len(instances)} and {len(keys)} keys.")
        for instance in instances:
            check_horizon(instance, self.horizon)
        slots = [
            Slot(instance=instance, key=key, visible=self._visible(key))
            for instance, key in zip(instances, keys, strict=True)
        ]
        self._slots = tuple(slots)
        self._blocks = [(rows, Block.begin(self._library, [slots[row] for row in rows])) for rows in buckets(instances)]
        self._decision, self._trace = 0, []
        return self._observe()

    def step(
        self, actions: Tensor | npt.NDArray[Any] | Sequence[Action]
    ) -> tuple[Tensor, Tensor, bool, dict[str, Any]]:
        """Train all slots until their next decision.

        Args:
            actions: of a catalogue its entries, int [N]; else [N, *shape] as the codec reads them.

        Returns:
            Observations float32 [N, D]; rewards float32 [N], 0 before the end; whether the wave has ended; and a
            mapping with `instance` (ids), `step` (steps done, int64 [N]) and `decision` (names of the entries, or the
            Decisions' texts where actions set parameters). At the end also `score`, `final_acc`, `ts_nll` (float64 [N]
            on val-R) and `decisions` (all names, for each slot); with a reward also `score_uniform`, `score_norm` (the
            reward) and `is_success` (bool [N]).

        Raises:
            EnvError: actions of a wrong shape, type or range, or a wave that has ended or not begun.
        """
        given = self._actions(actions)
        entries, decisions = self._read(given)
        for rows, block in self._blocks:
            first, last = (self._step_of(block, decision) for decision in (self._decision, self._decision + 1))
            set_here = None if self.codec.kind == "discrete" else [decisions[row] for row in rows]
            block.advance([entries[row] for row in rows], first, last, set_here)
        self._decision += 1
        chosen = tuple(map(self.codec.text, given))
        self._trace.append(chosen)
        observation = self._observe()
        done = self._decision == self.horizon
        info: dict[str, Any] = {
            "instance": tuple(slot.instance.id for slot in self._slots),
            "step": torch.tensor([slot.instance.total_steps * self._decision // self.horizon for slot in self._slots]),
            "decision": chosen,
        }
        reward = torch.zeros(len(self._slots), device=observation.device)
        if done:
            info |= self._final()
            reward = info.get("score_norm", reward).float().to(observation.device)
        return observation, reward, done, info

    def predict(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the classifiers' logits, float32 [N, n, C].

        Args:
            images: [n, C, H, W] for all slots, or one such tensor for each.

        Raises:
            EnvError: no wave has begun, slots of different image sizes or class counts, or not one tensor for each.
        """
        self._check_begun()
        count = len(self._slots)
        each = [images] * count if isinstance(images, Tensor) else list(images)
        if len(each) != count:
            raise EnvError(f"`images` must be one tensor, or one for each of {count} slots, got {len(each)}.")
        if len({slot.instance.data for slot in self._slots}) > 1 and isinstance(images, Tensor):
            raise EnvError("the slots have different data sets: give `images` for each slot.")
        parts = []
        for rows, block in self._blocks:
            stacked = torch.stack([each[row].to(self._library.device) for row in rows])
            parts.append((rows, block.predict(stacked)))
        return _joined(parts, count)

    def scores(self) -> Scores:
        """Return score, accuracy and TS-NLL on val-R as they are now, float64 [N].

        Raises:
            EnvError: no wave has begun.
        """
        self._check_begun()
        parts = [(rows, block.scores()) for rows, block in self._blocks]
        return Scores(*(_joined([(rows, part[field]) for rows, part in parts], len(self._slots)) for field in range(3)))

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state as a tree of tensors, numbers and strings, for `restore` and `save_tree`.

        Raises:
            EnvError: no wave has begun.
        """
        self._check_begun()
        return {
            "schema": _SCHEMA,
            "instances": self._digest,
            "catalogue": self.codec.digest,
            "seeds": list(self._seeds),
            "wave": self._wave,
            "decision": self._decision,
            "trace": [list(chosen) for chosen in self._trace],
            "blocks": [{"rows": rows, **block.tree()} for rows, block in self._blocks],
        }

    def restore(self, tree: dict[str, Any]) -> None:
        """Go back to a snapshot, of this pool or of one with the same instances and catalogue.

        Raises:
            CheckpointError: the snapshot is of another kind, set or catalogue, or damaged.
        """
        expected = {"schema": _SCHEMA, "instances": self._digest, "catalogue": self.codec.digest}
        for name, value in expected.items():
            if tree.get(name) != value:
                raise CheckpointError(
                    f"the snapshot has `{name}` {tree.get(name)!r}, expected {value!r}. Restore it into a pool with "
                    "the instances and the catalogue that it was taken from."
                )
        try:
            blocks = [(list(part["rows"]), Block.from_tree(self._library, part)) for part in tree["blocks"]]
            self._seeds, self._wave, self._decision = tuple(tree["seeds"]), tree["wave"], tree["decision"]
            self._trace = [tuple(chosen) for chosen in tree["trace"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the snapshot is damaged ({error!r}).") from error
        self._blocks, self._slots = blocks, _slots_of(blocks)

    def fork(self, rows: Sequence[int], *, rekey: bool = False) -> Pool:
        """Return a pool that goes on from copies of some slots.

        Args:
            rows: slots, each as often as it is named.
            rekey: False keeps the episode keys, so that a copy given the same actions stays the same bit for bit; True
                gives each copy streams of its own for all that follows. What it observes stays shown or hidden.

        Raises:
            EnvError: no wave has begun, or no such slot.
        """
        self._check_begun()
        rows = [int(row) for row in rows]
        if not rows or not all(0 <= row < len(self._slots) for row in rows):
            raise EnvError(f"`rows` must be one or more slots in [0, {len(self._slots)}), got {rows}.")
        slots = [self._slots[row] for row in rows]
        if rekey:
            slots = [replace(slot, key=rng.derive(slot.key, _FORK, place)) for place, slot in enumerate(slots)]
        child = object.__new__(Pool)
        child.__dict__.update(self.__dict__)
        child._blocks = []
        for own, block in self._blocks:
            places = [place for place, row in enumerate(rows) if row in own]
            if places:
                picked = block.select([own.index(rows[place]) for place in places], [slots[place] for place in places])
                child._blocks.append((places, picked))
        child._slots = tuple(slots)
        child._trace = [tuple(chosen[row] for row in rows) for chosen in self._trace]
        # For the waves that follow: copies of one slot go the same way then, until they get other seeds.
        child._seeds = tuple(self._seeds[row] if row < len(self._seeds) else row for row in rows)
        return child

    def _actions(self, actions: Tensor | npt.NDArray[Any] | Sequence[Action]) -> list[Action]:
        """Return the actions as numbers on the host, of a checked form."""
        if self._decision >= self.horizon:
            raise EnvError("the wave has ended, or none has begun. Call `reset` first.")
        given = actions.detach().cpu().numpy() if isinstance(actions, Tensor) else np.asarray(actions)
        count, shape = len(self._slots), (len(self._slots), *self.codec.shape)
        kind, name = (np.integer, "whole numbers") if self.codec.whole else (np.floating, "numbers")
        if given.shape != shape or not np.issubdtype(given.dtype, kind):
            raise EnvError(
                f"`actions` must be {count} {name}, shape {shape}, got {given.dtype} of shape {given.shape}."
            )
        listed: list[Action] = given.tolist()
        return listed

    def _read(self, actions: Sequence[Action]) -> tuple[list[int], list[Decision]]:
        """Return the entries that actions choose, and the Decisions that they mean."""
        try:
            return [self.codec.entry(action) for action in actions], [self.codec.decode(action) for action in actions]
        except InputError as error:
            given = list(actions)
            if self.codec.kind != "discrete":
                raise EnvError(f"`actions` are out of range: {error} The entries are {self._known()}.") from error
            raise EnvError(
                f"`actions` must be in [0, {len(self.catalogue)}), got {given}. The entries are {self._known()}."
            ) from error

    def _known(self) -> str:
        return ", ".join(self.catalogue.names)

    def _visible(self, key: int) -> Visible:
        shown = dynamics.visible(key) if self._masks else Visible()
        return shown if self._with_validation else replace(shown, validation=False)

    def _step_of(self, block: Block, decision: int) -> int:
        return decision * block.slots[0].instance.total_steps // self.horizon

    def _observe(self) -> Tensor:
        parts = [(rows, block.observe(self._step_of(block, self._decision))) for rows, block in self._blocks]
        return _joined(parts, len(self._slots))

    def _final(self) -> dict[str, Any]:
        """Return what is known of the trainings at their end."""
        scores = self.scores()
        info: dict[str, Any] = {
            "score": scores.score,
            "final_acc": scores.accuracy,
            "ts_nll": scores.ts_nll,
            "decisions": tuple(zip(*self._trace, strict=True)),
        }
        if self._references is not None:
            reference = self._references.of([slot.instance for slot in self._slots]).to(scores.score.device)
            alive = _joined([(rows, block.alive) for rows, block in self._blocks], len(self._slots))
            info["score_uniform"] = reference
            info["score_norm"] = relative(scores.score, reference).masked_fill(~alive, -LIMIT)
            info["is_success"] = alive & (scores.score > reference)
        return info

    def _check_begun(self) -> None:
        if not self._slots:
            raise EnvError("no wave has begun. Call `reset` or `begin` first.")


def _joined(parts: Sequence[tuple[list[int], Tensor]], count: int) -> Tensor:
    """Put the rows of blocks at their places."""
    first = parts[0][1]
    joined = first.new_empty(count, *first.shape[1:])
    for rows, values in parts:
        joined[torch.tensor(rows, device=joined.device)] = values
    return joined


def _slots_of(blocks: Sequence[tuple[list[int], Block]]) -> tuple[Slot, ...]:
    placed = [(row, slot) for rows, block in blocks for row, slot in zip(rows, block.slots, strict=True)]
    return tuple(slot for _, slot in sorted(placed, key=lambda pair: pair[0]))
