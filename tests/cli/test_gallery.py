"""`rlmix gallery`."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rlmix.cli.main import main


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["gallery", *map(str, arguments)])
    return int(stopped.value.code or 0)


def test_a_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the photographs that come with scikit-learn, with methods given in both ways."""
    out = tmp_path / "pictures" / "gallery.png"
    assert run("--out", out, "--methods", "cutmix, rmix", "--methods", "none", "--seed", "3") == 0
    with Image.open(out) as image:
        assert image.format == "PNG"
        assert min(image.size) > 1000
    assert "3 methods on 5 photographs" in capsys.readouterr().out


def test_a_folder_of_photographs_can_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody wants to see their own."""
    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGB", (40, 30), colour).save(tmp_path / f"{name}.png")
    assert run("--images", tmp_path, "--methods", "mixup", "--out", tmp_path / "out.png") == 0
    assert "1 methods on 2 photographs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "cutmx"], "Did you mean `cutmix`?"),
        (["--images", "/nowhere"], "holds 0 images"),
        (["--out", "/proc/no/gallery.png", "--methods", "none"], "cannot be written"),
    ],
)
def test_bad_input_is_one_message(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As in every command."""
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err
