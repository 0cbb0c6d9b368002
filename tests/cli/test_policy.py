"""`rlmix policy show`, `rlmix policy join` and `rlmix policy new`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlmix.cli.main import main
from rlmix.policy import artifact, signals
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.parametric import find_codec

READ = ("time/progress", "has/val", "used/cutmix", "last/cutmix-1", "loss/mean")


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["policy", "show", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A policy that turns from `none` to `cutmix-1` in the middle, if all else is as documented."""
    entries = catalogue("cheap")
    weight = torch.zeros(len(entries), len(READ))
    bias = torch.full((len(entries),), -50.0)
    # cutmix-1: positive from progress 0.5 on; a missing source (has/val 0) would switch it off.
    weight[entries.index("cutmix-1")] = torch.tensor([40.0, 50.0, 0.0, 0.0, 0.0])
    bias[entries.index("cutmix-1")] = -50.0 + 5.0
    bias[entries.index("none")] = 0.0
    # mixup-1 would win if the loss were anywhere but in the middle of its range, -1.
    weight[entries.index("mixup-1"), READ.index("loss/mean")] = 60.0
    low, high = torch.tensor([-1.0, 0.0, 0.0, 0.0, -2.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    policy = LearnedPolicy(
        network=PolicyNetwork(actor=((weight, bias),)), observation_names=READ, low=low, high=high, catalogue=entries,
        horizon=4, card={"data": "digits", "decisions": 12288, "seeds": [1, 2]},
    )  # fmt: skip
    artifact.save(tmp_path / "policy", policy)
    return tmp_path / "policy"


def test_the_policy_of_the_package_is_shown_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody knows its folder; and what its numbers are is in brackets, which are markup elsewhere."""
    monkeypatch.setenv("COLUMNS", "300")
    assert run("default") == 0
    text = capsys.readouterr().out
    assert "[mean, low, high] of a 95 % interval" in text
    assert "Limits: in a training outside them" in text


def test_everything_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Card, observation with ranges and meaning, catalogue, behaviour."""
    monkeypatch.setenv("COLUMNS", "160")
    assert run(folder) == 0
    text = capsys.readouterr().out
    for expected in ("digits", "12288", "[1, 2]", "2 t/T - 1", "-2.000", "cutmix(alpha=1.0)", "share of the steps"):
        assert expected in text
    row = next(line for line in text.splitlines() if line.startswith("│ cutmix-1") and "%" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["cutmix-1", "0%", "0%", "99%", "100%"]


def test_results_and_limits_of_the_card_are_tables(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a policy was measured to do is looked at before it is used."""
    monkeypatch.setenv("COLUMNS", "160")
    policy = artifact.load(folder)
    levels = [
        {
            "name": "L0",
            "instances": 12,
            "replicates": 10,
            "to": {"none": [1.5, 1.0, 2.0], "cutmix-1": [-0.25, -1, 0.5]},
        },
        {"name": "L2", "instances": 8, "replicates": 10, "to": {"none": [0.5, 0.25, 0.75]}},
    ]
    card = {
        "results": {"what": "difference", "levels": levels},
        "limits": {"otherwise": "none", "ranges": {"side": [8, 32], "examples": [100, 2000]}},
    }
    artifact.save(folder, replace(policy, card=card))
    assert run(folder) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "│ beside │ L0 (12 x 10) │ L2 (8 x 10) │" in " ".join(lines).replace("┃", "│")
    assert any("none │ +1.50 [+1.00, +2.00] │ +0.50 [+0.25, +0.75]" in line for line in lines)
    assert any("cutmix-1 │ -0.25 [-1.00, +0.50] │ │" in line for line in lines)
    assert "Limits: in a training outside them `none` is used" in lines
    assert any("pixels along a side of the images │ 8 │ 32" in line for line in lines)


def test_json_holds_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """For scripts; the shares of a decision sum to 1."""
    assert run(folder, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["horizon"] == 4
    assert shown["card"] == {"data": "digits", "decisions": 12288, "seeds": [1, 2]}
    assert [entry["name"] for entry in shown["observation"]] == list(READ)
    assert [entry["name"] for entry in shown["catalogue"]] == list(catalogue("cheap").names)
    assert [row["progress"] for row in shown["probabilities"]] == [0.0, 0.25, 0.5, 0.75]
    for row in shown["probabilities"]:
        assert sum(row["entries"].values()) == pytest.approx(1.0, abs=1e-6)


def test_a_damaged_policy_is_one_message(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in every command."""
    (folder / "policy.safetensors").write_bytes(b"x")
    assert run(folder) == 2
    assert "damaged" in capsys.readouterr().err


def test_a_policy_that_sets_parameters_shows_ranges_and_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What can be set, and what it is set to over a training."""
    codec = find_codec("hybrid", "cheap")
    bias = torch.zeros(codec.outputs)
    bias[1] = 3.0
    # The first concentration of mixup rises with progress, so its alpha does.
    weight = torch.zeros(codec.outputs, 1)
    weight[len(codec.catalogue) + 2] = 4.0
    policy = LearnedPolicy(
        network=PolicyNetwork(actor=((weight, bias),)), observation_names=("time/progress",), low=torch.tensor([-1.0]),
        high=torch.tensor([1.0]), catalogue=codec.catalogue, horizon=4, card={}, codec=codec,
    )  # fmt: skip
    artifact.save(tmp_path, policy)
    assert run(tmp_path, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["actions"]["kind"] == "hybrid"
    alphas = [row["parameters"]["mixup"]["alpha"] for row in shown["probabilities"]]
    assert alphas == sorted(set(alphas))
    assert shown["probabilities"][0]["parameters"]["none"] == {}
    monkeypatch.setenv("COLUMNS", "160")
    assert run(tmp_path) == 0
    text = capsys.readouterr().out
    for expected in ("Actions (hybrid)", "alpha 0.1 to 8 (log)", "Parameters over the progress", f"{alphas[0]:.3g}"):
        assert expected in text


def new(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["policy", "new", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_an_untrained_policy_chooses_each_entry_with_the_same_probability(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Learning that begins with a preference begins with somebody else's mistake."""
    assert new(tmp_path / "policy", "--catalogue", "v0", "--horizon", "5", "--hidden", "16", "8") == 0
    assert "mixup-0.2" in capsys.readouterr().out
    policy = artifact.load(tmp_path / "policy")
    seen = torch.randn(64, len(policy.observation_names), generator=torch.Generator().manual_seed(0)) * 5
    entries = len(catalogue("v0"))
    assert policy.catalogue == catalogue("v0")
    assert torch.equal(policy.probabilities(seen), torch.full((64, entries), 1 / entries))
    mask = torch.arange(entries) < 4
    assert torch.equal(policy.probabilities(seen, mask.expand(64, -1))[:, :4], torch.full((64, 4), 0.25))
    assert torch.equal(policy.network.value(seen), torch.zeros(64))
    assert (policy.horizon, policy.network.actor[0][0].shape[0], policy.network.actor[1][0].shape[0]) == (5, 16, 8)
    assert "untrained" in policy.card["algorithm"]


def test_an_untrained_policy_reads_all_that_can_be_observed(tmp_path: Path) -> None:
    """What it does not read it can never learn from; what it clips it cannot tell apart."""
    assert new(tmp_path) == 0
    policy = artifact.load(tmp_path)
    assert policy.observation_names == signals.names(catalogue("cheap"))
    bounds = dict(
        zip(policy.observation_names, zip(policy.low.tolist(), policy.high.tolist(), strict=True), strict=True)
    )
    assert bounds["loss/mean"] == (-signals.LIMIT, signals.LIMIT)
    assert bounds["has/val"] == bounds["used/cutmix"] == bounds["last/none"] == (0.0, 1.0)
    assert policy.network.critic is not None


def test_the_seed_makes_the_hidden_layers(tmp_path: Path) -> None:
    """Two learners that begin alike must be able to, and two agents of a study must not have to."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert new(tmp_path / name, "--seed", str(seed)) == 0
    one, same, other = ((tmp_path / name / artifact.TENSORS).read_bytes() for name in "abc")
    assert one == same != other


def test_a_policy_that_is_there_is_not_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may have taken weeks."""
    before = (folder / artifact.TENSORS).read_bytes()
    assert new(folder) == 2
    assert "already holds a policy" in capsys.readouterr().err
    assert (folder / artifact.TENSORS).read_bytes() == before
    assert new(folder.parent / "x", "--catalogue", "chep") == 2
    assert "Did you mean `cheap`?" in capsys.readouterr().err


def test_policies_are_joined_and_nothing_is_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean of a policy with itself says what it says."""
    command = ["policy", "join", str(folder), str(folder), "--out", str(tmp_path / "joined")]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert not stopped.value.code
    assert "The mean of 2 policies" in capsys.readouterr().out
    once, twice = artifact.load(folder), artifact.load(tmp_path / "joined")
    observations = torch.randn(9, len(READ), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(twice.probabilities(observations), once.probabilities(observations))
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code
    assert "already holds a policy" in capsys.readouterr().err
