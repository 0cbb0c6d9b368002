"""rlmix.ops.rng."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rlmix.errors import InputError
from rlmix.ops import rng
from rlmix.testing.methods import OperationCounter

# Statistical tests here compare with six standard errors: a false alarm in 2e-9 of the runs (and seeds are fixed).
SIGMAS = 6.0
MASK = (1 << 64) - 1


def literal_bits(key: int, purpose: int, index: int) -> int:
    """Return what the module promises, written with Python's whole numbers alone."""

    def mixed(word: int) -> int:
        word &= MASK
        word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
        return word ^ (word >> 31)

    return mixed(key * 0xD1342543DE82EF95 + ((purpose << 32) + index + 1) * 0x9E3779B97F4A7C15)


def test_the_mixer_is_that_of_splitmix64() -> None:
    """A wrong shift or constant would still look random; SplitMix64 seeded with 0 starts with known words."""
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    state = 0
    for word in known:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        assert rng._mix_host(state) == word
        assert rng._mix(torch.tensor([rng._signed(state)])).tolist() == [rng._signed(word)]


def test_tensor_code_gives_the_bits_of_whole_number_arithmetic() -> None:
    """The same key must give the same numbers on every device and on the host."""
    keys = [0, 5, 2**62 + 12345, 2**63 - 1]
    drawn = rng.bits(torch.tensor(keys), 7, (2, 3)).flatten(1).tolist()
    for row, key in zip(drawn, keys, strict=True):
        assert [word & MASK for word in row] == [literal_bits(key, 7, index) for index in range(6)]


def test_numbers_drawn_together_are_those_drawn_apart() -> None:
    """Methods that hash all their numbers at once must get the same ones."""
    keys = torch.tensor([3, rng.derive(1, 2)])
    wanted = ((rng.PARTNER, (5,)), (rng.LAM, (5, 2)), (rng.CENTRE, (1, 2)))
    for drawn, one in zip(rng.uniform64(keys, *wanted), wanted, strict=True):
        assert torch.equal(drawn, rng.uniform64(keys, one)[0])


def test_neighbouring_keys_and_counters_give_unrelated_bits() -> None:
    """Keys 0, 1, 2 ... are what people write, and every bit of their numbers must look like a coin of its own.

    Each of 64 x 63 / 2 pairs of bits, and each bit with itself one key further, agrees in half of 2**16 numbers; with
    standard deviation 1/512 none of some 6,000 frequencies is 6 deviations away, but for a probability of 1e-5.
    """
    drawn = rng.bits(torch.arange(2**10), rng.LAM, (2**6,)).flatten()
    ones = ((drawn.unsqueeze(1) >> torch.arange(64)) & 1).float()
    signs = 2 * ones - 1
    agreement = (signs.T @ signs) / len(drawn)
    agreement.fill_diagonal_(0.0)
    next_key = (signs[:-64] * signs[64:]).mean(0)
    next_counter = (signs[:-1] * signs[1:]).mean(0)
    for correlation in (agreement, next_key, next_counter, signs.mean(0)):
        assert float(correlation.abs().max()) < 6 * 2**-8


def test_host_functions_agree_with_tensor_functions() -> None:
    """Host choices and device numbers of one key must be the same numbers."""
    keys = [rng.derive(3, index) for index in range(50)]
    values = torch.tensor(keys)
    assert rng.uniform(values, 2, (1,)).flatten().tolist() == [rng.host_uniform(key, 2) for key in keys]
    several = [[rng.host_uniform(key, 2, index) for index in range(5)] for key in keys]
    assert rng.uniform(values, 2, (5,)).tolist() == several
    assert rng.integers(values, 2, (1,), 7).flatten().tolist() == [rng.host_integer(key, 2, 7) for key in keys]
    folded = rng.Streams(keys).fold(9)
    assert folded.values.tolist() == list(folded.keys) == [rng.derive(key, 9) for key in keys]


def test_numbers_of_a_key_do_not_depend_on_the_keys_beside_it() -> None:
    """A classifier of a pool must get what it would get alone, bit for bit, transcendental functions included."""
    keys = torch.tensor([rng.derive(1, index) for index in range(37)])
    for draw in (
        lambda values: rng.uniform(values, 1, (11,)),
        lambda values: rng.normal(values, 1, (11,)),
        lambda values: rng.beta(values, 1, (11,), 0.3),
        lambda values: rng.permutation(values, 1, 11),
    ):
        whole = draw(keys)
        for index in (0, 17, 36):
            assert torch.equal(draw(keys[index : index + 1])[0], whole[index])
        assert torch.equal(draw(keys.flip(0)).flip(0), whole)


def test_purposes_and_keys_give_independent_numbers() -> None:
    """Numbers for different uses must not be correlated."""
    count = 200_000
    first, second = (rng.uniform(torch.tensor([4]), purpose, (count,))[0].double() - 0.5 for purpose in (1, 2))
    third = rng.uniform(torch.tensor([5]), 1, (count,))[0].double() - 0.5
    for other in (second, third, first.roll(1)):
        assert abs(float((first * other).mean()) * 12) < SIGMAS / count**0.5


def test_uniform_numbers_have_the_moments_and_the_range_of_their_law() -> None:
    """Mean 1/2, variance 1/12, never 1."""
    drawn = rng.uniform(torch.tensor([8]), 1, (500_000,)).double()
    assert 0.0 <= float(drawn.min()) <= float(drawn.max()) < 1.0
    assert abs(float(drawn.mean()) - 0.5) < SIGMAS * (1 / 12 / 500_000) ** 0.5
    assert abs(float(drawn.var()) - 1 / 12) < SIGMAS * (1 / 180 / 500_000) ** 0.5


def test_normal_numbers_have_the_moments_of_their_law() -> None:
    """Mean 0, variance 1, fourth moment 3."""
    drawn = rng.normal(torch.tensor([8]), 1, (500_000,)).double()
    assert abs(float(drawn.mean())) < SIGMAS / 500_000**0.5
    assert abs(float(drawn.var()) - 1) < SIGMAS * (2 / 500_000) ** 0.5
    assert abs(float((drawn**4).mean()) - 3) < SIGMAS * (96 / 500_000) ** 0.5


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 2.0, 8.0])
def test_beta_numbers_follow_their_distribution_function(alpha: float) -> None:
    """Kolmogorov's distance to SciPy's Beta distribution; beyond 3/sqrt(n) lies a probability of 3e-8."""
    from scipy import stats

    drawn = rng.beta(torch.tensor([21]), 1, (100_000,), alpha).double()[0]
    assert bool(((drawn >= 0) & (drawn <= 1)).all())
    # Below the smallest float32 step from 1, numbers of a small alpha round to 1 itself: compare inside.
    inside = drawn[(drawn > 1e-6) & (drawn < 1 - 1e-6)].sort().values
    low, high = stats.beta.cdf([1e-6, 1 - 1e-6], alpha, alpha)
    expected = (torch.from_numpy(stats.beta.cdf(inside.numpy(), alpha, alpha)) - low) / (high - low)
    steps = torch.arange(1, inside.numel() + 1) / inside.numel()
    assert float((steps - expected).abs().max()) < 3.0 / inside.numel() ** 0.5


def test_beta_takes_one_concentration_for_each_number() -> None:
    """Parameters as tensors must give what the same floats give."""
    keys = torch.tensor([3])
    alphas = torch.tensor([0.1, 1.0, 4.0])
    drawn = rng.beta(keys, 1, (3,), alphas)
    for index, alpha in enumerate(alphas.tolist()):
        assert torch.equal(drawn[:, index], rng.beta(keys, 1, (3,), alpha)[:, index])


def test_permutations_are_permutations_and_uniform() -> None:
    """Each of the 24 orders of four must come equally often."""
    keys = torch.tensor([rng.derive(6, index) for index in range(48_000)])
    drawn = rng.permutation(keys, 1, 4)
    assert torch.equal(drawn.sort(1).values, torch.arange(4).expand(48_000, 4))
    counts = torch.bincount(drawn @ torch.tensor([64, 16, 4, 1]), minlength=256)
    counts = counts[counts > 0]
    assert counts.numel() == 24
    assert float((counts - 2000).abs().max()) < SIGMAS * (48_000 * (1 / 24) * (23 / 24)) ** 0.5


def test_a_generator_gives_one_key_a_call() -> None:
    """`draw` must advance the caller's generator, and nothing else."""
    generator = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    keys = [rng.key_from(generator) for _ in range(3)]
    assert len(set(keys)) == 3
    assert keys[0] == rng.key_from(torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())
    with pytest.raises(InputError, match="`generator` must be a CPU torch.Generator, got 5"):
        rng.key_from(5)  # type: ignore[arg-type]


def test_streams_refuse_keys_outside_their_range() -> None:
    """A negative key would not survive the trip between host and tensor."""
    for keys in ([], [-1], [2**63]):
        with pytest.raises(InputError, match="`keys` must be one or more whole numbers"):
            rng.Streams(keys)
    assert rng.Streams([1, 2, 3]).fold(4).select([2, 0]).keys == (rng.derive(3, 4), rng.derive(1, 4))


def test_words_of_a_text_are_the_same_in_every_process() -> None:
    """Python's own hash of a string differs between processes."""
    code = "from rlmix.ops import rng; print(rng.words('digits'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == rng.words("digits")


def test_a_shape_in_use_stays_kept_while_many_others_pass() -> None:
    """What is kept for a shape may go when it was long unused, not when it was first used long ago."""
    keys = torch.tensor([3])
    counted = []
    for count in range(600):
        with OperationCounter() as counter:
            rng.bits(keys, 1, (7,))
        counted.append(sum(counter.counts.values()))
        rng.bits(keys, 101, (count + 1,))
    assert counted[0] >= counted[1] == max(counted[1:])
