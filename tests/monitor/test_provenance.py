"""What a result was made with."""

from __future__ import annotations

import re
import sys

import pytest
import torch

from rlmix.monitor.provenance import command, hardware, now, versions


def test_versions_name_what_results_depend_on() -> None:
    """A number without versions cannot be made again."""
    found = versions()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "rlmix", "torchvision"} <= set(found)


def test_hardware_is_said_in_words() -> None:
    """Times depend on it."""
    assert re.search(r"\d+ cores, \d+ threads", hardware())


def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blanks are quoted and the interpreter's path is left out."""
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/rlmix", "train", "--out", "my runs"])
    assert command() == "rlmix train --out 'my runs'"
    assert command(["demo"]) == "rlmix demo"


def test_the_time_is_in_utc() -> None:
    """Machines stand in different zones."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", now())
