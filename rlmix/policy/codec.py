"""Catalogues: the named Decisions that actions mean, and the codec between the two."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, final

from rlmix._files import sha256_of
from rlmix.errors import InputError, UnknownNameError, nearest
from rlmix.policy.decision import Decision


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


@final
class DiscreteCodec:
    """Actions that are positions in a catalogue.

    Args:
        catalogue: what the actions mean.
    """

    __slots__ = ("catalogue",)

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue

    @property
    def n(self) -> int:
        """The number of actions."""
        return len(self.catalogue)

    def decode(self, action: int) -> Decision:
        """Return the Decision that an action in [0, n) means.

        Raises:
            InputError: `action` is out of range.
        """
        if not 0 <= action < self.n:
            raise InputError(f"`action` must be in [0, {self.n}), got {action}.")
        return self.catalogue.decisions[action]

    def encode(self, decision: Decision) -> int:
        """Return the action that means `decision`.

        Raises:
            UnknownNameError: the catalogue has no such entry.
        """
        if decision not in self.catalogue.decisions:
            known = ", ".join(entry.text for entry in self.catalogue.decisions)
            raise UnknownNameError(f"the catalogue has no entry `{decision.text}`. Known: {known}.")
        return self.catalogue.decisions.index(decision)


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
