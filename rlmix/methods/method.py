"""The interface of a mix method, and what every method does alike."""

from __future__ import annotations

import abc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeVar, final

import torch
from torch import Tensor

from rlmix.errors import InputError, MethodError
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

Scope = Literal["image", "batch"]
Pairing = Literal["random", "reverse"]
Choice = TypeVar("Choice", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class AbstractMethod(abc.ABC):
    """A mix method: a frozen set of parameters and one pure `plan`.

    A concrete method is a final frozen dataclass that gives `name`, `needs_saliency` and `_plan`.

    Args:
        probability: the share of images that are mixed at all, a float in [0, 1] or a tensor [B]; the others come back
            with their own bits.
        scope: "image" draws the random numbers for each image, "batch" once for the batch (of each group); whether
            anything is applied is drawn likewise. Of a tensor parameter [B] the first row of each group counts then.
    """

    name: ClassVar[str]
    """The name it is registered under."""
    source: ClassVar[str]
    """The paper, as one line with its address."""

    probability: float | Tensor = 1.0
    scope: Scope = "image"

    def __post_init__(self) -> None:
        """Check the parameters, those of the concrete class with them."""
        check_range("probability", self.probability, 0.0, 1.0)
        check_choice("scope", self.scope, ("image", "batch"))
        self._check()

    @property
    def needs_saliency(self) -> bool:
        """Whether `inputs.saliency` must be given."""
        return False

    @property
    def looks_at_images(self) -> bool:
        """Whether the plan follows `inputs.images` where these are given."""
        return False

    @property
    def labels_by_area(self) -> bool:
        """Whether lam is the own image's share of the pixels (False: the method has a label rule of its own)."""
        return True

    @property
    def rows_together(self) -> int:
        """How many rows the number of tensor operations may depend on: batches of a multiple of it cost the same."""
        return 1

    @property
    def operations_grow(self) -> bool:
        """Whether every row of a group costs some more tensor operations: a chain through all of its rows is built."""
        return False

    @final
    def draw(self, inputs: MixInputs, *, generator: torch.Generator | rng.Streams) -> MixPlan:
        """Draw a plan.

        Args:
            inputs: what is known of the batch.
            generator: a CPU generator, from which one key is taken, or one key for each group.

        Returns:
            A plan whose tensors live on `inputs.device`. Equal keys give equal plans; a group's plan depends neither
            on the number of groups nor on its place among them.

        Raises:
            InputError: saliency is needed and missing, or the number of keys is not that of the groups.
        """
        return self.plan(inputs, rng.streams_from(generator, inputs.groups))

    @final
    def plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        """Return the plan that belongs to one key for each group: the pure part of `draw`."""
        if len(streams) != inputs.groups:
            raise InputError(f"`streams` must be one key for each group: {inputs.groups} groups, {len(streams)} keys.")
        if self.needs_saliency and inputs.saliency is None:
            raise InputError(
                f"method `{self.name}` needs saliency maps. Give `saliency=` [B, h, w], for example "
                "rlmix.saliency.input_gradient(model, images, labels), or give `model=`."
            )
        streams = streams.to(inputs.device)
        drawn = self._plan(inputs, streams)
        if isinstance(self.probability, float | int) and self.probability == 1:
            return drawn
        return drawn.where(self._applied(inputs, streams))

    def settle(self, key: int) -> tuple[AbstractMethod, int]:
        """Return the method and the key that one group's `key` comes down to.

        A mixture that chooses one member for the group names it here, without drawing anything, so that a caller can
        spare the saliency that the member does not need. The plan is the same either way.
        """
        return self, key

    def _applied(self, inputs: MixInputs, streams: rng.Streams) -> Tensor:
        chance = rng.uniform(streams.values, rng.APPLIED, drawn_rows(inputs, self.scope))
        return rows_of(chance < per_row(self.probability, inputs, self.scope), inputs)

    @abc.abstractmethod
    def _plan(self, inputs: MixInputs, streams: rng.Streams) -> MixPlan:
        """Draw the plan of a batch in which every image is mixed; keys live on the inputs' device."""

    def _check(self) -> None:  # noqa: B027  (most methods have something to check, `none` has not)
        """Raise MethodError for a parameter out of its range."""


def check_range(name: str, value: float | Tensor, low: float, high: float) -> None:
    """Raise MethodError unless low <= value <= high; of tensors, only those on the CPU are read."""
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and not bool(((value >= low) & (value <= high)).all()):
            given = f"a tensor from {value.min()} to {value.max()}"
            raise MethodError(f"`{name}` must be in [{low:g}, {high:g}] everywhere, got {given}.")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise MethodError(f"`{name}` must be a number in [{low:g}, {high:g}], got {value!r}.")


def check_positive(name: str, value: float | Tensor) -> None:
    """Raise MethodError unless value > 0 and finite; of tensors, only those on the CPU are read."""
    hint = 'To switch mixing off, use method "none".'
    if isinstance(value, Tensor):
        if value.device.type == "cpu" and not bool(((value > 0) & torch.isfinite(value)).all()):
            raise MethodError(f"`{name}` must be above 0 everywhere, got a tensor with minimum {value.min()}. {hint}")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise MethodError(f"`{name}` must be a number above 0, got {value!r}. {hint}")


def check_ordered(low_name: str, low: float | Tensor, high_name: str, high: float | Tensor) -> None:
    """Raise MethodError unless low <= high; of tensors, only those on the CPU are read."""
    if any(isinstance(value, Tensor) and value.device.type != "cpu" for value in (low, high)):
        return
    ordered = low <= high
    if not (bool(ordered.all()) if isinstance(ordered, Tensor) else ordered):
        raise MethodError(f"`{low_name}` must not be above `{high_name}`, got {low!r} and {high!r}.")


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    """Raise MethodError unless `value` is one of `known`."""
    if value not in known:
        raise MethodError(f"`{name}` must be one of {', '.join(map(repr, known))}, got {value!r}.")


def check_count(name: str, value: int | None) -> None:
    """Raise MethodError unless `value` is a whole number of at least 1, or None."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise MethodError(f"`{name}` must be a whole number of at least 1 or None, got {value!r}.")


def check_pairing(pairing: Pairing) -> None:
    """Raise MethodError unless `pairing` is a rule that `pair` knows."""
    check_choice("pairing", pairing, ("random", "reverse"))


def pair(inputs: MixInputs, streams: rng.Streams, pairing: Pairing = "random") -> Tensor:
    """Return each image's partner, int64 [B]: those given in `inputs`, or by a rule within each group.

    "random" is a uniform permutation (an image may meet itself); "reverse" pairs the first with the last and so on,
    which costs no random numbers but never changes inside a sorted batch.
    """
    return pair_and_draw(inputs, streams, pairing)[0]


def pair_and_draw(
    inputs: MixInputs, streams: rng.Streams, pairing: Pairing, *wanted: tuple[int, tuple[int, ...]]
) -> tuple[Tensor, list[Tensor]]:
    """Return the partners, and what `rng.uniform64` gives for other (purpose, shape), drawn together."""
    if inputs.partners is not None:
        return inputs.partners, rng.uniform64(streams.values, *wanted) if wanted else []
    if pairing == "reverse":
        within = torch.arange(inputs.group_size - 1, -1, -1, device=streams.values.device)
        return _in_batch(within, inputs), rng.uniform64(streams.values, *wanted) if wanted else []
    order, drawn = rng.permutation_and_uniform64(streams.values, rng.PARTNER, inputs.group_size, *wanted)
    return _in_batch(order, inputs), drawn


def _in_batch(within: Tensor, inputs: MixInputs) -> Tensor:
    """Return rows counted within their groups, [b] or [G, b], as rows of the batch [B]."""
    if inputs.groups > 1:
        first = torch.arange(inputs.groups, device=within.device).unsqueeze(1) * inputs.group_size
        within = within + first
    return within.flatten()


def per_row(value: float | Tensor, inputs: MixInputs, scope: Scope = "image") -> float | Tensor:
    """Show a parameter, float or [B], in the shape that numbers are drawn in: a float, [G, b] or [G, 1]."""
    if not isinstance(value, Tensor):
        return value
    rows = value.to(inputs.device).expand(inputs.batch_size).view(inputs.groups, inputs.group_size)
    return rows if scope == "image" else rows[:, :1]


def between(
    low: float | Tensor, high: float | Tensor, chance: Tensor, inputs: MixInputs, scope: Scope = "image"
) -> Tensor:
    """Bring uniform numbers in [0, 1), as drawn for `drawn_rows`, to [low, high); bounds are floats or [B]."""
    first = per_row(low, inputs, scope)
    return first + (per_row(high, inputs, scope) - first) * chance


def sides_of(name: str, given: int | None, default: tuple[int, int], inputs: MixInputs) -> tuple[int, int]:
    """Return the cells of a grid along both sides: as many as were given, or the default, no finer than the image.

    Args:
        name: the parameter, for the message.
        given: cells along each side, or None.
        default: cells along the height and the width.
        inputs: of the batch.

    Raises:
        InputError: a grid was given that is finer than the image.
    """
    if given is None:
        return min(default[0], inputs.height), min(default[1], inputs.width)
    if min(inputs.size) < given:
        raise InputError(
            f"the grid of {given}x{given} cells is finer than the image of {inputs.height}x{inputs.width}. Give a "
            f"smaller `{name}`, for example {name}={min(inputs.size)}."
        )
    return given, given


def drawn_rows(inputs: MixInputs, scope: Scope) -> tuple[int, ...]:
    """Return the shape, for each key, of a number for each image or of one for the group."""
    return (inputs.group_size,) if scope == "image" else (1,)


def rows_of(drawn: Tensor, inputs: MixInputs) -> Tensor:
    """Show numbers drawn as [G, b] or [G, 1] as [B]."""
    return drawn.expand(inputs.groups, inputs.group_size).reshape(-1)


def saliency_of(inputs: MixInputs) -> Tensor:
    """Return the maps that were given, as float32 [B, h, w]."""
    if inputs.saliency is None:
        raise InputError("saliency maps are needed. Give `saliency=` [B, h, w].")
    return inputs.saliency.float()


def usable(cells: Tensor) -> Tensor:
    """Return saliency [B, h, w] in which a map that is not finite or nowhere above 0 has become uniform.

    So one saturated image cannot stop a training. On a pooled map this says the same and costs little: a value that is
    not finite survives the mean.
    """
    total = cells.sum((1, 2), keepdim=True)
    return cells.masked_fill(~(torch.isfinite(total) & (total > 0)), 1.0)


def by_group(
    choices: Sequence[Choice],
    inputs: MixInputs,
    streams: rng.Streams,
    draw: Callable[[Choice, MixInputs, rng.Streams, Tensor | None], MixPlan],
) -> MixPlan:
    """Draw groups with the same host choice together and join the plans.

    Args:
        choices: one for each group, known on the host.
        inputs: of the whole batch.
        streams: one key for each group.
        draw: (choice, inputs of these groups, their streams, their rows int64 [b] or None for all) -> their plan.
    """
    distinct = list(dict.fromkeys(choices))
    if len(distinct) == 1:
        return draw(distinct[0], inputs, streams, None)
    parts = []
    for choice in distinct:
        groups = [group for group, chosen in enumerate(choices) if chosen == choice]
        first = torch.tensor(groups).to(inputs.device, non_blocking=True).unsqueeze(1) * inputs.group_size
        rows = (first + torch.arange(inputs.group_size, device=inputs.device)).flatten()
        plan = draw(choice, inputs.select(rows, len(groups)), streams.select(groups), rows)
        parts.append((rows, plan))
    return MixPlan.merge(parts, inputs.batch_size)
