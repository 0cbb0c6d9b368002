"""Random numbers as a function of (key, purpose, index), in plain tensor code.

A key is a whole number in [0, 2**63). Each draw hashes the key, what the numbers are for and a counter with the
64-bit mixer of SplitMix64 (Steele, Lea, Flood 2014, https://doi.org/10.1145/2660193.2660195), so that

- the hashed bits are equal on every device and version of torch, and nothing of a generator has to be saved;
- what one key gets depends neither on how many keys are drawn beside it nor on its place among them;
- the global random state is never touched.

The host functions (`derive`, `host_uniform`, `host_integer`) and the tensor functions compute the same bits.
Floating-point transforms run in float64 and are rounded to float32 at the end.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from rlmix.errors import InputError
from rlmix.ops import compiled

# What numbers are drawn for. Values of 100 and more are free for code outside the mixing library.
PARTNER = 1
LAM = 2
CENTRE = 3
LEVEL = 4
GRID = 5
MEMBER = 6
CELLS = 7
RATE = 8
APPLIED = 9
SCALE = 10
SPECTRUM = 11
LABELS = 12
PRIOR = 13
ROUND = 14

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB
# An odd constant that keeps the streams of neighbouring keys far apart.
_SPREAD = 0xD1342543DE82EF95
_MASK64 = (1 << 64) - 1
_MASK63 = (1 << 63) - 1


def _signed(word: int) -> int:
    """Return the 64-bit word as the int64 with the same bits."""
    word &= _MASK64
    return word - (1 << 64) if word >> 63 else word


def _mix_host(word: int) -> int:
    word &= _MASK64
    word = ((word ^ (word >> 30)) * _FIRST) & _MASK64
    word = ((word ^ (word >> 27)) * _SECOND) & _MASK64
    return word ^ (word >> 31)


def _shift(words: Tensor, count: int) -> Tensor:
    """Shift right with zeros coming in (int64 `>>` would bring in the sign); the result is a new tensor."""
    return (words >> count).bitwise_and_((1 << (64 - count)) - 1)


def _mix(words: Tensor) -> Tensor:
    """Mix words that nobody else holds: they are written."""
    words = words.bitwise_xor_(_shift(words, 30)).mul_(_signed(_FIRST))
    words = words.bitwise_xor_(_shift(words, 27)).mul_(_signed(_SECOND))
    return words.bitwise_xor_(_shift(words, 31))


def derive(key: int, *words: int) -> int:
    """Return the key that belongs to `words` under `key`: a whole number in [0, 2**63)."""
    for word in words:
        key = _mix_host(key ^ _mix_host(word + _GOLDEN)) & _MASK63
    return key


def _fold(keys: Tensor, word: int) -> Tensor:
    """Return `derive(key, word)` for int64 keys of any shape."""
    return _mix(keys ^ _signed(_mix_host(word + _GOLDEN))).bitwise_and_(_MASK63)


def words(text: str) -> int:
    """Return a whole number in [0, 2**63) that stands for `text`, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") & _MASK63


def key_from(generator: torch.Generator) -> int:
    """Take one key from a CPU generator (and advance it).

    Raises:
        InputError: `generator` is no CPU `torch.Generator`.
    """
    return int(_values_from(generator))


def _values_from(generator: torch.Generator) -> Tensor:
    """Return one key taken from a CPU generator, int64 [1]."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        given = f"a generator on {generator.device}" if isinstance(generator, torch.Generator) else repr(generator)
        raise InputError(
            f"`generator` must be a CPU torch.Generator, got {given}. Use torch.Generator().manual_seed(0); "
            "one key is taken from it, the numbers themselves are made on the images' device."
        )
    return torch.randint(_MASK63, (1,), dtype=torch.int64, generator=generator)


@final
class Streams:
    """One key for each group of rows (the rows of one classifier), on the host and as a tensor.

    Args:
        keys: whole numbers in [0, 2**63), one a group.

    Raises:
        InputError: no key, or a key outside the range.
    """

    __slots__ = ("_roots", "_words", "values")

    values: Tensor
    """The keys as int64 [G]."""

    def __init__(self, keys: Sequence[int]) -> None:
        self._roots = tuple(int(key) for key in keys)
        self._words: tuple[int, ...] = ()
        if not self._roots or not all(0 <= key <= _MASK63 for key in self._roots):
            raise InputError(f"`keys` must be one or more whole numbers in [0, 2**63), got {list(keys)!r}.")
        self.values = torch.tensor(self._roots, dtype=torch.int64)

    @property
    def keys(self) -> tuple[int, ...]:
        """The keys on the host; derived when asked for, so that compiled code need not know them."""
        return tuple(derive(root, *self._words) for root in self._roots)

    def __len__(self) -> int:
        return len(self._roots)

    def __repr__(self) -> str:
        return f"Streams({list(self.keys)!r})"

    def fold(self, word: int) -> Streams:
        """Return independent streams, one for each of these, that belong to `word`."""
        return self._like(self._roots, (*self._words, word), _fold(self.values, word))

    def select(self, groups: Sequence[int]) -> Streams:
        """Return the streams of `groups` (positions on the host), in that order."""
        roots = tuple(self._roots[group] for group in groups)
        return Streams([derive(root, *self._words) for root in roots]).to(self.values.device)

    def to(self, device: torch.device | str | None) -> Streams:
        """Return the same streams with `values` on `device`."""
        if device is None or self.values.device == torch.device(device):
            return self
        return self._like(self._roots, self._words, self.values.to(device, non_blocking=True))

    @staticmethod
    def _like(roots: tuple[int, ...], folded: tuple[int, ...], values: Tensor) -> Streams:
        streams = object.__new__(Streams)
        streams._roots, streams._words, streams.values = roots, folded, values
        return streams


def streams_from(generator: torch.Generator | Streams, groups: int = 1) -> Streams:
    """Return one key for each group, taken from a generator if they are not given.

    Raises:
        InputError: `generator` is neither a CPU `torch.Generator` nor `Streams`.
    """
    if isinstance(generator, Streams):
        return generator
    values = _values_from(generator)
    key = int(values)
    if groups == 1:
        return Streams._like((key,), (), values)
    return Streams([derive(key, group) for group in range(groups)])


def bits(keys: Tensor, purpose: int, shape: tuple[int, ...]) -> Tensor:
    """Return 64 random bits each, as int64 [G, *shape].

    Args:
        keys: int64 [G], any device.
        purpose: what the numbers are for, from 0 to 2**31 - 1; different purposes give independent numbers.
        shape: shape for each key, at most 2**32 - 1 numbers.
    """
    return _hashed(keys, ((purpose, math.prod(shape)),)).view(keys.shape[0], *shape)


def _hashed(keys: Tensor, wanted: tuple[tuple[int, int], ...]) -> Tensor:
    """Return the bits of each (purpose, count), one after the other: int64 [G, sum of counts]."""
    return _mix(_steps(wanted, keys.device) + (keys * _signed(_SPREAD)).unsqueeze(1))


_KEPT_STEPS: dict[tuple[object, ...], Tensor] = {}
_MOST_KEPT = 256


def _steps(wanted: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Return the steps of the generator that belong to each (purpose, count): int64 [sum of counts].

    They are the same for every key, so those of the last few shapes are kept: that is a quarter of the operations of
    a draw.
    """
    if torch.compiler.is_compiling():
        return _new_steps(wanted, device)
    # Taken out and put back, the last one used is the last one to go.
    steps = _KEPT_STEPS.pop((wanted, device), None)
    if steps is None:
        steps = _new_steps(wanted, device)
        if type(steps) is not Tensor:
            # What a tracer stands in for a tensor must not outlive it.
            return steps
        if len(_KEPT_STEPS) >= _MOST_KEPT:
            _KEPT_STEPS.pop(next(iter(_KEPT_STEPS)), None)
    _KEPT_STEPS[wanted, device] = steps
    return steps


def _new_steps(wanted: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    counters = [
        torch.arange((purpose << 32) + 1, (purpose << 32) + 1 + count, device=device) for purpose, count in wanted
    ]
    return torch.cat(counters).mul_(_signed(_GOLDEN))


def uniform64(keys: Tensor, *wanted: tuple[int, tuple[int, ...]]) -> list[Tensor]:
    """Return float64 [G, *shape] in (0, 1) for each (purpose, shape), hashed together: that takes fewer operations.

    The numbers are the middles of 2**52 equal steps, so that a logarithm is finite at both ends.
    """
    if compiled.serves(keys):
        drawn: list[Tensor] = compiled.code("rng_numba").uniform64(keys, wanted)
        return drawn
    counts = [math.prod(shape) for _, shape in wanted]
    counted = tuple((purpose, count) for (purpose, _), count in zip(wanted, counts, strict=True))
    numbers = _shift(_hashed(keys, counted), 12).double().add_(0.5).mul_(2.0**-52)
    if len(counts) == 1:
        return [numbers.view(keys.shape[0], *wanted[0][1])]
    parts = torch.split(numbers, counts, 1)
    return [part.reshape(keys.shape[0], *shape) for part, (_, shape) in zip(parts, wanted, strict=True)]


def permutation_and_uniform64(
    keys: Tensor, purpose: int, count: int, *wanted: tuple[int, tuple[int, ...]]
) -> tuple[Tensor, list[Tensor]]:
    """Return what `permutation` and `uniform64` give, hashed together."""
    shapes = ((purpose, (count,)), *wanted)
    if compiled.serves(keys):
        found: tuple[Tensor, list[Tensor]] = compiled.code("rng_numba").permutation_and_uniform64(keys, count, shapes)
        return found
    numbers, *drawn = uniform64(keys, *shapes)
    return to_permutation(numbers), drawn


def to_permutation(numbers: Tensor) -> Tensor:
    """Turn random numbers [..., n] into uniform permutations of range(n), int64 [..., n]."""
    return torch.argsort(numbers, dim=-1, stable=True)


def to_beta(numbers: Tensor, alpha: float | Tensor) -> Tensor:
    """Turn uniform numbers [..., 2] into Beta(alpha, alpha) variates, float32 [...] in [0, 1].

    Student's t with 2 * alpha degrees of freedom in polar form (Bailey 1994,
    https://doi.org/10.1090/S0025-5718-1994-1219702-8), brought to [0, 1]: exact for every alpha, and nothing is
    rejected. With r = t / sqrt(2 * alpha) the variate is (1 + r / sqrt(1 + r**2)) / 2; its smaller side is written as a
    quotient, because for a small alpha the difference would be rounded to 0. Beta(1, 1) is uniform.

    Args:
        numbers: float64 [..., 2] in (0, 1).
        alpha: above 0; a float or a tensor that broadcasts to [...].
    """
    radius, angle = numbers.unbind(-1)
    if isinstance(alpha, float | int) and alpha == 1:
        return radius.float()
    concentration = alpha.to(numbers.device, torch.float64) if isinstance(alpha, Tensor) else alpha
    ratio = torch.sqrt(torch.expm1(torch.log(radius) / -concentration)) * torch.cos(2.0 * math.pi * angle)
    length = torch.hypot(ratio, torch.ones_like(ratio))
    smaller = 0.5 / (length * (length + ratio.abs()))
    variates = torch.where(ratio < 0, smaller, 1.0 - smaller)
    if isinstance(concentration, Tensor):
        variates = torch.where(concentration == 1, radius, variates)
    return variates.float()


def uniform(keys: Tensor, purpose: int, shape: tuple[int, ...]) -> Tensor:
    """Return float32 [G, *shape] in [0, 1), multiples of 2**-24."""
    return _shift(bits(keys, purpose, shape), 40).float().mul_(2.0**-24)


def integers(keys: Tensor, purpose: int, shape: tuple[int, ...], high: int) -> Tensor:
    """Return int64 [G, *shape] in [0, high); the bias of the reduction is below high / 2**31."""
    return _shift(bits(keys, purpose, shape), 33).mul_(high) >> 31


def normal(keys: Tensor, purpose: int, shape: tuple[int, ...]) -> Tensor:
    """Return standard normal float32 [G, *shape] (Box and Muller 1958)."""
    radius, angle = uniform64(keys, (purpose, (*shape, 2)))[0].unbind(-1)
    return (torch.sqrt(-2.0 * torch.log(radius)) * torch.cos(2.0 * math.pi * angle)).float()


def beta(keys: Tensor, purpose: int, shape: tuple[int, ...], alpha: float | Tensor) -> Tensor:
    """Return Beta(alpha, alpha) variates, float32 [G, *shape] in [0, 1]; `alpha` as in `to_beta`."""
    return to_beta(uniform64(keys, (purpose, (*shape, 2)))[0], alpha)


def permutation(keys: Tensor, purpose: int, count: int) -> Tensor:
    """Return one uniform permutation of range(count) for each key, int64 [G, count]."""
    return to_permutation(uniform64(keys, (purpose, (count,)))[0])


def on_device(value: float | Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a number or tensor as a tensor; a number is filled in there, since a copy would wait for the device."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)


def _host_bits(key: int, purpose: int, index: int = 0) -> int:
    return _mix_host(key * _SPREAD + ((purpose << 32) + 1 + index) * _GOLDEN)


def host_uniform(key: int, purpose: int, index: int = 0) -> float:
    """Return on the host the number that `uniform(keys, purpose, (n,))` gives for this key at `index`, below n."""
    return (_host_bits(key, purpose, index) >> 40) * 2.0**-24


def host_integer(key: int, purpose: int, high: int) -> int:
    """Return on the host what `integers(keys, purpose, (1,), high)` gives for this key."""
    return ((_host_bits(key, purpose) >> 33) * high) >> 31
