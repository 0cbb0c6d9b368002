"""Who decides, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rlmix.errors import InputError, PolicyError, UnknownNameError
from rlmix.methods import registry
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.sources import AbstractSource, Fixed, Learned, Schedule, source

NOTHING = torch.zeros(0)


def policy(horizon: int = 8) -> LearnedPolicy:
    entries = catalogue("cheap")
    return LearnedPolicy(
        network=PolicyNetwork(actor=((torch.zeros(5, 1), torch.arange(5.0)),)),
        observation_names=("time/progress",),
        low=-torch.ones(1),
        high=torch.ones(1),
        catalogue=entries,
        horizon=horizon,
        card={},
    )


@pytest.mark.parametrize("given", ["cutmix", Decision("cutmix"), registry.get("cutmix"), Fixed("cutmix")])
def test_a_fixed_method_can_be_given_in_every_form(given: Any) -> None:
    """Users have names, tests have methods, logs have Decisions."""
    found = source(given)
    assert found.decisions == (Decision("cutmix"),)
    assert found.methods == (registry.get("cutmix"),)
    assert (found.points(100), found.choose(0, None, NOTHING, None)) == ((0,), 0)
    assert found.probabilities(None, NOTHING) is None


def test_a_policy_can_be_given_by_path_or_as_an_object(tmp_path: Path) -> None:
    """The same policy decides, wherever it comes from."""
    save(tmp_path / "policy", policy())
    for given in (policy(), tmp_path / "policy", str(tmp_path / "policy")):
        found = source(given)
        assert isinstance(found, Learned)
        assert found.names == catalogue("cheap").names


def test_a_directory_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most people give a relative path."""
    save(tmp_path / "mine", policy())
    monkeypatch.chdir(tmp_path)
    assert isinstance(source("mine"), Learned)


def test_what_is_nothing_of_this_is_refused(tmp_path: Path) -> None:
    """A typo in a method's name and a missing directory are told apart."""
    with pytest.raises(UnknownNameError, match="`mixpu` is neither a mix method nor .* Did you mean `mixup`"):
        source("mixpu")
    with pytest.raises(PolicyError, match="cannot be read"):
        source(str(tmp_path / "policy"))
    with pytest.raises(PolicyError, match="cannot be read"):
        source(Path("nowhere"))
    with pytest.raises(InputError, match="`source` must be a policy directory, .* got int"):
        source(3)


@pytest.mark.parametrize(
    ("total", "expected"),
    [
        (80, (0, 10, 20, 30, 40, 50, 60, 70)),
        (100, (0, 12, 25, 37, 50, 62, 75, 87)),
        (3, (0, 0, 0, 1, 1, 1, 2, 2)),
    ],
)
def test_a_policy_decides_at_equal_parts_of_the_training(total: int, expected: tuple[int, ...]) -> None:
    """floor(j T / H), as in the environment."""
    assert Learned(policy()).points(total) == expected


def test_a_schedule_goes_through_its_parts() -> None:
    """mix, then finish without: the classic hand-made schedule."""
    found = Schedule([(0, "cutmix"), (0.5, Decision("mixup", {"alpha": 0.2})), (0.8, registry.get("none"))])
    assert found.points(100) == (0, 50, 80)
    assert found.points(7) == (0, 4, 6)
    assert [found.decisions[found.choose(number, None, NOTHING, None)].text for number in range(3)] == [
        "cutmix",
        "mixup(alpha=0.2)",
        "none",
    ]
    assert found.probabilities(None, NOTHING) is None


@pytest.mark.parametrize("percent", range(1, 100))
def test_rounding_does_not_delay_a_part(percent: int) -> None:
    """0.07 * 100 is a little more than 7 in floating point."""
    assert Schedule([(0, "none"), (percent / 100, "mixup")]).points(100) == (0, percent)


@pytest.mark.parametrize("starts", [(), (0.1,), (0, 0.5, 0.5), (0, 0.8, 0.5), (0, 1.0)])
def test_schedules_out_of_order_are_refused(starts: tuple[float, ...]) -> None:
    """A part that never begins is a mistake."""
    with pytest.raises(InputError, match="a schedule begins at progress 0 and ascends below 1"):
        Schedule([(start, "none") for start in starts])


def test_all_sources_build_their_methods_once_and_early() -> None:
    """A wrong parameter must stop the training before it begins, not at its last decision."""
    with pytest.raises(UnknownNameError, match="`cutmx`"):
        Schedule([(0, "none"), (0.9, "cutmx")])
    found: AbstractSource = Learned(policy())
    assert found.methods[1] == registry.get("mixup", alpha=0.2)


def test_a_learned_policy_takes_the_best_allowed_entry() -> None:
    """The logits here ascend with the position."""
    found, seen = Learned(policy()), torch.zeros(1)
    allowed = torch.tensor([True, True, True, False, False])
    assert found.choose(0, seen, torch.ones(5, dtype=torch.bool), None) == 4
    assert found.choose(0, seen, allowed, None) == 2
    shares = found.probabilities(seen, allowed)
    assert shares is not None
    assert shares.tolist() == pytest.approx(torch.tensor([0.0, 1, 2, -torch.inf, -torch.inf]).softmax(0).tolist())
    with pytest.raises(InputError, match="needs an observation"):
        found.choose(0, None, allowed, None)
