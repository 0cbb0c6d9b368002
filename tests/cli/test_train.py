"""`rlmix train`."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlmix.cli.main import main
from rlmix.training import loop
from rlmix.training.config import TrainConfig
from rlmix.training.data import DATASETS
from rlmix.training.models.registry import names

QUICK = ["--model", "mlp", "--limit", "100", "--epochs", "2", "--batch-size", "32", "--device", "cpu"]


def run(*arguments: str | Path) -> int:
    """Run `rlmix train` in this process and return its exit code."""
    with pytest.raises(SystemExit) as stopped:
        main(["train", *map(str, arguments)])
    return int(stopped.value.code or 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace the training by a note of what it was called with."""
    noted: dict[str, Any] = {}

    def train(config: TrainConfig, out: Path, **rest: Any) -> dict[str, Any]:
        noted.update(config=config, out=out, **rest)
        return {"metrics": {}, "examples": {}}

    monkeypatch.setattr(loop, "train", train)
    return noted


def test_it_trains_and_says_where_everything_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result, and the command to look at it, are what a user came for."""
    out = tmp_path / "my run"
    assert run(*QUICK, "--method", "mixup", "--param", "alpha=0.2", "--seed", "5", "--out", out) == 0
    captured = capsys.readouterr()
    assert str(out / "result.json") in captured.out
    assert f"tensorboard --logdir {shlex.quote(str(out))}" in captured.out
    assert re.search(r"test\s+│ 100\s+│ \d+\.\d\d%", captured.out)
    # Without a terminal there is a line for each epoch and no bar.
    assert re.search(r"epoch 2/2  mixup\(alpha=0.2\)  loss [\d.]+  test accuracy [\d.]+%", captured.err)
    assert "━" not in captured.err
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    assert result["config"]["params"] == {"alpha": 0.2}
    assert result["seed"] == 5


def test_the_source_of_saliency_is_named_on_the_command_line(tmp_path: Path) -> None:
    """And is written down, so that going on uses it again."""
    assert run(*QUICK, "--method", "rmix", "--saliency", "bank", "--out", tmp_path) == 0
    assert run("--resume", "--out", tmp_path) == 0
    assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["config"]["saliency"] == "bank"


def test_json_is_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script reads it."""
    assert run(*QUICK, "--method", "none", "--out", tmp_path, "--json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert captured.err == ""


def test_after_ctrl_c_the_printed_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command must be exact: it is run here as it was printed, and ends where the whole run ends."""
    whole, parts = tmp_path / "whole", tmp_path / "parts of it"
    assert run(*QUICK, "--out", whole, "--set", "lr=0.3") == 0
    real = loop.train

    def interrupted(*arguments: Any, **rest: Any) -> dict[str, Any]:
        def hook(progress: loop.Progress) -> None:
            if progress.epoch == 1:
                raise KeyboardInterrupt

        return real(*arguments, **{**rest, "hook": hook})

    monkeypatch.setattr(loop, "train", interrupted)
    assert run(*QUICK, "--out", parts, "--set", "lr=0.3") == 130
    monkeypatch.setattr(loop, "train", real)
    printed = re.search(r"The last checkpoint is kept. To go on: (rlmix train .*)", capsys.readouterr().err)
    assert printed is not None
    _, _, *again = shlex.split(printed[1])
    assert run(*again) == 0
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in (whole, parts)]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["config"] == results[1]["config"]


def test_ctrl_c_before_the_first_checkpoint_promises_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that then fails would be worse than none."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupted)
    assert run("--out", tmp_path) == 130
    assert "Nothing was kept yet." in capsys.readouterr().err


def test_flags_stand_above_set_above_the_file(tmp_path: Path, asked: dict[str, Any]) -> None:
    """The nearest to the user wins."""
    path = tmp_path / "c.yaml"
    path.write_text("lr: 0.3\nepochs: 5\nbatch_size: 7\nmethod: cutmix\nparams: {alpha: 2.0}\n", encoding="utf-8")
    assert run("--config", path, "--set", "lr=0.2", "--set", "epochs=6", "--epochs", "9", "--data-dir", "123") == 0
    assert asked["config"] == TrainConfig(
        lr=0.2, epochs=9, batch_size=7, method="cutmix", params={"alpha": 2.0}, data_dir="123"
    )  # fmt: skip


def test_another_way_of_mixing_drops_what_the_file_says_of_its_own(tmp_path: Path, asked: dict[str, Any]) -> None:
    """CutMix's parameters would be refused by another method, and a policy would silently win over a method."""
    path = tmp_path / "c.yaml"
    path.write_text("method: cutmix\nparams: {alpha: 2.0}\n", encoding="utf-8")
    assert run("--config", path, "--method", "rmix", "--param", "threshold=0.5") == 0
    assert (asked["config"].method, asked["config"].params) == ("rmix", {"threshold": 0.5})
    assert run("--config", path, "--policy", "somewhere") == 0
    assert (asked["config"].policy, asked["config"].params) == ("somewhere", {})
    path.write_text("policy: somewhere\n", encoding="utf-8")
    assert run("--config", path, "--method", "none") == 0
    assert (asked["config"].policy, asked["config"].method) == (None, "none")


def test_wrong_labels_are_asked_for_by_a_flag(asked: dict[str, Any]) -> None:
    """A share that is not handed on would give clean results under the name of noisy ones."""
    assert run("--noise", "0.4") == 0
    assert asked["config"] == TrainConfig(noise=0.4)


def test_the_folder_is_named_by_what_is_trained(asked: dict[str, Any]) -> None:
    """Two different trainings without --out must not collide."""
    assert run("--data", "some/pictures", "--method", "cutmix", "--seed", "4") == 0
    assert asked["out"] == Path("runs/pictures-cnn-cutmix-seed4")
    assert asked["resume"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mixup", "--policy", "x"], "exclude each other"),
        (["--method", "mixpu"], "Did you mean `mixup`?"),
        (["--param", "alpha"], "must have the form key=value"),
        (["--set", "epoch=3"], "Did you mean `epochs`?"),
        (["--saliency", "map"], "`saliency`: input should be 'gradient', 'bank' or 'fine_grained'"),
        (["--set", "lr=fast"], "`lr`: input should be a valid number"),
        (["--data", "cifar10", "--data-dir", "/nowhere"], "there is no `/nowhere/cifar-10-batches-py`"),
        (["--policy", "/nowhere"], "policy.json"),
        (["--resume"], "holds no checkpoint to resume"),
        (["--out", "/proc/no"], "cannot be written"),
    ],
)
def test_bad_input_is_one_message_and_no_run(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong, what was expected, how to mend it; and the corrected command then works."""
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    error = captured.err[captured.err.index("Error:") :]
    assert message in error
    assert "Traceback" not in captured.err
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


def test_the_help_names_every_model_and_data_set(capsys: pytest.CaptureFixture[str]) -> None:
    """The texts are written by hand, so that help need not import torch's models."""
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in (*names(), *DATASETS):
        assert name in text
