"""Whole trainings with policies and fixed methods."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlmix.agents import recipe
from rlmix.agents.recipe import (
    COLUMNS,
    CONFIG,
    REPORT,
    RUNS,
    TEXT,
    RecipeResult,
    RecipeRun,
    RecipeStudy,
    read_runs,
    run_study,
)
from rlmix.errors import CheckpointError, ConfigError, PolicyError, UnknownNameError
from rlmix.monitor.board import Board
from rlmix.policy import artifact
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import catalogue
from rlmix.policy.network import PolicyNetwork
from rlmix.policy.signals import names
from rlmix.training.config import TrainConfig, load_config
from rlmix.training.loop import CHECKPOINT, Progress, train

TRAINING = TrainConfig(model="mlp", limit=100, epochs=2, batch_size=30, device="cpu")
# 90 of the 100 images train: 3 steps an epoch.
STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def _no_pictures() -> Iterator[None]:
    """Leave out the pictures for TensorBoard, which take longer than trainings as short as these."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Board, "mixed", lambda *_: None)
        patch.setattr(Board, "probabilities", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Write a policy with random weights, which therefore answers to what it sees."""
    entries = catalogue("cheap")
    read = names(entries)
    weight = torch.randn(len(entries), len(read), generator=torch.Generator().manual_seed(0)) * 2
    learned = LearnedPolicy(
        network=PolicyNetwork(actor=((weight, torch.zeros(len(entries))),), critic=None), observation_names=read,
        low=torch.full((len(read),), -2.0), high=torch.full((len(read),), 2.0), catalogue=entries, horizon=3, card={},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("policy")
    artifact.save(folder, learned)
    return str(folder)


@pytest.fixture(scope="module")
def study(policy: str) -> RecipeStudy:
    return RecipeStudy(
        training=TRAINING, methods=("uniform-cheap",), policies=(policy,), noises=(0.0, 0.4), seeds=(0, 1)
    )


@pytest.fixture(scope="module")
def finished(study: RecipeStudy, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecipeResult]:
    folder = tmp_path_factory.mktemp("study")
    return folder, run_study(study, out=folder)


def without_time(runs: tuple[RecipeRun, ...] | list[RecipeRun]) -> list[RecipeRun]:
    return [replace(run, seconds=0.0) for run in runs]


def forbidden(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished training was run again")


def test_every_combination_is_one_line(finished: tuple[Path, RecipeResult]) -> None:
    """A combination left out would make the pairs of a comparison uneven."""
    folder, result = finished
    assert {(run.arm, run.noise, run.seed) for run in result.runs} == {
        (arm, noise, seed) for arm in ("learned", "uniform-cheap") for noise in (0.0, 0.4) for seed in (0, 1)
    }
    assert sorted(read_runs(folder / RUNS), key=repr) == sorted(result.runs, key=repr)
    assert {run.steps for run in result.runs} == {STEPS}
    assert len({run.digest for run in result.runs}) == 8
    # The policy was asked, at its three points, and what it said stands in the file.
    learned = [run for run in result.runs if run.arm == "learned"]
    assert all([text.partition(":")[0] for text in run.decisions] == ["0", "2", "4"] for run in learned)
    # A finished training needs no checkpoint any more; its record stays.
    assert not list(folder.rglob(CHECKPOINT))
    assert len(list(folder.rglob("result.json"))) == 8
    assert (folder / TEXT).read_text(encoding="utf-8") == result.text()
    assert (folder / REPORT).exists()


def test_a_line_is_what_the_training_alone_gives(
    finished: tuple[Path, RecipeResult], policy: str, tmp_path: Path
) -> None:
    """The study must go the way that a user's training goes, with the same noise, seed and policy."""
    _, result = finished
    (run,) = [run for run in result.runs if (run.arm, run.noise, run.seed) == ("learned", 0.4, 1)]
    alone = train(replace(TRAINING, policy=policy, noise=0.4, seed=1), tmp_path)
    assert run.accuracy == alone["metrics"]["test_accuracy"]
    assert run.nll == alone["metrics"]["test_nll"]
    assert run.validation_accuracy == alone["metrics"]["validation_accuracy"]


@pytest.mark.parametrize(("training", "step"), [(0, 0), (1, 4)])
def test_an_interrupted_study_goes_on_to_the_same_table(
    training: int,
    step: int,
    study: RecipeStudy,
    finished: tuple[Path, RecipeResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hours of finished trainings must not be lost, and the one under way goes on from its own checkpoint."""
    begun: list[tuple[str, bool]] = []

    def noted(config: TrainConfig, out: str, *, resume: bool) -> dict[str, Any]:
        begun.append((Path(out).name, resume))

        def hook(progress: Progress) -> None:
            if len(begun) == training + 1 and progress.step >= step:
                raise KeyboardInterrupt

        return train(config, out, resume=resume, hook=hook)

    monkeypatch.setattr(recipe, "train", noted)
    small = replace(study, noises=(0.4,), seeds=(1,))
    with pytest.raises(KeyboardInterrupt):
        run_study(small, out=tmp_path)
    assert (len(read_runs(tmp_path / RUNS)) if training else 0) == training
    assert not (tmp_path / TEXT).exists()
    counted: list[tuple[int, int]] = []
    resumed = run_study(small, out=tmp_path, resume=True, progress=lambda *counts: counted.append(counts))
    _, whole = finished
    expected = [run for run in whole.runs if (run.noise, run.seed) == (0.4, 1)]
    assert without_time(resumed.runs) == without_time(expected)
    assert resumed.text() == RecipeResult(study=small, runs=tuple(expected)).text()
    assert begun[training + 1] == (begun[training][0], True)
    assert len(begun) == 2 + 1
    assert counted == [(done, 2) for done in range(training, 3)]


def test_going_on_after_the_end_trains_nothing_and_new_seeds_alone_are_trained(
    study: RecipeStudy, finished: tuple[Path, RecipeResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intervals too wide are mended by more seeds, not by all trainings once more."""
    before, result = finished
    folder = shutil.copytree(before, tmp_path / "moved")
    monkeypatch.setattr(recipe, "train", forbidden)
    assert run_study(study, out=folder, resume=True) == result
    fewer = replace(study, seeds=(1,), policies=())
    part = run_study(fewer, out=folder, resume=True)
    assert part.runs == tuple(run for run in result.runs if run.seed == 1 and run.arm != "learned")
    with pytest.raises(AssertionError, match="run again"):
        run_study(replace(study, seeds=(0, 1, 2)), out=folder, resume=True)
    with pytest.raises(AssertionError, match="run again"):
        run_study(replace(study, training=replace(TRAINING, lr=0.2)), out=folder, resume=True)


@pytest.mark.slow
def test_processes_change_nothing(study: RecipeStudy, finished: tuple[Path, RecipeResult], tmp_path: Path) -> None:
    """The division among processes must not decide about a result."""
    _, result = finished
    short = replace(study, noises=(0.4,), seeds=(1,))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        divided = run_study(short, out=tmp_path, processes=2)
    finally:
        torch.set_num_threads(threads)
    found = {run.digest: run.accuracy for run in result.runs}
    assert [run.accuracy for run in divided.runs] == pytest.approx(
        [found[run.digest] for run in divided.runs], abs=0.01
    )


def test_a_study_is_never_overwritten(study: RecipeStudy, finished: tuple[Path, RecipeResult]) -> None:
    """A forgotten --out must not end a study of a day."""
    folder, _ = finished
    with pytest.raises(CheckpointError, match="already holds a study. Go on with --resume"):
        run_study(study, out=folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text.replace(",0.4,", ",much,", 1), "line 3, is damaged .*much.* Remove that line"),
        (lambda text: text[:-20], "(last line has no end|is damaged)"),
        (lambda text: text.rsplit(",", 3)[0] + "\n", r"line 5, is damaged \(zip\(\) argument"),
        (lambda text: text.replace(",0.25,", ",2.5,", 1), r"line 2, is damaged \(`accuracy` 2.5 is out of \[0, 1\]\)"),
        (lambda text: "", r"must begin with the columns arm,noise,.* trainings without a line are run again"),
        (lambda text: text.replace("digest", "hash", 1), "must begin with the columns arm,noise"),
    ],
)
def test_a_damaged_file_of_runs_is_told(damage: Any, message: str, study: RecipeStudy, tmp_path: Path) -> None:
    """Numbers that nobody measured must not get into a table, nor a study start anew in silence."""
    lines = [",".join(COLUMNS)]
    lines += [
        f"none,{noise},{seed},d{noise}{seed},0.25,2.0,,6,1.0,cpu,0:none" for seed in (0, 1) for noise in (0.0, 0.4)
    ]
    path = tmp_path / RUNS
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert len(read_runs(path)) == 4
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(CheckpointError, match=message):
        run_study(study, out=tmp_path, resume=True)
    assert not (tmp_path / CONFIG).exists()


def made(study: RecipeStudy, accuracies: dict[str, tuple[float, ...]]) -> RecipeResult:
    """Return a result with these accuracies, by arm and seed."""
    (noise,) = study.noises
    runs = tuple(
        RecipeRun(
            arm=arm, noise=noise, seed=seed, digest=f"{arm}{seed}", accuracy=value, nll=1.0, validation_accuracy=None,
            steps=1, seconds=1.0, machine="cpu", decisions=(),
        )
        for arm, values in accuracies.items()
        for seed, value in zip(study.seeds, values, strict=True)
    )  # fmt: skip
    return RecipeResult(study=study, runs=runs)


def test_differences_are_paired_by_seed_and_against_the_right_method(policy: str) -> None:
    """Worked by hand; a table that pairs or chooses wrongly looks like any other."""
    study = RecipeStudy(
        training=TRAINING, methods=("none", "cutmix-1", "uniform-cheap"), policies=(policy,), noises=(0.2,)
    )
    result = made(
        study,
        {
            "learned": (0.50, 0.62, 0.74),
            "none": (0.60, 0.40, 0.50),
            "cutmix-1": (0.40, 0.58, 0.72),
            "uniform-cheap": (0.40, 0.50, 0.60),
        },
    )
    learned, none, cutmix, uniform = result.standings
    assert [row.arm for row in result.standings] == ["learned", "none", "cutmix-1", "uniform-cheap"]
    assert {row.best for row in result.standings} == {"cutmix-1"}
    assert learned.accuracy == pytest.approx(0.62)
    # Differences .10, .12, .14: mean .12, deviation .02, and t of two degrees is 4.302653.
    assert learned.to_reference.estimate == pytest.approx(0.12)
    assert learned.to_reference.high - 0.12 == pytest.approx(4.302653 * 0.02 / math.sqrt(3), rel=1e-6)
    assert learned.to_best.estimate == pytest.approx((0.10 + 0.04 + 0.02) / 3)
    # Without the first seed cutmix is best, without the second too, without the third none.
    assert learned.to_oracle is not None
    assert learned.to_oracle.estimate == pytest.approx((0.50 - 0.40 + 0.62 - 0.58 + 0.74 - 0.50) / 3)
    assert cutmix.to_best.low == cutmix.to_best.high == uniform.to_reference.estimate == 0.0
    assert none.to_reference.estimate == pytest.approx(0.0)
    assert "learned" in result.text()
    assert "+12.00 [+7.03, +16.97]" in result.text()
    assert "cutmix-1 *" in result.text()


def test_one_seed_has_no_interval_and_no_oracle() -> None:
    """An interval of one number would be made up."""
    study = RecipeStudy(training=TRAINING, methods=("none", "uniform-cheap"), noises=(0.2,), seeds=(4,))
    result = made(study, {"none": (0.5,), "uniform-cheap": (0.4,)})
    assert result.standings[0].to_oracle is None
    assert "+10.00 " in result.text()
    assert "inf" not in result.text()
    assert result.to_json()["standings"][0]["to_reference"] == {
        "estimate": pytest.approx(0.1),
        "low": None,
        "high": None,
    }


def test_several_policies_are_arms_of_their_own(policy: str) -> None:
    """Seeds of a policy differ, so each has its row."""
    study = RecipeStudy(training=TRAINING, policies=(policy, policy))
    assert list(study.arms) == ["learned/0", "learned/1", "none", "mixup-1", "cutmix-1", "uniform-cheap"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": ("none", "none")}, ConfigError, "`methods` must be one or more different values"),
        ({"seeds": ()}, ConfigError, "`seeds` must be one or more different values"),
        ({"noises": (1.0,)}, ConfigError, "`noise` must be below 1"),
        ({"methods": ("mixup-3", "uniform-cheap")}, UnknownNameError, "no entry `mixup-3`. Did you mean `mixup-"),
        ({"methods": ("none",)}, ConfigError, r"`reference` must be one of `methods` \['none'\], got 'uniform-cheap'"),
        ({"training": TrainConfig(seed=3)}, ConfigError, "`training.seed` is 3, but it is varied by the study"),
        ({"training": TrainConfig(noise=0.1)}, ConfigError, "`training.noise` is 0.1, but it is varied"),
    ],
)
def test_what_cannot_be_compared_is_told(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    """Before hours of training, not after."""
    with pytest.raises(error, match=message):
        RecipeStudy(**{"training": TRAINING, **changes})


def test_a_policy_that_is_not_there_is_told_before_anything_is_trained(
    study: RecipeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written, so that the mended command can be given again."""
    monkeypatch.setattr(recipe, "train", forbidden)
    with pytest.raises(PolicyError, match="nowhere"):
        run_study(replace(study, policies=(str(tmp_path / "nowhere"),)), out=tmp_path / "out")
    assert not (tmp_path / "out" / CONFIG).exists()


def test_the_recipes_of_the_project_are_valid(project: Path) -> None:
    """An example that no longer loads is worse than none."""
    paths = list((project / "configs" / "recipes").glob("*.yaml"))
    assert {path.stem for path in paths} == {"cifar100", "cifar100-fifth"}
    for path in paths:
        study = load_config(path, RecipeStudy)
        assert study.noises == (0.0, 0.2, 0.4)
        assert study.seeds == (0, 1, 2)
