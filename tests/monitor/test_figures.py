"""Figures."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from rlmix.errors import InputError
from rlmix.methods.registry import names
from rlmix.monitor.figures import (
    UNMIXED,
    colours,
    difference_figure,
    learning_curve_figure,
    mixed_figure,
    png,
    probability_figure,
    soft_label,
)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def test_a_png_is_a_png() -> None:
    """It goes into files and reports as it is."""
    figure = learning_curve_figure([0, 1], {"policy": [0.0, 1.0]}, x_label="decisions", y_label="reward")
    with Image.open(io.BytesIO(png(figure))) as image:
        assert image.format == "PNG"
        assert image.size == (1080, 540)


def test_figures_need_no_window_and_leave_no_state() -> None:
    """pyplot keeps every figure until it is closed, and looks for a display."""
    program = (
        "import sys, rlmix.monitor.figures as f;"
        "f.png(f.probability_figure([0.0], {'none': [1.0]}));"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_colours_tell_all_methods_apart() -> None:
    """Two methods of one colour cannot be told apart in a stack; not mixing is grey everywhere."""
    chosen = colours(names())
    assert len(set(chosen)) == len(names())
    assert chosen[names().index("none")] == UNMIXED
    assert colours(["mixup", "none"])[1] == UNMIXED


def test_curves_and_references_are_named() -> None:
    """A line without a name says nothing."""
    figure = learning_curve_figure(
        [0, 1], {"policy": [0.0, 1.0]}, x_label="x", y_label="y", references={"uniform": 0.5}
    )  # fmt: skip
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["policy", "uniform"]


def test_the_probabilities_fill_the_whole() -> None:
    """Each decision holds until the next: the stack reaches 1 from the beginning to the end, in steps."""
    figure = probability_figure([0.0, 0.5], {"none": [0.25, 0.75], "mixup": [0.75, 0.25]})
    axes = figure.axes[0]
    assert axes.get_xlim() == (0.0, 1.0)
    top = axes.collections[1].get_paths()[0].vertices
    assert top[:, 1].max() == 1.0
    assert top[:, 0].max() == 1.0
    edge = axes.collections[0].get_paths()[0].vertices
    assert {(0.5, 0.25), (0.5, 0.75), (1.0, 0.75)} <= {(float(x), float(y)) for x, y in edge}


def test_differences_are_written_out() -> None:
    """A figure is also read by people who want the numbers."""
    figure = difference_figure([("none", 1.0, 0.5, 1.5), ("cutmix", -0.1, -0.4, 0.2)], x_label="points")
    assert texts(figure) == ["+1.00 [+0.50, +1.50]", "-0.10 [-0.40, +0.20]"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["none", "cutmix"]


def test_soft_labels_stand_beneath_the_images() -> None:
    """An image without its label does not show what the classifier is asked for."""
    targets = torch.tensor([[0.3, 0.7, 0.0], [1.0, 0.0, 0.0]])
    figure = mixed_figure(torch.zeros(2, 3, 4, 4), targets, ("cat", "dog", "owl"), titles=["cutmix", "none"])
    assert texts(figure) == ["dog 70%\ncat 30%", "cat 100%"]
    assert [axes.get_title() for axes in figure.axes] == ["cutmix", "none"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ([0.5, 0.3, 0.2], "a 50%, b 30%, others 20%"),
        ([1.0, 0.0, 0.0], "a 100%"),
        ([0.997, 0.002, 0.001], "a 100%"),
        ([0.0, 0.4, 0.6], "a_very_long_n… 60%, b 40%"),
    ],
)
def test_small_shares_are_summed_up(target: list[float], expected: str) -> None:
    """A mixture of many classes must still fit beneath an image."""
    assert soft_label(torch.tensor(target), ("a", "b", "a_very_long_name"), joint=", ") == expected


def test_lengths_must_agree() -> None:
    """A curve that is shifted by one looks right."""
    with pytest.raises(InputError, match="`policy` must hold 2 values, got 1"):
        learning_curve_figure([0, 1], {"policy": [0.0]}, x_label="x", y_label="y")
    with pytest.raises(InputError, match="`none` must hold 1 values, got 2"):
        probability_figure([0.0], {"none": [0.0, 1.0]})
    with pytest.raises(InputError, match="`targets` must hold 1 values, got 2"):
        mixed_figure(torch.zeros(1, 1, 2, 2), torch.zeros(2, 2), ("a", "b"))
