"""Decisions: which method to mix with, and its parameters, without tensors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, Union, final

from rlmix.errors import InputError, MethodError
from rlmix.methods import registry
from rlmix.methods.method import AbstractMethod

Value: TypeAlias = Union[bool, int, float, str, tuple["Value", ...], "Decision", None]

# A mixture of mixtures needs two; a document nested deeper was made to exhaust the stack.
_DEPTH = 8


@final
@dataclass(frozen=True, slots=True, init=False)
class Decision:
    """A method's name and its parameters: hashable, written as JSON, replayed.

    Args:
        method: name of a mix method.
        params: its parameters by name: numbers, strings, booleans, None, sequences of these, or Decisions (the
            members of a mixture). Kept as a tuple of pairs, sorted by name.
        probability: the share of images that are mixed at all, in [0, 1].

    Raises:
        MethodError: a parameter is none of these, or `probability` is out of range. Whether the method exists and
            takes the parameters is checked by `build`.

    Example:
        >>> Decision("mixup", {"alpha": 0.2}).text
        'mixup(alpha=0.2)'
    """

    method: str
    params: tuple[tuple[str, Value], ...]
    probability: float

    def __init__(self, method: str, params: Mapping[str, Any] | None = None, probability: float = 1.0) -> None:
        given = dict(params or {})
        if "probability" in given:
            raise MethodError("`probability` is no entry of `params`. Give it as Decision(..., probability=...).")
        if isinstance(probability, bool) or not isinstance(probability, int | float) or not 0 <= probability <= 1:
            raise MethodError(f"`probability` must be a number in [0, 1], got {probability!r}.")
        pairs = tuple((name, _value(name, given[name])) for name in sorted(given))
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "params", pairs)
        object.__setattr__(self, "probability", float(probability))

    @classmethod
    def of(cls, method: AbstractMethod) -> Decision:
        """Return the Decision that describes `method`, without the parameters that have their default.

        Raises:
            MethodError: a parameter is a tensor.
        """
        params = {
            field.name: getattr(method, field.name)
            for field in dataclasses.fields(method)
            if field.name != "probability"
        }
        changed = {
            field.name
            for field in dataclasses.fields(method)
            if field.name in params and not _same(params[field.name], field.default)
        }
        probability: Any = method.probability
        return cls(method.name, {name: _described(params[name]) for name in changed}, probability)

    @property
    def text(self) -> str:
        """A short form to read, such as `mixup(alpha=0.2)`."""
        parts = [f"{name}={_text(value)}" for name, value in self.params]
        if self.probability != 1:
            parts.append(f"probability={self.probability:g}")
        return f"{self.method}({', '.join(parts)})" if parts else self.method

    @property
    def needs_saliency(self) -> bool:
        """Whether mixing so needs saliency maps."""
        return self.build().needs_saliency

    def build(self) -> AbstractMethod:
        """Return the method.

        Raises:
            UnknownNameError: no method, or no parameter, of this name.
            MethodError: a parameter out of its range.
        """
        params = {name: _built(value) for name, value in self.params}
        try:
            return registry.get(self.method, probability=self.probability, **params)
        except TypeError as error:
            raise MethodError(f"`{self.text}` has a parameter of a wrong type ({error}).") from error

    def usage(self) -> dict[str, float]:
        """Return the share of images that each method gets; a mixture counts as its members, in equal parts.

        Raises:
            UnknownNameError: no method, or no parameter, of this name.
            MethodError: a parameter out of its range.
        """
        return _usage(self.build())

    def to_json(self) -> dict[str, Any]:
        """Return the form that `json` writes; `from_json` inverts it exactly."""
        params = {name: _json(value) for name, value in self.params}
        return {"method": self.method, "params": params, "probability": self.probability}

    @classmethod
    def from_json(cls, document: Any) -> Decision:
        """Return the Decision that `to_json` wrote; `params` and `probability` may be left out.

        Raises:
            InputError: `document` has another form.
            MethodError: a parameter's value is not allowed.
        """
        return _decision(document, 0)


def _value(name: str, value: Any) -> Value:
    """Return `value` in its hashable form."""
    if isinstance(value, list | tuple):
        return tuple(_value(name, item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise MethodError(f"`{name}` must be finite, got {value!r}.")
    if value is None or isinstance(value, bool | int | float | str | Decision):
        return value
    raise MethodError(
        f"`{name}` is a {type(value).__name__}; a Decision holds numbers, strings, booleans, None, sequences of these "
        "and Decisions. Use float(value) for a tensor of one element."
    )


def _same(value: Any, default: Any) -> bool:
    return type(value) is type(default) and bool(value == default)


def _described(value: Any) -> Any:
    """Replace methods by Decisions."""
    if isinstance(value, AbstractMethod):
        return Decision.of(value)
    return tuple(map(_described, value)) if isinstance(value, list | tuple) else value


def _built(value: Value) -> Any:
    """Replace Decisions by methods."""
    if isinstance(value, Decision):
        return value.build()
    return tuple(map(_built, value)) if isinstance(value, tuple) else value


def _text(value: Value) -> str:
    if isinstance(value, Decision):
        return value.text
    return f"({', '.join(map(_text, value))})" if isinstance(value, tuple) else str(value)


def _json(value: Value) -> Any:
    if isinstance(value, Decision):
        return value.to_json()
    return [_json(item) for item in value] if isinstance(value, tuple) else value


def _usage(method: AbstractMethod) -> dict[str, float]:
    members: tuple[AbstractMethod, ...] = getattr(method, "members", ())
    parts = [_usage(member) for member in members] or [{method.name: 1.0}]
    probability: Any = method.probability
    shares: dict[str, float] = {} if probability == 1 else {"none": 1.0 - probability}
    for part in parts:
        for name, share in part.items():
            shares[name] = shares.get(name, 0.0) + probability * share / len(parts)
    return shares


def _decision(document: Any, depth: int) -> Decision:
    if depth > _DEPTH:
        raise InputError(f"a Decision is nested more than {_DEPTH} deep.")
    if not isinstance(document, dict) or not {"method"} <= set(document) <= {"method", "params", "probability"}:
        keys = sorted(map(str, document)) if isinstance(document, dict) else type(document).__name__
        raise InputError(f"a Decision has the keys `method`, `params` and `probability`, got {keys}.")
    params = document.get("params", {})
    if not isinstance(document["method"], str) or not isinstance(params, dict):
        raise InputError("a Decision's `method` must be a string and its `params` an object of values by name.")
    values = {name: _parsed(value, depth + 1) for name, value in params.items()}
    return Decision(document["method"], values, document.get("probability", 1.0))


def _parsed(value: Any, depth: int) -> Any:
    """Return a JSON value with its objects read as Decisions."""
    if isinstance(value, dict):
        return _decision(value, depth)
    if isinstance(value, list):
        if depth > _DEPTH:
            raise InputError(f"a Decision is nested more than {_DEPTH} deep.")
        return tuple(_parsed(item, depth + 1) for item in value)
    return value
