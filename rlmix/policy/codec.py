"""Catalogues of named Decisions, and codecs: what actions mean, and how a network's outputs give them."""

from __future__ import annotations

import json
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, final

import torch
from torch import Tensor

from rlmix._files import sha256_of
from rlmix.errors import InputError, UnknownNameError, nearest
from rlmix.ops import rng
from rlmix.policy.decision import Decision

ActionKind: TypeAlias = Literal["discrete", "multidiscrete", "hybrid"]
"""Positions in a catalogue; methods and levels of their parameters; methods and their parameters themselves."""

Action: TypeAlias = int | Sequence[float]
"""One action: a whole number, or a sequence of numbers."""


@final
class Catalogue:
    """An ordered set of named Decisions. It belongs to a policy: new methods of the library never change it.

    Args:
        entries: Decisions by name, in the order of the actions.

    Attributes:
        names: the entries' names.
        decisions: the entries' Decisions.
        methods: every method that an entry uses, in the order of first appearance.
        digest: SHA-256 of names and Decisions.

    Raises:
        InputError: no entry, or a name that is no string.
        UnknownNameError: an entry's method or parameter does not exist.
        MethodError: an entry's parameter is out of its range.
    """

    __slots__ = ("decisions", "digest", "methods", "names")

    def __init__(self, entries: Mapping[str, Decision]) -> None:
        if not entries or not all(isinstance(name, str) and name for name in entries):
            raise InputError(f"`entries` must be one or more Decisions by name, got the names {list(entries)!r}.")
        self.names: tuple[str, ...] = tuple(entries)
        self.decisions: tuple[Decision, ...] = tuple(entries.values())
        self.methods: tuple[str, ...] = tuple(
            dict.fromkeys(method for decision in self.decisions for method in decision.usage())
        )
        self.digest: str = sha256_of(json.dumps(self.to_json(), sort_keys=True).encode("utf-8"))

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Catalogue) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Catalogue({', '.join(self.names)})"

    def index(self, name: str) -> int:
        """Return the position of the entry called `name`.

        Raises:
            UnknownNameError: there is none; the message has the nearest known name.
        """
        if name not in self.names:
            raise UnknownNameError(f"the catalogue has no entry `{name}`. {nearest(name, self.names)}")
        return self.names.index(name)

    def subset(self, names: Iterable[str]) -> Catalogue:
        """Return the catalogue of these entries alone, in the order that they have here.

        Raises:
            UnknownNameError: an entry does not exist.
        """
        kept = sorted({self.index(name) for name in names})
        return Catalogue({self.names[entry]: self.decisions[entry] for entry in kept})

    def to_json(self) -> list[dict[str, Any]]:
        """Return the form that `json` writes; `from_json` inverts it exactly."""
        return [
            {"name": name, "decision": decision.to_json()}
            for name, decision in zip(self.names, self.decisions, strict=True)
        ]

    @classmethod
    def from_json(cls, document: Any) -> Catalogue:
        """Return the catalogue that `to_json` wrote.

        Raises:
            InputError: `document` has another form, or a name twice.
            UnknownNameError: an entry's method or parameter does not exist.
            MethodError: an entry's parameter is out of its range.
        """
        entries: dict[str, Decision] = {}
        for item in document if isinstance(document, list) else [document]:
            if not isinstance(item, dict) or set(item) != {"name", "decision"} or not isinstance(item["name"], str):
                raise InputError('a catalogue is a list of {"name": ..., "decision": ...}.')
            if item["name"] in entries:
                raise InputError(f"the catalogue has the name `{item['name']}` twice.")
            entries[item["name"]] = Decision.from_json(item["decision"])
        return cls(entries)


class AbstractCodec(ABC):
    """What actions mean, and how the outputs of a policy's network give them.

    The first outputs are the logits of the entries of a catalogue; the others, if there are any, say how the
    parameters of each entry are set. So every codec has entries, of which some may be forbidden.

    Attributes:
        kind: what kind of actions these are.
        catalogue: the entries; parameters that an action sets are in the middle of their ranges.
        shape: of one action: empty for a whole number.
        whole: whether actions are whole numbers.
        outputs: how many outputs the network has.
        digest: SHA-256 of what the actions mean.
    """

    kind: ClassVar[ActionKind]
    whole: ClassVar[bool]
    catalogue: Catalogue
    shape: tuple[int, ...]
    outputs: int
    digest: str

    @abstractmethod
    def entry(self, action: Action) -> int:
        """Return the position of the entry that an action chooses.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """

    @abstractmethod
    def decode(self, action: Action) -> Decision:
        """Return the Decision that an action means.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """

    @abstractmethod
    def text(self, action: Action) -> str:
        """Return a short form to read: the entry's name, or the Decision where an action sets parameters.

        Raises:
            InputError: `action` has a wrong form or is out of range.
        """

    @abstractmethod
    def encode(self, decision: Decision) -> Action:
        """Return the action that means `decision`; of several, the one whose unread numbers are the simplest.

        Raises:
            UnknownNameError: no action means it.
            InputError: a parameter is out of its range.
        """

    @abstractmethod
    def complete(self, outputs: Tensor, entries: Tensor, explore: rng.Streams | None = None) -> Tensor:
        """Return the actions [N, *shape] that choose these entries, with the parameters that the network gives.

        Args:
            outputs: of the network, float32 [N, outputs].
            entries: int64 [N].
            explore: one key for each row draws the parameters; None takes their most typical values.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return the form that `json` writes, its kind and its digest in it; `codec_from_json` inverts it."""


@final
class DiscreteCodec(AbstractCodec):
    """Actions that are positions in a catalogue.

    Args:
        catalogue: what the actions mean.
    """

    kind: ClassVar[ActionKind] = "discrete"
    whole: ClassVar[bool] = True

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.shape: tuple[int, ...] = ()
        self.outputs = len(catalogue)
        self.digest = catalogue.digest

    @property
    def n(self) -> int:
        """The number of actions."""
        return len(self.catalogue)

    def entry(self, action: Action) -> int:
        """Return the action itself.

        Raises:
            InputError: `action` is out of range.
        """
        entry = whole("action", action)
        if not 0 <= entry < self.n:
            raise InputError(f"`action` must be in [0, {self.n}), got {action}.")
        return entry

    def decode(self, action: Action) -> Decision:
        """Return the Decision that an action in [0, n) means.

        Raises:
            InputError: `action` is out of range.
        """
        return self.catalogue.decisions[self.entry(action)]

    def text(self, action: Action) -> str:
        """Return the entry's name.

        Raises:
            InputError: `action` is out of range.
        """
        return self.catalogue.names[self.entry(action)]

    def encode(self, decision: Decision) -> int:
        """Return the action that means `decision`.

        Raises:
            UnknownNameError: the catalogue has no such entry.
        """
        if decision not in self.catalogue.decisions:
            known = ", ".join(entry.text for entry in self.catalogue.decisions)
            raise UnknownNameError(f"the catalogue has no entry `{decision.text}`. Known: {known}.")
        return self.catalogue.decisions.index(decision)

    def complete(self, outputs: Tensor, entries: Tensor, explore: rng.Streams | None = None) -> Tensor:
        """Return the entries, int64 [N]: nothing else is to be set."""
        return entries

    def to_json(self) -> dict[str, Any]:
        """Return kind, digest and catalogue."""
        return {"kind": self.kind, "digest": self.digest, "catalogue": self.catalogue.to_json()}


def codec_of(actions: Catalogue | AbstractCodec) -> AbstractCodec:
    """Return the codec of whatever says what actions mean; of a catalogue, positions in it."""
    return DiscreteCodec(actions) if isinstance(actions, Catalogue) else actions


def drawn(logits: Tensor, explore: rng.Streams, purpose: int) -> Tensor:
    """Return draws from softmax distributions, int64 [N, ...].

    Args:
        logits: float32 [N, ..., E].
        explore: one key for each row.
        purpose: what the random numbers are for.
    """
    shape = tuple(logits.shape[1:])
    if len(explore) == 1 and logits.device.type == "cpu":
        # The same bits: for one question, whole numbers of Python take less than half of what tensors of them do.
        (key,) = explore.keys
        numbers = [rng.host_uniform(key, purpose, index) for index in range(math.prod(shape))]
        uniform = torch.tensor(numbers, dtype=torch.float32).view(1, *shape)
    else:
        uniform = rng.uniform(explore.values, purpose, shape)
    uniform = uniform.clamp_min(2.0**-25)
    # The largest logit plus Gumbel noise is a draw from the softmax.
    return (logits - torch.log(-torch.log(uniform))).argmax(-1)


def whole(name: str, value: Any) -> int:
    """Return a whole number as an int.

    Raises:
        InputError: it is something else.
    """
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"`{name}` must be a whole number, got {value!r}.") from None


def catalogue(name: str) -> Catalogue:
    """Return one of the catalogues that policies are trained with: "v0", or "cheap" without saliency.

    Raises:
        UnknownNameError: no catalogue of this name.
    """
    if name not in _CATALOGUES:
        raise UnknownNameError(f"there is no catalogue `{name}`. {nearest(name, _CATALOGUES)}")
    return Catalogue(_CATALOGUES[name])


def _mixture(members: Mapping[str, Decision]) -> Decision:
    return Decision("uniform", {"members": tuple(members.values()), "scope": "batch"})


_CHEAP = {
    "none": Decision("none"),
    "mixup-0.2": Decision("mixup", {"alpha": 0.2}),
    "mixup-1": Decision("mixup", {"alpha": 1.0}),
    "cutmix-1": Decision("cutmix", {"alpha": 1.0}),
}
_SALIENT = {
    "rmix": Decision("rmix"),
    "rmix-0.33": Decision("rmix", {"threshold": 0.33}),
    "rmix-0.77": Decision("rmix", {"threshold": 0.77}),
    "grafting-0.2": Decision("grafting", {"temperature": 0.2}),
    "grafting-1": Decision("grafting", {"temperature": 1.0}),
}
_CATALOGUES: dict[str, dict[str, Decision]] = {
    "v0": {**_CHEAP, **_SALIENT, "uniform-cheap": _mixture(_CHEAP), "uniform": _mixture({**_CHEAP, **_SALIENT})},
    "cheap": {**_CHEAP, "uniform-cheap": _mixture(_CHEAP)},
}
