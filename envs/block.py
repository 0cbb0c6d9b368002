"""A block: trainings of one bucket, run as one stack from decision to decision."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from rlmix._apply import apply
from rlmix.envs import dynamics
from rlmix.envs.dynamics import Source, Split, Visible
from rlmix.envs.instances import Bucket, Instance, Pictures
from rlmix.envs.networks import Forward, Stack, forward_of
from rlmix.envs.reward import Scores, measure
from rlmix.methods.grouped import plan_groups
from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams
from rlmix.policy.codec import Catalogue
from rlmix.policy.controller import mixing_key
from rlmix.policy.decision import Decision
from rlmix.policy.limits import Facts, facts_of
from rlmix.policy.probe import PROBE_EXAMPLES
from rlmix.policy.signals import Context, History, names, signals
from rlmix.training.models import registry
from rlmix.types import MixInputs

# Mixes of so many pixels are drawn at once: more share the overhead of a call, too many leave the cache.
_DRAWN_PIXELS = 2**20
_NOT_FINITE = "loss/not_finite"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """One training: what it is, the key of all its random numbers, and what its observations show."""

    instance: Instance
    key: int
    visible: Visible

    def tree(self) -> dict[str, Any]:
        """Return numbers and strings that `from_tree` makes the slot of."""
        return {"instance": asdict(self.instance), "key": self.key, "visible": asdict(self.visible)}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Slot:
        """Invert `tree`."""
        return cls(instance=Instance(**tree["instance"]), key=tree["key"], visible=Visible(**tree["visible"]))


class _Mix(NamedTuple):
    """How one slot's batch of one step is mixed."""

    step: int
    slot: int
    method: AbstractMethod
    key: int


@final
class Library:
    """What blocks share: the data sets, the architectures, the instances' splits, and the methods of the catalogue.

    Args:
        catalogue: what actions mean.
        data_dir: where data sets lie that are not part of a package.
        device: where everything lives.
    """

    def __init__(
        self, catalogue: Catalogue, data_dir: str | os.PathLike[str] | None, device: torch.device | str
    ) -> None:
        self.catalogue = catalogue
        self.methods: tuple[AbstractMethod, ...] = tuple(decision.build() for decision in catalogue.decisions)
        self.device = torch.device(device)
        self.data_dir = data_dir
        self._sources: dict[Pictures, Source] = {}
        self._networks: dict[tuple[Pictures, int | None, str], tuple[nn.Module, Forward]] = {}
        self._splits: dict[Instance, Split] = {}

    def source(self, instance: Instance) -> Source:
        """Return the instance's data set."""
        if instance.pictures not in self._sources:
            name, side, grey = instance.pictures
            loaded = dynamics.load_source(name, self.data_dir, side=side, grey=grey)
            self._sources[instance.pictures] = Source(
                loaded.images.to(self.device), loaded.labels, num_classes=loaded.num_classes
            )
        return self._sources[instance.pictures]

    def num_classes(self, instance: Instance) -> int:
        """Return how many classes the instance has."""
        return dynamics.num_classes(instance, self.source(instance).num_classes)

    def facts(self, instance: Instance) -> Facts:
        """Return what a controller would know of a training of the instance before it begins."""
        height, width = self.source(instance).images.shape[2:]
        model, _ = self.network(instance)
        return facts_of(
            Context.of(
                1,
                total_steps=instance.total_steps,
                num_examples=instance.train_size,
                batch_size=instance.batch_size,
                num_classes=self.num_classes(instance),
                height=height,
                width=width,
                num_params=sum(parameter.numel() for parameter in model.parameters()),
            )
        )

    def split(self, instance: Instance) -> Split:
        """Return the instance's images and labels, on the host."""
        if instance not in self._splits:
            self._splits[instance] = dynamics.split(instance, self.source(instance))
        return self._splits[instance]

    def pictures(self, instances: Sequence[Instance]) -> tuple[Tensor, list[Split]]:
        """Return images [n, C, H, W] and the splits of instances of one bucket, whose rows count in these images."""
        source, splits = self.source(instances[0]), {one: self.split(one) for one in instances}
        if all(one.input_noise == 0 for one in splits):
            return source.images, [splits[one] for one in instances]
        # Noise belongs to an instance, so each has images of its own.
        parts, moved, first = [], {}, 0
        for one, split in splits.items():
            rows = torch.cat([split.train_rows, split.validation_rows, split.reward_rows])
            parts.append(dynamics.noisy_images(source.images[rows.to(self.device)], one))
            sizes = [len(split.train_rows), len(split.validation_rows), len(split.reward_rows)]
            train, validation, reward = torch.split(torch.arange(first, first + len(rows)), sizes)
            moved[one] = replace(split, train_rows=train, validation_rows=validation, reward_rows=reward)
            first += len(rows)
        return torch.cat(parts), [moved[one] for one in instances]

    def network(self, instance: Instance) -> tuple[nn.Module, Forward]:
        """Return the instance's architecture, whose weights mean nothing, and the forward of a stack of it."""
        kind = instance.pictures, instance.classes, instance.model
        if kind not in self._networks:
            channels, height, width = self.source(instance).images.shape[1:]
            model = registry.build(
                instance.model,
                channels=channels,
                height=height,
                width=width,
                num_classes=self.num_classes(instance),
            )
            # Stacked convolutions are grouped convolutions, which are slower on a CPU than one after the other; and a
            # stack cannot write the statistics of BatchNorm.
            convolves = any(parameter.dim() > 2 for parameter in model.parameters())
            looped = (self.device.type == "cpu" and convolves) or any(True for _ in model.buffers())
            self._networks[kind] = model, forward_of(model, looped=looped)
        return self._networks[kind]


@final
class Block:
    """Trainings of instances of one bucket, side by side; see `begin`.

    Args:
        library: what blocks share.
        slots: the trainings.
        stack: their networks.
        history: what their observations remember.
        alive: bool [N], which are still finite.
    """

    def __init__(self, library: Library, slots: Sequence[Slot], stack: Stack, history: History, alive: Tensor) -> None:
        self.slots = tuple(slots)
        self.stack, self.history, self.alive = stack, history, alive
        self._library, self._catalogue, self._device = library, library.catalogue, library.device
        first = self.slots[0].instance
        self._num_classes = library.num_classes(first)
        self._steps, self._momentum, self._decay = first.total_steps, first.momentum, first.weight_decay
        self._images, splits = library.pictures([slot.instance for slot in self.slots])
        self._splits = splits
        batches = [dynamics.batch_rows(slot.instance, slot.key) for slot in self.slots]
        pairs = list(zip(splits, batches, strict=True))
        # [T, N, B] each: rows of the images, and labels with noise.
        self._rows = torch.stack([one.train_rows[rows] for one, rows in pairs], 1).to(self._device)
        self._labels = torch.stack([one.train_labels[rows] for one, rows in pairs], 1).to(self._device)
        rates = [dynamics.learning_rates(slot.instance) for slot in self.slots]
        self._rates = torch.tensor(rates, dtype=torch.float64).T.to(self._device)
        self._context = self._known()

    @classmethod
    def begin(cls, library: Library, slots: Sequence[Slot]) -> Block:
        """Return trainings that have not begun.

        Raises:
            DataError: a data set is missing or too small.
            UnknownNameError: a data set or model that does not exist.
            ConfigError: a model that cannot be stacked.
        """
        model, forward = library.network(slots[0].instance)
        weights = [dynamics.initial_weights(model, slot.key) for slot in slots]
        stack = Stack.initial(forward, weights, library.device, buffers=dict(model.named_buffers()))
        history = History.initial(len(slots), library.catalogue, library.device)
        return cls(library, slots, stack, history, torch.ones(len(slots), dtype=torch.bool, device=library.device))

    def advance(
        self, entries: Sequence[int], first: int, last: int, decisions: Sequence[Decision] | None = None
    ) -> None:
        """Train from step `first` to before step `last`, each slot mixed as its catalogue entry says.

        Args:
            entries: one for each slot.
            first: the step to begin with.
            last: the step to stop before.
            decisions: what the entries come to, where actions set parameters; None: the entries' own Decisions.
        """
        if decisions is None:
            methods = [self._library.methods[entry] for entry in entries]
        else:
            methods = [decision.build() for decision in decisions]
        self.history.record(torch.tensor(entries, dtype=torch.int64, device=self._device), last - first)
        batch = (len(self.slots), self._rows.shape[2])
        image = self._images.shape[1:]
        at_once = max(1, _DRAWN_PIXELS // (batch[0] * batch[1] * image.numel()))
        for begin in range(first, last, at_once):
            steps = range(begin, min(begin + at_once, last))
            images = torch.empty(len(steps), *batch, *image, device=self._device)
            targets = torch.empty(len(steps), *batch, self._num_classes, device=self._device)
            plain, salient = self._settled(methods, steps)
            # Streams belong to a slot and a step: drawn at once, each gets the numbers that it would get alone.
            self._mix(plain, begin, images, targets)
            for index, step in enumerate(steps):
                # Saliency is that of the networks at this very step.
                self._mix(salient[step], begin, images, targets, salient=True)
                losses = self.stack.descend(
                    images[index], targets[index], self._rates[step].float(), self._momentum, self._decay, self.alive
                )
                self.alive &= torch.isfinite(losses)
                half = 0 if 2 * (step - first) < last - first else 1
                self.history.add_loss(losses, half=half, lr=self._rates[step])

    def observe(self, step: int) -> Tensor:
        """Return the observations after `step` steps, float32 [N, D]. To be called once a decision."""
        newest = min(step, self._steps - 1)
        oldest = max(0, newest + 1 - -(-PROBE_EXAMPLES // self._rows.shape[2]))
        # Newest first, as a training loop that looks back would have them.
        recent = torch.arange(newest, oldest - 1, -1, device=self._device)
        probe_rows, probe_labels = (tensor[recent].transpose(0, 1).flatten(1) for tensor in (self._rows, self._labels))
        rows = [one.validation_rows for one in self._splits]
        labels = [one.validation_labels for one in self._splits]
        validation_rows, validation_labels = (torch.stack(parts).to(self._device) for parts in (rows, labels))
        count = probe_rows.shape[1]
        logits = self.predict(self._images[torch.cat([probe_rows, validation_rows], 1)])
        self.alive &= torch.isfinite(logits).flatten(1).all(1) & self.stack.finite()
        seen = [slot.visible for slot in self.slots]
        has_model = self._bits([one.model for one in seen])
        has_validation = self._bits([one.model and one.validation for one in seen])
        observation = signals(
            self._context,
            self.history,
            step,
            probe=(logits[:, :count], probe_labels, has_model),
            val=(logits[:, count:], validation_labels, has_validation),
            catalogue=self._catalogue,
        )
        return torch.where(self.alive.unsqueeze(1), observation, self._broken(observation))

    def scores(self) -> Scores:
        """Return what the trainings are rewarded for, float64 [N]; nothing else reads these images."""
        rows = torch.stack([one.reward_rows for one in self._splits]).to(self._device)
        labels = torch.stack([one.reward_labels for one in self._splits]).to(self._device)
        logits = self.predict(self._images[rows])
        self.alive &= torch.isfinite(logits).flatten(1).all(1) & self.stack.finite()
        dead = ~self.alive.view(-1, 1, 1)
        return measure(logits.masked_fill(dead, torch.nan), labels)

    def predict(self, images: Tensor) -> Tensor:
        """Return float32 logits [N, n, C] for images [N, n, ...]."""
        return self.stack.logits(images)

    def select(self, rows: Sequence[int], slots: Sequence[Slot]) -> Block:
        """Return copies of some trainings, which go on as `slots` say."""
        index = torch.tensor(rows, dtype=torch.int64, device=self._device)
        return Block(self._library, slots, self.stack.select(index), self.history.select(index), self.alive[index])

    def tree(self) -> dict[str, Any]:
        """Return all that changes in a training, for `from_tree`."""
        return {
            "slots": [slot.tree() for slot in self.slots],
            "parameters": {name: value.detach().clone() for name, value in self.stack.parameters.items()},
            "momentum": {name: value.clone() for name, value in self.stack.momentum.items()},
            "buffers": {name: value.clone() for name, value in self.stack.buffers.items()},
            "history": self.history.state(),
            "alive": self.alive.clone(),
        }

    @classmethod
    def from_tree(cls, library: Library, tree: Mapping[str, Any]) -> Block:
        """Invert `tree`."""
        slots = [Slot.from_tree(one) for one in tree["slots"]]
        _, forward = library.network(slots[0].instance)
        tensors = [
            {name: value.to(library.device) for name, value in tree[part].items()}
            for part in ("parameters", "momentum", "buffers")
        ]
        history = History.from_state(tree["history"], library.device)
        return cls(library, slots, Stack(forward, *tensors), history, tree["alive"].to(library.device, copy=True))

    def _settled(self, methods: Sequence[AbstractMethod], steps: range) -> tuple[list[_Mix], dict[int, list[_Mix]]]:
        """Return what each slot mixes with at each step: without saliency, and with it by step.

        Mixtures that choose for a whole batch are settled here, so that saliency is computed only where it is used.
        """
        plain: list[_Mix] = []
        salient: dict[int, list[_Mix]] = {step: [] for step in steps}
        for step in steps:
            for slot, chosen in enumerate(methods):
                method, key = chosen.settle(mixing_key(self.slots[slot].key, step))
                (salient[step] if method.needs_saliency else plain).append(_Mix(step, slot, method, key))
        return plain, salient

    def _mix(
        self, drawn: Sequence[_Mix], begin: int, images: Tensor, targets: Tensor, *, salient: bool = False
    ) -> None:
        """Write mixed batches into images [k, N, B, ...] and targets [k, N, B, C], whose first step is `begin`."""
        if not drawn:
            return
        steps = torch.tensor([one.step for one in drawn], device=self._device)
        slots = torch.tensor([one.slot for one in drawn], device=self._device)
        labels = self._labels[steps, slots]
        clean = self._images[self._rows[steps, slots]]
        saliency = self.stack.saliency(clean, labels, slots).flatten(0, 1) if salient else None
        rows = clean.flatten(0, 1)
        height, width = rows.shape[2:]
        # Joining groups of several methods copies what they are given.
        looked_at = rows if any(one.method.looks_at_images for one in drawn) else None
        inputs = MixInputs(
            rows.shape[0], height, width, len(drawn), device=self._device, saliency=saliency, images=looked_at
        )
        plan = plan_groups([one.method for one in drawn], inputs, Streams([one.key for one in drawn]))
        images[steps - begin, slots] = apply(rows, plan).view(clean.shape)
        soft = plan.soft_targets(labels.flatten(), self._num_classes)
        targets[steps - begin, slots] = soft.view(*labels.shape, -1)

    def _known(self) -> Context:
        """Return what observations know of the trainings before they begin."""
        instances = [slot.instance for slot in self.slots]
        examples = [float(slot.instance.train_size) if slot.visible.examples else torch.nan for slot in self.slots]
        height, width = self._images.shape[2:]
        return Context.of(
            len(instances),
            self._device,
            total_steps=self._steps,
            num_examples=torch.tensor(examples, dtype=torch.float64),
            batch_size=instances[0].batch_size,
            num_classes=self._num_classes,
            height=height,
            width=width,
            num_params=sum(value[0].numel() for value in self.stack.parameters.values()),
        )

    def _bits(self, values: Sequence[bool]) -> Tensor:
        return torch.tensor(values, dtype=torch.bool, device=self._device)

    def _broken(self, observation: Tensor) -> Tensor:
        """Return what is seen of a training that is no longer finite: nothing but that."""
        columns = torch.arange(observation.shape[1], device=self._device)
        return (columns == names(self._catalogue).index(_NOT_FINITE)).float().expand_as(observation)


def buckets(instances: Sequence[Instance]) -> Iterator[list[int]]:
    """Yield the positions of the instances of each bucket."""
    found: dict[Bucket, list[int]] = {}
    for row, instance in enumerate(instances):
        found.setdefault(instance.bucket, []).append(row)
    yield from found.values()
