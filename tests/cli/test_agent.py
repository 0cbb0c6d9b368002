"""`rlmix agent`: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from rlmix.cli.main import main
from rlmix.policy.artifact import load
from rlmix.policy.codec import catalogue

RECIPE = """
name: tiny
horizon: 4
counts: {train: 4, validation: 2, heldout: 3}
families:
  - {data: digits, total_steps: {8: 1, 16: 1}, train_size: [100, 200], noise: [0.0, 0.4]}
"""


def run(*arguments):
    """Run the command line; return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code or 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a recipe, a configuration and a finished run."""
    folder = tmp_path_factory.mktemp("agent")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")
    settings = {"instances": str(folder / "tiny.yaml"), "catalogue": "cheap", "timesteps": 1, "actors": 4}
    (folder / "agent.yaml").write_text(json.dumps(settings), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLMIX_CACHE", str(folder / "cache"))
        start = ("--config", folder / "agent.yaml", "--out", folder / "run")
        assert run("agent", "train", *start, "--set", "epochs=2") == 0
    return folder


@pytest.fixture(autouse=True)
def _cache(trained, monkeypatch):
    """Keep the references out of the user's cache."""
    monkeypatch.setenv("RLMIX_CACHE", str(trained / "cache"))


def test_train_takes_file_changes_and_flags_in_this_order(trained):
    """A flag that a file overrides does nothing, in silence."""
    card = load(trained / "run" / "policy").card
    assert card["config"]["epochs"] == 2
    assert card["config"]["catalogue"] == "cheap"
    assert card["timesteps"] == 16


def test_resume_knows_the_configuration_of_the_run(trained, tmp_path, capsys):
    """After Ctrl-C the printed command is all that somebody has to type."""
    copy = shutil.copytree(trained / "run", tmp_path / "run")
    assert run("agent", "train", "--resume", "--out", copy, "--timesteps", 17, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["card"]["timesteps"] == 32
    assert document["card"]["config"]["epochs"] == 2
    assert document["policy"] == str(copy / "policy")


def test_interrupted_training_says_how_to_go_on(trained, tmp_path, monkeypatch, capsys):
    """A bare traceback looks like a lost night."""

    def interrupted(*arguments, **options):
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoint.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("rlmix.agents.ppo.train_ppo", interrupted)
    assert run("agent", "train", "--config", trained / "agent.yaml", "--out", tmp_path / "run") == 130
    assert f"To go on: rlmix agent train --resume --out {tmp_path / 'run'}" in capsys.readouterr().err


def test_evaluate_prints_a_table_and_writes_every_run(trained, tmp_path, capsys):
    """The table must hold everything that a policy has to beat, and the file every run behind it."""
    arguments = ("--policy", trained / "run" / "policy", "--replicates", 2, "--out", tmp_path / "out")
    assert run("agent", "evaluate", *arguments) == 0
    printed = capsys.readouterr().out
    agents = {"learned", "best-fixed", "best-fixed-per-budget", *catalogue("cheap").names}
    for agent in agents:
        assert agent in printed
    with (tmp_path / "out" / "runs.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(agents) * 3 * 2
    assert {row["agent"] for row in rows} == agents
    document = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert document["reference"] == "uniform-cheap"
    assert {row["agent"] for row in document["differences"]} == agents


def test_evaluate_json_is_the_report_and_nothing_else(trained, capsys):
    """Scripts parse the standard output."""
    recipe = ("--instances", trained / "tiny.yaml", "--limit", 1)
    assert run("agent", "evaluate", "--policy", trained / "run" / "policy", *recipe, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["instances"] == "tiny-heldout"
    assert document["runs"] == 8


def test_evaluate_refuses_instances_of_another_horizon(trained, tmp_path, capsys):
    """A policy for four decisions would be asked eight times, and judged for it."""
    other = tmp_path / "other.yaml"
    other.write_text(RECIPE.replace("horizon: 4", "horizon: 8"), encoding="utf-8")
    assert run("agent", "evaluate", "--policy", trained / "run" / "policy", "--instances", other) == 2
    assert "decides 4 times in a training" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--set", "learning_rat=1"), "Did you mean `learning_rate`?"),
        (("train", "--set", "actors=many"), "`actors`: input should be a valid integer"),
        (("train", "--set", "catalogue=v1"), "there is no catalogue `v1`"),
        (("train", "--set", "instances=digit"), "no instance set and no file `digit`"),
        (("train", "--device", "gpu"), "`device`: input should be 'auto', 'cpu' or 'cuda'"),
        (("train", "--resume"), "does not exist"),
        (("evaluate", "--policy", "nowhere"), "cannot be read"),
        (("validate", "nowhere.csv"), "cannot be read"),
    ],
)
def test_mistakes_are_one_message_and_exit_code_2(arguments, message, tmp_path, monkeypatch, capsys):
    """A traceback of library code hides what the user can mend."""
    monkeypatch.chdir(tmp_path)
    assert run("agent", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


@pytest.fixture(scope="module")
def study(trained, tmp_path_factory):
    """The folder of a study of two seeds (the same policy twice) on two levels, and the arguments that made it."""
    folder = tmp_path_factory.mktemp("study")
    levels = "levels:\n- {name: near, instances: tiny.yaml, limit: 2}\n- {name: far, instances: tiny.yaml, limit: 1}\n"
    (trained / "levels.yaml").write_text(levels, encoding="utf-8")
    policy = ("--policy", trained / "run" / "policy")
    arguments = ("agent", "evaluate", *policy, *policy, "--levels", trained / "levels.yaml", "--replicates", 2,
                 "--out", folder)  # fmt: skip
    assert run(*arguments) == 0
    return folder, arguments


def test_protocol_writes_runs_report_tables_and_figures(study, capsys):
    """Everything that a published comparison needs, from one command."""
    folder, arguments = study
    document = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [level["name"] for level in document["levels"]] == ["near", "far"]
    assert set(document["levels"][0]["conditions"]) == {"steps", "no-validation", "time"}
    assert document["replicates"] == 2
    assert {"command", "commit", "versions", "hardware", "date"} == set(document["provenance"])
    with (folder / "comparisons.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    made = {"best-fixed", "best-fixed-per-budget", "oracle", "oracle-of-one", "hold"}
    baselines = {*catalogue("cheap").names, *made}
    assert {row["to"] for row in rows} == {*baselines, "learned~replayed", "learned~static"}
    drawn = {path.stem for path in (folder / "figures").iterdir()}
    assert drawn == {"choices-0", "choices-1", "profiles", "differences"}
    before = (folder / "runs.csv").read_bytes()
    assert run(*arguments) == 2
    assert "Go on with --resume" in capsys.readouterr().err
    # A finished study trains nothing again, and prints the same.
    assert run(*arguments, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out)["levels"] == document["levels"]
    assert (folder / "runs.csv").read_bytes() == before


def test_interrupted_protocol_says_how_to_go_on(trained, tmp_path, monkeypatch, capsys):
    """The runs are kept; who does not know that starts again."""

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("rlmix.agents.runner.run_block", interrupted)
    policy = ("--policy", trained / "run" / "policy")
    assert run("agent", "evaluate", *policy, *policy, "--out", tmp_path, "--replicates", 2) == 130
    assert "All finished blocks are kept. To go on, give the same command with --resume" in capsys.readouterr().err


def test_validate_replays_a_study_and_finds_a_changed_row(study, trained, tmp_path, capsys):
    """The exit code is what a script sees of it."""
    folder, _ = study
    policy = ("--policy", trained / "run" / "policy")
    assert run("agent", "validate", folder / "runs.csv", *policy, "--limit", 12) == 0
    assert "12 runs replayed, 0 differ. 12 were compared to the last bit" in capsys.readouterr().out
    for name in ("runs.csv", "catalogue.json"):
        shutil.copy(folder / name, tmp_path / name)
    lines = (tmp_path / "runs.csv").read_text(encoding="utf-8").splitlines()
    column = lines[0].split(",").index("accuracy")
    cells = lines[3].split(",")
    cells[column] = "0.999"
    lines[3] = ",".join(cells)
    (tmp_path / "runs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert run("agent", "validate", tmp_path / "runs.csv", "--limit", 5) == 1
    assert "line 4: " in capsys.readouterr().out
    assert run("agent", "validate", tmp_path / "runs.csv", "--limit", 5, "--json") == 1
    (found,) = json.loads(capsys.readouterr().out)["mismatches"]
    assert (found["row"], found["recorded"]["accuracy"]) == (4, 0.999)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--equal-time",), "are of the protocol"),
        (("--resume",), "Give a folder with --out"),
        (("--resume", "--out", "x", "--no-validation"), "--validation leaves these out"),
        (("--levels", "levels.yaml", "--limit", 3, "--out", "x"), "Leave --instances and --limit out"),
        (("--resume", "--replicates", 1, "--out", "x"), "`replicates` must be at least 2"),
    ],
)
def test_options_that_would_do_nothing_are_refused(trained, tmp_path, monkeypatch, capsys, options, message):
    """An option that is passed over in silence gives a result of something else."""
    monkeypatch.chdir(tmp_path)
    assert run("agent", "evaluate", "--policy", trained / "run" / "policy", *options) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "evaluate", "validate"])
def test_help_has_examples(command, capsys):
    """Most people read the examples only."""
    assert run("agent", command, "--help") == 0
    printed = capsys.readouterr().out
    assert "Examples" in printed
    assert f"rlmix agent {command}" in printed


@pytest.mark.parametrize(("algorithm", "name"), [("es", "OpenAI-ES"), ("qrdqn", "QR-DQN")])
def test_other_algorithms_are_trained_and_resumed_by_their_configuration(algorithm, name, tmp_path, capsys):
    """A run's folder says what it was trained by, so that nobody has to remember it to go on."""
    if algorithm == "qrdqn":
        pytest.importorskip("sb3_contrib", reason="QR-DQN needs rlmix[contrib]")
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    words = ["--set", f"instances={tmp_path / 'recipe.yaml'}", "--set", "catalogue=cheap", "--actors", 4]
    first = ["agent", "train", "--algorithm", algorithm, "--timesteps", 32, *words, "--out", tmp_path / "run", "--json"]
    assert run(*first) == 0
    assert json.loads(capsys.readouterr().out)["card"]["algorithm"] == name
    assert run("agent", "train", "--resume", "--out", tmp_path / "run", "--json") == 0
    assert json.loads(capsys.readouterr().out)["card"]["algorithm"] == name
