"""Codecs over a method space: actions that choose a method and set its parameters."""

from __future__ import annotations

import json
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor
from torch.nn import functional as F

from rlmix._files import sha256_of
from rlmix.errors import InputError, UnknownNameError
from rlmix.ops import rng
from rlmix.policy.codec import (
    AbstractCodec,
    Action,
    ActionKind,
    Catalogue,
    DiscreteCodec,
    catalogue,
    drawn,
    whole,
)
from rlmix.policy.decision import Decision
from rlmix.policy.space import STEPS, MethodSpace, method_space

LEVELS = 5
"""Levels of each parameter in the space "multidiscrete", unless another number is given."""

MARGIN = 1e-4
"""Shares of a range are kept this far from its ends, where the density of a Beta distribution may be infinite."""

# What exploration draws its random numbers for: levels; normal and uniform numbers for parameters.
_LEVELS, _NORMAL, _UNIFORM = 101, 102, 103
# Each round gives a number with probability above 0.95, so all of them fail once in 10**20 draws.
_ROUNDS = 16
_MOST_LEVELS = 1024


@final
class MultiDiscreteCodec(AbstractCodec):
    """Actions [1 + P] of whole numbers: the entry, then a level for each slot of parameters.

    Level k of L is the share k / (L - 1) of the parameter's range. Slots that the entry does not use are not read.

    Args:
        space: what the actions mean.
        levels: L, at least 2.

    Attributes:
        space: the method space.
        levels: L.
        sizes: how many values each number of an action has.

    Raises:
        InputError: `levels` is out of range.
    """

    kind: ClassVar[ActionKind] = "multidiscrete"
    whole: ClassVar[bool] = True

    def __init__(self, space: MethodSpace, levels: int = LEVELS) -> None:
        if isinstance(levels, bool) or not isinstance(levels, int) or not 2 <= levels <= _MOST_LEVELS:
            raise InputError(f"`levels` must be a whole number from 2 to {_MOST_LEVELS}, got {levels!r}.")
        self.space, self.levels = space, levels
        self.catalogue = space.catalogue
        self.sizes = (len(space), *[levels] * space.slots)
        self.shape = (len(self.sizes),)
        self.outputs = sum(self.sizes)
        self.digest = _digest({"kind": self.kind, "levels": levels, "space": space.to_json()})

    def entry(self, action: Action) -> int:
        """Return the first number.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """
        return self._numbers(action)[0]

    def decode(self, action: Action) -> Decision:
        """Return the Decision that an action means.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """
        entry, *levels = self._numbers(action)
        return self.space.entries[entry].at([level / (self.levels - 1) for level in levels])

    def text(self, action: Action) -> str:
        """Return the Decision's text.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """
        return self.decode(action).text

    def encode(self, decision: Decision) -> tuple[int, ...]:
        """Return the action that means `decision`, 0 in the slots that are not used.

        Raises:
            UnknownNameError: no entry has this method, or no level a parameter's value.
            InputError: a parameter is out of its range.
        """
        entry, shares = self.space.find(decision)
        levels = [round(share * (self.levels - 1)) for share in shares]
        action = (entry, *levels, *[0] * (self.space.slots - len(levels)))
        nearest = self.decode(action)
        if nearest != decision:
            raise UnknownNameError(f"no level means `{decision.text}`; the nearest is `{nearest.text}`.")
        return action

    def complete(self, outputs: Tensor, entries: Tensor, explore: rng.Streams | None = None) -> Tensor:
        """Return entries and the most probable (or drawn) levels, int64 [N, 1 + P]; used or not."""
        logits = outputs[:, len(self.space) :].view(len(outputs), self.space.slots, self.levels)
        levels = logits.argmax(-1) if explore is None else drawn(logits, explore, _LEVELS)
        return torch.cat([entries.unsqueeze(1), levels], 1)

    def to_json(self) -> dict[str, Any]:
        """Return kind, digest, levels and method space."""
        return {"kind": self.kind, "digest": self.digest, "levels": self.levels, "space": self.space.to_json()}

    def _numbers(self, action: Action) -> list[int]:
        given = _sequence(action, self.shape[0])
        numbers = [whole("action", number) for number in given]
        if not all(0 <= number < size for number, size in zip(numbers, self.sizes, strict=True)):
            raise InputError(f"`action` must be below {list(self.sizes)} and at least 0, got {numbers}.")
        return numbers


@final
class HybridCodec(AbstractCodec):
    """Actions [1 + P] in [-1, 1]: the first number picks the entry, the others set the slots of its parameters.

    The entry is floor((a + 1) / 2 * M), and is written as the middle of its bin; a parameter has the share (a + 1) / 2
    of its range. Numbers are read in steps of 2**-23, each of which is a float32, so that `decode` and `encode` invert
    each other exactly. Slots that the entry does not use are not read, and written as 0.

    Of a network's M + 2 M P outputs the first M are the entries' logits; the others, in the order [M, P, 2], give the
    concentrations of a Beta distribution over each parameter's share (`concentrations`).

    Args:
        space: what the actions mean.

    Attributes:
        space: the method space.
    """

    kind: ClassVar[ActionKind] = "hybrid"
    whole: ClassVar[bool] = False

    def __init__(self, space: MethodSpace) -> None:
        self.space = space
        self.catalogue = space.catalogue
        self.shape = (1 + space.slots,)
        self.outputs = len(space) * (1 + 2 * space.slots)
        self.digest = _digest({"kind": self.kind, "space": space.to_json()})
        self._used = torch.tensor(space.used, dtype=torch.bool).view(len(space), space.slots)

    def entry(self, action: Action) -> int:
        """Return the entry whose bin the first number is in.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """
        return self._entry(self._steps(action)[0])

    def decode(self, action: Action) -> Decision:
        """Return the Decision that an action means.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """
        first, *others = self._steps(action)
        return self.space.entries[self._entry(first)].at([step / STEPS for step in others])

    def text(self, action: Action) -> str:
        """Return the Decision's text.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """
        return self.decode(action).text

    def encode(self, decision: Decision) -> tuple[float, ...]:
        """Return the action that means `decision`; every number is a float32.

        Raises:
            UnknownNameError: no entry has this method.
            InputError: a parameter is out of its range.
        """
        entry, shares = self.space.find(decision)
        steps = [round((2 * entry + 1) * STEPS / (2 * len(self.space))), *(round(share * STEPS) for share in shares)]
        unused = [STEPS // 2] * (self.space.slots - len(shares))
        return tuple(2 * step / STEPS - 1 for step in (*steps, *unused))

    def complete(self, outputs: Tensor, entries: Tensor, explore: rng.Streams | None = None) -> Tensor:
        """Return actions of these entries with the mean (or drawn) share of each parameter, float32 [N, 1 + P]."""
        alpha, beta = (chosen(part, entries) for part in self.concentrations(outputs))
        if explore is None:
            return self.actions(entries, alpha / (alpha + beta))
        first, second = _gammas(torch.stack([alpha, beta], -1), explore).unbind(-1)
        return self.actions(entries, (first / (first + second)).float())

    def concentrations(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the concentrations of the shares' Beta distributions, each [N, M, P] and above 1.

        Args:
            outputs: of the network, [N, outputs].
        """
        raw = outputs[:, len(self.space) :].view(len(outputs), len(self.space), self.space.slots, 2)
        # Above 1 the density has one peak and is 0 at the ends.
        alpha, beta = (1.0 + F.softplus(raw)).unbind(-1)
        return alpha, beta

    def actions(self, entries: Tensor, shares: Tensor) -> Tensor:
        """Return the actions, float32 [N, 1 + P], that choose these entries with these shares of the ranges.

        Args:
            entries: int64 [N].
            shares: float32 [N, P] in [0, 1], kept off the ends; of unused slots they are not read.
        """
        first = (2 * entries + 1).float() / len(self.space) - 1.0
        scaled = 2.0 * shares.clamp(MARGIN, 1.0 - MARGIN) - 1.0
        unused = ~self._used.to(entries.device)[entries]
        return torch.cat([first.unsqueeze(1), scaled.masked_fill(unused, 0.0)], 1)

    def parts(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return entries int64 [N], shares [N, P] off the ends, and which of them are used, bool [N, P].

        Args:
            actions: floating point [N, 1 + P] in [-1, 1].
        """
        bins = (actions[:, 0] + 1.0) * (0.5 * len(self.space))
        entries = bins.long().clamp(0, len(self.space) - 1)
        shares = ((actions[:, 1:] + 1.0) / 2.0).clamp(MARGIN, 1.0 - MARGIN)
        return entries, shares, self._used.to(entries.device)[entries]

    def to_json(self) -> dict[str, Any]:
        """Return kind, digest and method space."""
        return {"kind": self.kind, "digest": self.digest, "space": self.space.to_json()}

    def _steps(self, action: Action) -> list[int]:
        given = _sequence(action, self.shape[0])
        if not all(-1.0 <= number <= 1.0 for number in given):
            raise InputError(f"`action` must be numbers in [-1, 1], got {[float(number) for number in given]}.")
        return [round((float(number) + 1.0) / 2.0 * STEPS) for number in given]

    def _entry(self, step: int) -> int:
        return min(step * len(self.space) // STEPS, len(self.space) - 1)


def find_codec(kind: str, actions: str | Catalogue | MethodSpace | AbstractCodec) -> AbstractCodec:
    """Return a codec.

    Args:
        kind: "discrete", "multidiscrete" or "hybrid".
        actions: what actions mean: for "discrete" a catalogue or the name of one, for the others a method space or the
            name of one; or a codec of that kind.

    Raises:
        UnknownNameError: no catalogue or method space of this name.
        InputError: another kind, or `actions` belong to another one.
    """
    if kind not in _KINDS:
        raise InputError(f"`action` must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}.")
    if isinstance(actions, AbstractCodec):
        if actions.kind != kind:
            raise InputError(f'`action` is "{kind}", and the codec that was given is "{actions.kind}".')
        return actions
    if kind == "discrete":
        given = catalogue(actions) if isinstance(actions, str) else actions
        if not isinstance(given, Catalogue):
            raise InputError('a method space is for action="multidiscrete" or "hybrid"; "discrete" takes a Catalogue.')
        return DiscreteCodec(given)
    space = method_space(actions) if isinstance(actions, str) else actions
    if not isinstance(space, MethodSpace):
        raise InputError(f'a catalogue is for action="discrete"; "{kind}" takes a MethodSpace.')
    return MultiDiscreteCodec(space) if kind == "multidiscrete" else HybridCodec(space)


def codec_from_json(document: Any) -> AbstractCodec:
    """Return the codec that `to_json` wrote.

    Raises:
        InputError: `document` has another form, an entry that cannot be used, or a digest that belongs to others.
        UnknownNameError: a method or parameter does not exist.
        MethodError: a parameter is out of its method's range.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in _KINDS or set(document) != _KINDS[cast(str, kind)]:
        expected = "; ".join(f'"{name}": {", ".join(sorted(keys))}' for name, keys in _KINDS.items())
        raise InputError(f"actions are described by their kind and these keys: {expected}.")
    found: AbstractCodec
    if kind == "discrete":
        found = DiscreteCodec(Catalogue.from_json(document["catalogue"]))
    elif kind == "multidiscrete":
        found = MultiDiscreteCodec(MethodSpace.from_json(document["space"]), document["levels"])
    else:
        found = HybridCodec(MethodSpace.from_json(document["space"]))
    if found.digest != document["digest"]:
        raise InputError("the actions are not the ones that their digest belongs to.")
    return found


def chosen(values: Tensor, entries: Tensor) -> Tensor:
    """Return the rows [N, P] of [N, M, P] that belong to the entries, int64 [N]."""
    return values.gather(1, entries.view(-1, 1, 1).expand(-1, 1, values.shape[2])).squeeze(1)


_KINDS = {
    "discrete": {"kind", "digest", "catalogue"},
    "multidiscrete": {"kind", "digest", "levels", "space"},
    "hybrid": {"kind", "digest", "space"},
}


def _digest(document: dict[str, Any]) -> str:
    return sha256_of(json.dumps(document, sort_keys=True).encode("utf-8"))


def _sequence(action: Action, length: int) -> list[float]:
    try:
        given = list(cast(Any, action))
    except TypeError:
        given = []
    if len(given) != length:
        raise InputError(f"`action` must be {length} numbers, got {action!r}.")
    return given


def _gammas(concentration: Tensor, explore: rng.Streams) -> Tensor:
    """Return Gamma(concentration, 1) variates, float64, for concentrations [N, ...] of at least 1.

    Marsaglia and Tsang 2000 (https://doi.org/10.1145/358407.358414) with a fixed number of rounds.
    """
    shape = (*concentration.shape[1:], _ROUNDS)
    normal = rng.normal(explore.values, _NORMAL, shape).double()
    (uniform,) = rng.uniform64(explore.values, (_UNIFORM, shape))
    base = (concentration.double() - 1.0 / 3.0).unsqueeze(-1)
    cube = (1.0 + normal / torch.sqrt(9.0 * base)) ** 3
    bound = 0.5 * normal**2 + base * (1.0 - cube + torch.log(cube.clamp_min(1e-300)))
    accepted = (cube > 0) & (torch.log(uniform) < bound)
    first = accepted.int().argmax(-1, keepdim=True)
    return (base * cube.clamp_min(1e-12)).gather(-1, first).squeeze(-1)
