"""Random calls of mix methods, as odd as they are allowed: `python -m rlmix.testing.fuzz --calls 20000 --seed 0`.

Sizes from 1 to 64, one side often much longer than the other, batches from a single image, every dtype and memory
format, parameters at and beyond the ends of their ranges, saliency that is zero, broken, tiny, huge, coarse or a single
peak. A call may be refused with an error of rlmix. One that is carried out must give finite images between the smallest
and the largest value of the batch, rows of targets that sum to 1, and lam in [0, 1].
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor

from rlmix._mix import mix
from rlmix.errors import MethodError, RlmixError
from rlmix.methods.method import AbstractMethod
from rlmix.methods.registry import METHODS, get, names
from rlmix.ops import rng

NUMBERS = (0.0, 1e-6, 0.01, 0.1, 0.3, 0.5, 0.83, 0.99, 1.0, 1.5, 3.0, 100.0, 1e6)
WHOLE = (1, 2, 3, 4, 5, 7, 8, 16, 20, 64)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LONGEST, MOST_IMAGES, MOST_CHANNELS = 64, 24, 4
_CALL = 101


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A call that broke a promise.

    Attributes:
        call: the number of the call, which with the seed gives it again.
        what: the method with its parameters, and the batch.
        broken: what did not hold.
    """

    call: int
    what: str
    broken: str


@final
@dataclasses.dataclass(slots=True, kw_only=True)
class Outcome:
    """What came of the calls so far.

    Attributes:
        done: calls that were carried out and kept every promise, by method.
        refused: calls that were refused with an error of rlmix, by method.
        findings: calls that broke a promise.
    """

    done: dict[str, int] = dataclasses.field(default_factory=dict)
    refused: dict[str, int] = dataclasses.field(default_factory=dict)
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        """The outcome as a few lines."""
        kept, refused = sum(self.done.values()), sum(self.refused.values())
        lines = [f"{kept} calls kept every promise, {refused} were refused, {len(self.findings)} broke one"]
        lines += [
            f"  {name}: {self.done.get(name, 0)} kept, {self.refused.get(name, 0)} refused"
            for name in sorted({*self.done, *self.refused})
        ]
        return "\n".join([*lines, *(f"call {one.call}: {one.what}\n  {one.broken}" for one in self.findings)])


class _Dice:
    """Random choices of one call, from its number and the seed."""

    def __init__(self, seed: int, call: int) -> None:
        self._key, self._thrown = rng.derive(seed, _CALL, call), 0

    def below(self, high: int) -> int:
        self._thrown += 1
        return rng.host_integer(rng.derive(self._key, self._thrown), _CALL, high)

    def one_of(self, values: Sequence[Any]) -> Any:
        return values[self.below(len(values))]

    def chance(self, share: float) -> bool:
        return self.below(1000) < 1000 * share

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.below(2**31))


def fuzz(
    calls: int, seed: int = 0, methods: Sequence[str] | None = None, tell: Callable[[int], None] | None = None
) -> Outcome:
    """Make random calls and return what came of them.

    Args:
        calls: how many.
        seed: in [0, 2**63); equal seeds make equal calls.
        methods: names of registered methods; None takes all.
        tell: called with the number of calls so far.
    """
    outcome = Outcome()
    for call in range(calls):
        dice = _Dice(seed, call)
        name = dice.one_of(methods or names())
        _one_call(call, name, dice, outcome)
        if tell is not None:
            tell(call + 1)
    return outcome


def _one_call(call: int, name: str, dice: _Dice, outcome: Outcome) -> None:
    count = dice.one_of((1, 2, 3, dice.below(MOST_IMAGES) + 1))
    method = _method(name, count, dice)
    sides = [dice.below(LONGEST) + 1, dice.below(LONGEST) + 1]
    if dice.chance(0.3):
        sides[dice.below(2)] = dice.below(3) + 1
    images = _images(count, sides, dice)
    labels = torch.randint(7, (count,), generator=dice.generator())
    maps, kind = _maps(count, sides, dice)
    what = f"{method}, images {images.dtype} {list(images.shape)}, saliency {kind} {list(maps.shape)}"
    try:
        batch = mix(images, labels, method, num_classes=7, generator=rng.Streams([dice.below(2**31)]), saliency=maps)
    except RlmixError:
        outcome.refused[name] = outcome.refused.get(name, 0) + 1
        return
    except Exception as error:
        outcome.findings.append(Finding(call=call, what=what, broken=f"raised {error!r}"))
        return
    broken = _broken(images, batch.images, batch.targets, batch.plan.lam)
    if broken:
        outcome.findings.append(Finding(call=call, what=what, broken=broken))
    else:
        outcome.done[name] = outcome.done.get(name, 0) + 1


def _broken(images: Tensor, mixed: Tensor, targets: Tensor, lam: Tensor) -> str:
    """Return which promises do not hold."""
    # Zeros may be shown where a source was moved away.
    low, high = min(0.0, float(images.min())), max(0.0, float(images.max()))
    slack = 8 * torch.finfo(images.dtype).eps * max(abs(low), abs(high))
    rules = {
        "the images are not finite": bool(torch.isfinite(mixed).all()),
        "a pixel lies outside the values of the batch": low - slack <= float(mixed.min())
        and float(mixed.max()) <= high + slack,
        "the shape or dtype has changed": mixed.shape == images.shape and mixed.dtype == images.dtype,
        "a target is below 0": float(targets.min()) >= -1e-6,
        "a row of targets does not sum to 1": float((targets.double().sum(1) - 1).abs().max()) <= 1e-5,
        "lam is outside [0, 1]": float(lam.min()) >= -1e-6 and float(lam.max()) <= 1 + 1e-6,
    }
    return ", ".join(rule for rule, holds in rules.items() if not holds)


def _method(name: str, count: int, dice: _Dice) -> AbstractMethod:
    """Return a method with random parameters; values out of their range are drawn again."""
    hints = typing.get_type_hints(METHODS[name])
    while True:
        params = {
            field.name: _value(hints[field.name], count, dice)
            for field in dataclasses.fields(METHODS[name])
            if dice.chance(0.4) and field.name != "members"
        }
        try:
            return get(name, **params)
        except MethodError:
            continue


def _value(hint: Any, count: int, dice: _Dice) -> Any:
    """Return a value of an annotated type, often an extreme one."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = dice.one_of(typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return dice.one_of(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return tuple(dice.one_of(WHOLE) for _ in range(dice.below(3) + 1))
    values: dict[Any, Callable[[], Any]] = {
        type(None): lambda: None,
        bool: lambda: dice.chance(0.5),
        int: lambda: dice.one_of(WHOLE),
        float: lambda: dice.one_of(NUMBERS),
        Tensor: lambda: torch.tensor([dice.one_of(NUMBERS) for _ in range(count)]),
    }
    return values[hint]()


def _images(count: int, sides: Sequence[int], dice: _Dice) -> Tensor:
    images = torch.randn(count, dice.below(MOST_CHANNELS) + 1, *sides, generator=dice.generator())
    images = images.to(dice.one_of(DTYPES))
    return images.contiguous(memory_format=torch.channels_last) if dice.chance(0.3) else images


def _maps(count: int, sides: Sequence[int], dice: _Dice) -> tuple[Tensor, str]:
    """Return saliency and what is odd about it."""
    shape = sides if dice.chance(0.6) else [dice.below(9) + 1, dice.below(9) + 1]
    maps = torch.rand(count, *shape, generator=dice.generator())
    kind = dice.one_of(("random", "random", "constant", "one zero", "one broken", "tiny", "huge", "peaks", "half"))
    row = dice.below(count)
    if kind == "constant":
        maps.fill_(dice.one_of((1e-30, 0.5, 1e30)))
    elif kind == "one zero":
        maps[row] = 0
    elif kind == "one broken":
        maps[row, 0, 0] = dice.one_of((float("nan"), float("inf")))
    elif kind in ("tiny", "huge"):
        maps *= 1e-37 if kind == "tiny" else 1e34
    elif kind == "peaks":
        maps = (maps >= maps.flatten(1).amax(1).view(-1, 1, 1)).float()
    elif kind == "half":
        maps = maps.half()
    return maps, kind


def main() -> int:
    """Run as a program: 0 if every promise was kept."""
    parser = argparse.ArgumentParser(prog="python -m rlmix.testing.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=20_000, help="how many calls are made")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds make equal calls")
    parser.add_argument("--method", nargs="+", choices=names(), help="only these methods")
    chosen = parser.parse_args()
    begun = last = time.monotonic()

    def tell(number: int) -> None:
        nonlocal last
        if time.monotonic() - last > 5:
            last = time.monotonic()
            print(f"rlmix: {number} of {chosen.calls} calls, {last - begun:.0f} s", file=sys.stderr, flush=True)  # noqa: T201

    outcome = fuzz(chosen.calls, chosen.seed, chosen.method, tell)
    sys.stdout.write(f"{outcome.text}\n")
    return 1 if outcome.findings else 0


if __name__ == "__main__":
    sys.exit(main())
