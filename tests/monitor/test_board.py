"""TensorBoard."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata, plugin_data_pb2

from rlmix.errors import OutputError
from rlmix.monitor.board import Board


def events(folder: Path) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return accumulator


def test_numbers_are_found_again_by_tag_and_step(tmp_path: Path) -> None:
    """Curves under other names are curves nobody finds."""
    with Board(tmp_path) as board:
        board.scalars(1, {"train/loss": 2.0, "train/lr": 0.5})
        board.scalars(2, {"train/loss": 1.0})
    found = events(tmp_path).Scalars("train/loss")
    assert [(event.step, event.value) for event in found] == [(1, 2.0), (2, 1.0)]


def test_hyperparameters_open_no_second_run(tmp_path: Path) -> None:
    """`add_hparams` makes a folder named by the time, which then stands in every list of runs."""
    with Board(tmp_path) as board:
        board.hyperparameters({"lr": 0.1, "method": "cutmix", "policy": None}, {"final/accuracy": 0.9}, step=7)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1
    accumulator = events(tmp_path)
    assert accumulator.Scalars("final/accuracy")[0].step == 7
    content = accumulator.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    data = plugin_data_pb2.HParamsPluginData.FromString(content)
    assert data.session_start_info.hparams["method"].string_value == "cutmix"
    assert data.session_start_info.hparams["lr"].number_value == 0.1
    assert data.session_start_info.hparams["policy"].string_value == "none"


def test_what_an_interrupted_run_wrote_too_much_is_hidden(tmp_path: Path) -> None:
    """Curves would run back and forth after a resume."""
    with Board(tmp_path) as board:
        for step in range(6):
            board.scalars(step, {"loss": 1.0})
    with Board(tmp_path, start=3) as board:
        board.scalars(3, {"loss": 2.0})
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("loss")] == [
        (0, 1.0),
        (1, 1.0),
        (2, 1.0),
        (3, 2.0),
    ]


def test_pictures_and_texts_are_written(tmp_path: Path) -> None:
    """The mixed images with their labels are what one looks at first."""
    with Board(tmp_path) as board:
        targets = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
        board.mixed(3, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), targets, ("cat", "dog"))
        board.probabilities(3, [0.0, 0.5], {"none": [0.5, 0.1], "mixup": [0.5, 0.9]})
        board.text(3, "mix/decision", "`mixup`")
        board.flush()
    accumulator = events(tmp_path)
    assert set(accumulator.Tags()["images"]) == {"mixed", "policy/probabilities"}
    assert accumulator.Images("mixed")[0].width > 100
    assert "mix/decision/text_summary" in accumulator.Tags()["tensors"]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A training must not run for an hour before its first line is lost."""
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        Board(tmp_path / "file")
