"""Method spaces: methods whose parameters are left open within ranges, for actions that choose both."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

from rlmix._files import sha256_of
from rlmix.errors import InputError, RlmixError, UnknownNameError, nearest
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.decision import Decision

Scale: TypeAlias = Literal["linear", "log"]

# A range narrower than this, beside its ends, would not survive the way to an action and back.
_NARROWEST = 1e-6
# What tells every float64 from its neighbours.
_DIGITS = 17
_KEYS = {"name", "low", "high", "scale"}

STEPS = 2**24
"""Equal steps that a range is divided into; shares of one step mean the same value."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter that is left open.

    Args:
        name: the method's name for it.
        low: its lowest value.
        high: its highest value.
        scale: "linear", or "log" for one whose ratios count, such as a concentration or a temperature.

    Raises:
        InputError: a range that is empty, not finite, too narrow, or, on the scale "log", not above 0.
    """

    name: str
    low: float
    high: float
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        """Check the range."""
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"`name` must be a parameter's name, got {self.name!r}.")
        if self.scale not in ("linear", "log"):
            raise InputError(f'`scale` of `{self.name}` must be "linear" or "log", got {self.scale!r}.')
        numbers = [isinstance(end, int | float) and not isinstance(end, bool) for end in (self.low, self.high)]
        if not all(numbers) or not -math.inf < self.low < self.high < math.inf:
            raise InputError(f"`{self.name}` must have finite ends in ascending order, got {self.low} to {self.high}.")
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        if self.scale == "log" and self.low <= 0:
            raise InputError(f'`{self.name}` has the scale "log" and must begin above 0, got {self.low}.')
        if self.high - self.low < _NARROWEST * max(abs(self.low), abs(self.high)):
            raise InputError(f"`{self.name}` has hardly any range, {self.low} to {self.high}. Fix it instead.")

    def value(self, share: float) -> float:
        """Return the value at a share in [0, 1] of the range: `low` at 0, `high` at 1.

        It has as few digits as the nearest of 2**24 steps allows, so that 0.2 is 0.2, and `share` finds the step again.
        """
        step = round(share * STEPS)
        if step in (0, STEPS):
            return self.high if step else self.low
        if self.scale == "log":
            exact = self.low * (self.high / self.low) ** (step / STEPS)
        else:
            exact = self.low + (self.high - self.low) * (step / STEPS)
        rounded = (float(f"{exact:.{digits}g}") for digits in range(1, _DIGITS))
        return next((one for one in rounded if self._step(one) == step), exact)

    def share(self, value: float) -> float:
        """Invert `value`, up to rounding.

        Raises:
            InputError: `value` is out of the range.
        """
        if not self.low <= value <= self.high:
            raise InputError(f"`{self.name}` must be in [{self.low:g}, {self.high:g}], got {value}.")
        if self.scale == "log":
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def _step(self, value: float) -> int | None:
        return round(self.share(value) * STEPS) if self.low <= value <= self.high else None


@final
@dataclass(frozen=True, slots=True)
class Tunable:
    """A Decision some of whose parameters are left open.

    Args:
        decision: the method, and its parameters that are fixed.
        parameters: those that are open, each once.

    Raises:
        InputError: a parameter twice, or both open and fixed.
        UnknownNameError: no method, or no parameter, of this name.
        MethodError: the method does not take the values that are fixed, or an end of a range.
    """

    decision: Decision
    parameters: tuple[Parameter, ...] = ()

    def __post_init__(self) -> None:
        """Check that the method takes both ends of every range."""
        object.__setattr__(self, "parameters", tuple(self.parameters))
        named = [*(name for name, _ in self.decision.params), *(one.name for one in self.parameters)]
        if len(set(named)) < len(named):
            raise InputError(f"`{self.decision.method}` must name each parameter once, got {', '.join(named)}.")
        for share in (0.0, 1.0):
            self.at([share] * len(self.parameters)).build()

    def at(self, shares: Sequence[float]) -> Decision:
        """Return the Decision with each open parameter at its share in [0, 1] of its range; further shares are unread.

        Raises:
            InputError: fewer shares than open parameters.
        """
        if not self.parameters:
            return self.decision
        if len(shares) < len(self.parameters):
            raise InputError(f"`shares` must be {len(self.parameters)} numbers, got {len(shares)}.")
        pairs = zip(self.parameters, shares, strict=False)
        opened = {parameter.name: parameter.value(share) for parameter, share in pairs}
        return Decision(self.decision.method, {**dict(self.decision.params), **opened}, self.decision.probability)

    def shares(self, decision: Decision) -> tuple[float, ...] | None:
        """Return what shares of its ranges `decision` has, one for each open parameter; None if it is no such one.

        Raises:
            InputError: it is one but for a value out of its range.
        """
        given, fixed = dict(decision.params), dict(self.decision.params)
        values = [given.pop(parameter.name, None) for parameter in self.parameters]
        same = (decision.method, decision.probability) == (self.decision.method, self.decision.probability)
        if not same or given != fixed:
            return None
        found = []
        for parameter, value in zip(self.parameters, values, strict=True):
            if isinstance(value, bool) or not isinstance(value, int | float):
                return None
            found.append(parameter.share(value))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Return the form that `json` writes; `from_json` inverts it exactly."""
        parameters = [
            {"name": one.name, "low": one.low, "high": one.high, "scale": one.scale} for one in self.parameters
        ]
        return {"decision": self.decision.to_json(), "parameters": parameters}

    @classmethod
    def from_json(cls, document: Any) -> Tunable:
        """Return what `to_json` wrote.

        Raises:
            InputError: `document` has another form.
            UnknownNameError: the method or a parameter does not exist.
            MethodError: the method does not take a value.
        """
        parts = document.get("parameters") if isinstance(document, dict) else None
        listed = isinstance(parts, list) and all(isinstance(one, dict) and set(one) == _KEYS for one in parts)
        if not listed or set(document) != {"decision", "parameters"}:
            raise InputError(
                "an entry of a method space is a decision and a list of parameters: their name, low, high and scale."
            )
        return cls(Decision.from_json(document["decision"]), tuple(Parameter(**one) for one in document["parameters"]))


@final
class MethodSpace:
    """An ordered set of named methods with open parameters. Like a catalogue, it belongs to a policy.

    Args:
        entries: methods by name, in the order of the actions.

    Attributes:
        names: the entries' names.
        entries: the methods.
        slots: P, the largest number of open parameters that an entry has.
        catalogue: the entries by name, each with its parameters in the middle of their ranges.
        digest: SHA-256 of names, methods and ranges.

    Raises:
        InputError: no entry, a name that is no string, or two entries that may mean the same Decision.

    Example:
        >>> space = method_space("cheap")
        >>> space.names
        ('none', 'mixup', 'cutmix', 'uniform-cheap')
        >>> space.entries[1].at([0.0]).text
        'mixup(alpha=0.1)'
    """

    __slots__ = ("catalogue", "digest", "entries", "names", "slots")

    def __init__(self, entries: Mapping[str, Tunable]) -> None:
        if not entries or not all(isinstance(name, str) and name for name in entries):
            raise InputError(f"`entries` must be one or more methods by name, got the names {list(entries)!r}.")
        self.names: tuple[str, ...] = tuple(entries)
        self.entries: tuple[Tunable, ...] = tuple(entries.values())
        kinds = [(one.decision, frozenset(part.name for part in one.parameters)) for one in self.entries]
        if len(set(kinds)) < len(kinds):
            raise InputError(f"`entries` must differ in more than ranges, got {', '.join(self.names)}.")
        self.slots: int = max(len(one.parameters) for one in self.entries)
        middle = [0.5] * self.slots
        self.catalogue = Catalogue({name: one.at(middle) for name, one in entries.items()})
        self.digest: str = sha256_of(json.dumps(self.to_json(), sort_keys=True).encode("utf-8"))

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MethodSpace) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"MethodSpace({', '.join(self.names)})"

    @property
    def used(self) -> tuple[tuple[bool, ...], ...]:
        """For each entry, which of the P slots it has a parameter in."""
        return tuple(tuple(slot < len(one.parameters) for slot in range(self.slots)) for one in self.entries)

    def find(self, decision: Decision) -> tuple[int, tuple[float, ...]]:
        """Return the entry that `decision` belongs to, and the shares of its parameters' ranges.

        Raises:
            UnknownNameError: no entry has this method with these fixed parameters.
            InputError: an open parameter is out of its range.
        """
        for entry, one in enumerate(self.entries):
            shares = one.shares(decision)
            if shares is not None:
                return entry, shares
        known = [one.decision.method for one in self.entries]
        raise UnknownNameError(f"the method space has no `{decision.text}`. {nearest(decision.method, known)}")

    def to_json(self) -> list[dict[str, Any]]:
        """Return the form that `json` writes; `from_json` inverts it exactly."""
        return [{"name": name, **one.to_json()} for name, one in zip(self.names, self.entries, strict=True)]

    @classmethod
    def from_json(cls, document: Any) -> MethodSpace:
        """Return the space that `to_json` wrote.

        Raises:
            InputError: `document` has another form, a name twice, or an entry that cannot be used.
        """
        entries: dict[str, Tunable] = {}
        for item in document if isinstance(document, list) else [document]:
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise InputError('a method space is a list of {"name": ..., "decision": ..., "parameters": ...}.')
            name = item["name"]
            if name in entries:
                raise InputError(f"the method space has the name `{name}` twice.")
            try:
                entries[name] = Tunable.from_json({key: value for key, value in item.items() if key != "name"})
            except RlmixError as error:
                raise InputError(f"the entry `{name[:60]}` cannot be used: {error}") from error
        return cls(entries)


def method_space(name: str) -> MethodSpace:
    """Return one of the spaces that policies are trained with: "v0", or "cheap" without saliency.

    Every entry of the catalogue of the same name is a point of the space, `rmix-random` being that of `rmix` with its
    published random thresholds.

    Raises:
        UnknownNameError: no space of this name.
    """
    if name not in _OPENED:
        raise UnknownNameError(f"there is no method space `{name}`. {nearest(name, _OPENED)}")
    known = catalogue(name)
    mixtures = {
        entry: Tunable(decision)
        for entry, decision in zip(known.names, known.decisions, strict=True)
        if decision.method == "uniform"
    }
    return MethodSpace({**_OPENED[name], **mixtures})


def _opened(method: str, name: str, low: float, high: float, scale: Scale) -> Tunable:
    return Tunable(Decision(method), (Parameter(name=name, low=low, high=high, scale=scale),))


_CHEAP = {
    "none": Tunable(Decision("none")),
    "mixup": _opened("mixup", "alpha", 0.1, 8.0, "log"),
    "cutmix": _opened("cutmix", "alpha", 0.1, 8.0, "log"),
}
_SALIENT = {
    "rmix": _opened("rmix", "threshold", 0.0, 0.99, "linear"),
    "rmix-random": Tunable(Decision("rmix")),
    "grafting": _opened("grafting", "temperature", 0.1, 4.0, "log"),
}
_OPENED: dict[str, dict[str, Tunable]] = {"v0": {**_CHEAP, **_SALIENT}, "cheap": _CHEAP}
