"""Reading JSON from strangers: every value is checked as it is taken, and errors name the file and the place in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, final

from rlmix.errors import PolicyError


@final
class Reader:
    """A part of a document. Every method raises PolicyError where the part is of another form.

    Args:
        file: for the messages.
        value: what was parsed.
        place: where in the document `value` stands.
    """

    __slots__ = ("file", "place", "value")

    def __init__(self, file: Path, value: Any, place: str = "document") -> None:
        self.file, self.value, self.place = file, value, place

    def fail(self, expected: str) -> PolicyError:
        """Return the error that says what this part must be."""
        given = repr(self.value)
        given = given if len(given) <= 60 else f"{given[:60]}..."
        return PolicyError(f"`{self.file}`: `{self.place}` must be {expected}, got {given}.")

    def fields(self, *names: str) -> tuple[Reader, ...]:
        """Return the values of an object that has exactly these keys."""
        if not isinstance(self.value, dict):
            raise self.fail(f"an object with {', '.join(names)}")
        if set(self.value) != set(names):
            missing, foreign = sorted(set(names) - set(self.value)), sorted(map(str, set(self.value) - set(names)))
            problem = f"`{missing[0]}` is missing" if missing else f"`{foreign[0][:60]}` is unknown"
            raise PolicyError(f"`{self.file}`: in `{self.place}`, {problem}. Expected keys: {', '.join(names)}.")
        return tuple(Reader(self.file, self.value[name], f"{self.place}.{name}") for name in names)

    def items(self) -> list[Reader]:
        """Return the items of a list."""
        if not isinstance(self.value, list):
            raise self.fail("a list")
        return [Reader(self.file, item, f"{self.place}[{number}]") for number, item in enumerate(self.value)]

    def text(self, *allowed: str) -> str:
        """Return a string, one of `allowed` if any are given."""
        if not isinstance(self.value, str) or (allowed and self.value not in allowed):
            raise self.fail(" or ".join(map(repr, allowed)) or "a string")
        return self.value

    def number(self) -> float:
        """Return a number that is finite, in float32 too."""
        # The comparison is on the value as it is: a whole number may be too large for a float.
        if isinstance(self.value, bool) or not isinstance(self.value, int | float) or not abs(self.value) < 1e30:
            raise self.fail("a finite number")
        return float(self.value)

    def whole(self, low: int, high: int) -> int:
        """Return a whole number in [low, high]."""
        if isinstance(self.value, bool) or not isinstance(self.value, int) or not low <= self.value <= high:
            raise self.fail(f"a whole number from {low} to {high}")
        return self.value
