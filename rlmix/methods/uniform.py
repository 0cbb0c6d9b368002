"""A mixture of methods."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from rlmix.errors import MethodError
from rlmix.methods.method import AbstractMethod, Scope, by_group
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform(AbstractMethod):
    """Choose one of several methods at random, each equally often.

    The baseline that a learned policy has to beat. `torchvision.transforms.v2.RandomChoice` over mix methods is its
    form with one choice for the batch.

    Use: where nothing is known yet, and as what a chosen or learned mix has to beat.

    Source: the random choice among augmentations of https://arxiv.org/abs/2103.10158 (TrivialAugment), for mixes.

    Args:
        members: the methods to choose from.
        scope: "batch" chooses one for the batch, "image" one for each output image (every member is drawn then, and
            partners may be any image of the batch whatever its own method).
        probability: the share of images that are mixed at all.

    Raises:
        MethodError: no members, or something that is no method.
    """

    name: ClassVar[str] = "uniform"
    source: ClassVar[str] = "a random choice, as TrivialAugment's among augmentations, https://arxiv.org/abs/2103.10158"

    members: tuple[AbstractMethod, ...]
    scope: Scope = "batch"

    @property
    def needs_saliency(self) -> bool:
        """Whether a member needs saliency."""
        return any(member.needs_saliency for member in self.members)

    @property
    def rows_together(self) -> int:
        """The least number of rows that is a whole number of every member's."""
        return math.lcm(*(member.rows_together for member in self.members))

    @property
    def operations_grow(self) -> bool:
        """Whether a member's operations grow with the rows."""
        return any(member.operations_grow for member in self.members)

    @property
    def looks_at_images(self) -> bool:
        """Whether a member looks at images."""
        return any(member.looks_at_images for member in self.members)

    @property
    def labels_by_area(self) -> bool:
        """Whether every member's labels follow the area."""
        return all(member.labels_by_area for member in self.members)

    def settle(self, key: int) -> tuple[AbstractMethod, int]:
        """Return the member that is chosen for a group with this key, and the key that the member draws with."""
        if self.scope == "image" or not isinstance(self.probability, float | int) or self.probability != 1:
            return self, key
        member = self.members[rng.host_integer(key, rng.MEMBER, len(self.members))]
        return member.settle(rng.derive(key, rng.MEMBER))

    def _check(self) -> None:
        object.__setattr__(self, "members", tuple(self.members))
        if not self.members or not all(isinstance(member, AbstractMethod) for member in self.members):
            raise MethodError(
                f"`members` must be one or more methods, got {self.members!r}. By name: "
                'rlmix.methods.get("uniform", members=("mixup", "cutmix")).'
            )

    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        # Folded, so that a mixture inside a mixture chooses independently of the outer one.
        theirs = streams.fold(rng.MEMBER)
        if self.scope == "image":
            choice = rng.integers(streams.values, rng.MEMBER, (inputs.group_size,), len(self.members)).flatten()
            return MixPlan.select([member.plan(inputs, theirs) for member in self.members], choice)
        chosen = [rng.host_integer(key, rng.MEMBER, len(self.members)) for key in streams.keys]
        return by_group(chosen, inputs, theirs, self._plan_member)

    def _plan_member(self, index: int, inputs: MixInputs, streams: rng.Streams, rows: Tensor | None) -> MixPlan:
        return self.members[index].plan(inputs, streams)
