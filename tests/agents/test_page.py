"""The page of a study, from the command line to its last number."""

from __future__ import annotations

import csv
import json
import re
import shutil

import pytest

from rlmix.agents import protocol
from rlmix.agents.page import PAGE, level_tables, read_study, write_page
from rlmix.agents.results import document
from rlmix.cli.main import main
from rlmix.errors import CheckpointError, InputError

RECIPE = """
name: tiny
horizon: 4
families:
  - {data: digits, total_steps: {4: 1, 8: 1}, train_size: [100, 200], noise: [0.0, 0.4]}
"""
LEVELS = "levels:\n- {name: near, instances: tiny.yaml, limit: 2}\n- {name: far, instances: tiny.yaml, limit: 1}\n"


def run(*arguments):
    """Run the command line; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0


@pytest.fixture(scope="module")
def places(training_folder, tmp_path_factory):
    """A folder with three trainings and a finished study of the first two."""
    folder = tmp_path_factory.mktemp("page")
    trainings = [training_folder(folder / f"seed{seed}", seed) for seed in range(3)]
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "levels.yaml").write_text(LEVELS, encoding="utf-8")
    policies = [word for training in trainings[:2] for word in ("--policy", training / "policy")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "measure_costs", lambda pool, instance: (1.0,) * 4 + (2.0,))
        assert run("agent", "evaluate", *policies, "--levels", folder / "levels.yaml", "--replicates", 2,
                   "--out", folder / "study") == 0  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def study(places):
    return read_study(places / "study", [places / "seed0", places / "seed1"])


@pytest.fixture(scope="module")
def page(places):
    trainings = ("--training", places / "seed0", "--training", places / "seed1")
    assert run("agent", "report", places / "study", *trainings, "--out", places / "out") == 0
    return places / "out" / PAGE


def cells(text, condition, name):
    """Return the cells of the first row of a Markdown table with these two names."""
    rows = [re.split(r" *\| *", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    return next(row[2:] for row in rows if row[:2] == [condition, name])


def test_study_is_read_back_to_the_last_bit(places, study):
    """A page must not say other numbers than the evaluation did."""
    report = json.loads((places / "study" / "report.json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(document(study.results))) == report["levels"]
    assert study.policies == 2
    assert (
        sum(study.machines.values())
        == len((places / "study" / "runs.csv").read_text(encoding="utf-8").splitlines()) - 1
    )


def test_reading_a_study_changes_nothing_in_it(places, study):
    before = {path.name: path.read_bytes() for path in (places / "study").iterdir() if path.is_file()}
    read_study(places / "study", [places / "seed0"])
    assert {path.name: path.read_bytes() for path in (places / "study").iterdir() if path.is_file()} == before


def test_page_shows_every_figure_that_is_there_and_no_other(page):
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert shown == ["learning-curves.png", "differences.png", "profiles.png", "choices-0.png", "choices-1.png"]
    assert {path.name for path in page.parent.iterdir()} == {*shown, PAGE, "training.yaml"}
    for name in shown:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")


def test_tables_hold_the_numbers_of_the_comparisons(places, study):
    """Rows are put together from two places: condition and baseline must be those of the numbers."""
    with (places / "study" / "comparisons.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["level"], row["condition"], row["to"]): row for row in csv.DictReader(file)}
    conditions = {"steps": "equal steps", "no-validation": "no validation images", "time": "equal time"}
    words = {"uniform-cheap": "uniform random", "best-fixed-per-budget": "best fixed per budget",
             "oracle": "unbiased oracle"}  # fmt: skip
    for result in study.results:
        accuracy, calibration = level_tables(result).split("\n\n")
        for condition, named in conditions.items():
            for baseline, word in words.items():
                row = rows[result.name, condition, baseline]
                shown = cells(accuracy, named, word)
                assert shown[0].split(" / ")[1] == f"{100 * float(row['to_accuracy']):.2f}"
                low, high = (100 * float(row[f"mean_{end}"]) for end in ("low", "high"))
                assert shown[1] == f"{100 * float(row['mean']):+.2f} [{low:+.2f}, {high:+.2f}]"
                assert shown[3] == ("< 0.001" if float(row["p_holm"]) < 0.001 else f"{float(row['p_holm']):.3f}")
                score, likelihood, error = cells(calibration, named, word)
                assert score.startswith(f"{float(row['z_mean']):+.3f} [")
                assert likelihood.startswith(f"{float(row['ts_nll']):+.4f} [")
                assert error.startswith(f"{float(row['ece']):+.4f} [")
        assert cells(accuracy, "equal steps", "its choices replayed")


def test_page_says_how_to_repeat_it(page, study):
    """Commit, command, hardware, date, seeds and hours: without one of them a number cannot be traced."""
    text = page.read_text(encoding="utf-8")
    recorded = study.report["provenance"]
    for name in ("command", "commit", "hardware", "date"):
        assert f"| {name} | " in text
        assert recorded[name] in text
    assert "`rlmix agent train --config training.yaml --seed 1 --out seed1`" in text
    assert "| training | algorithm | decisions | hours | versions | command |" in text
    assert "catalogue: cheap" in (page.parent / "training.yaml").read_text(encoding="utf-8")


def test_page_of_some_of_the_policies_says_so(places, tmp_path):
    """To show the best two of three seeds as if there were no third is to cheat."""
    page = write_page(read_study(places / "study", [places / "seed1"]), tmp_path)
    assert "1 agent seed (of 2 that the study evaluated)" in page.read_text(encoding="utf-8")


def test_unfinished_study_is_an_error(places, tmp_path, capsys):
    """A page of half a study would look like one of a whole."""
    copy = shutil.copytree(places / "study", tmp_path / "study")
    lines = (copy / "runs.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (copy / "runs.csv").write_text("".join(lines[:-1]), encoding="utf-8")
    trainings = ("--training", places / "seed0", "--training", places / "seed1")
    assert run("agent", "report", copy, *trainings, "--out", tmp_path / "out") == 2
    assert "the evaluation has not ended" in capsys.readouterr().err
    (copy / "report.json").unlink()
    with pytest.raises(CheckpointError, match="an evaluation writes it at its end"):
        read_study(copy, [places / "seed0"])


def test_study_of_other_levels_than_its_report_is_an_error(places, tmp_path):
    """An evaluation of more levels that was interrupted leaves the report of the one before."""
    copy = shutil.copytree(places / "study", tmp_path / "study")
    levels = json.loads((copy / "levels.json").read_text(encoding="utf-8"))
    (copy / "levels.json").write_text(json.dumps(levels[:1]), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is of other levels than"):
        read_study(copy, [places / "seed0"])
    (copy / "levels.json").unlink()
    with pytest.raises(CheckpointError, match="the instances of the study's levels, cannot be read"):
        read_study(copy, [places / "seed0"])


def test_trainings_must_be_those_of_the_study(places):
    with pytest.raises(CheckpointError, match="seed2` was not evaluated in this study"):
        read_study(places / "study", [places / "seed0", places / "seed2"])
    with pytest.raises(InputError, match="given twice"):
        read_study(places / "study", [places / "seed0", places / "seed0"])
    with pytest.raises(InputError, match="there is no training"):
        read_study(places / "study", [])
