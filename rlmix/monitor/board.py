"""TensorBoard: scalars, figures and hyper-parameters of one run, in one folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, cast, final

from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rlmix._files import writable_folder
from rlmix.monitor.figures import mixed_figure, probability_figure


@final
class Board(contextlib.AbstractContextManager["Board"]):
    """Writes the event file of one run.

    Args:
        folder: of the run; created if need be.
        start: the step that the run goes on from. What an interrupted run wrote from there on is hidden.

    Raises:
        OutputError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, Board(folder) as board:
        ...     board.scalars(1, {"train/loss": 2.3})
    """

    def __init__(self, folder: str | os.PathLike[str], *, start: int = 0) -> None:
        self._writer = SummaryWriter(str(writable_folder(folder)), purge_step=start or None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write what is left and close the file."""
        self.close()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def figure(self, step: int, tag: str, figure: Figure) -> None:
        """Write a figure as an image."""
        self._writer.add_figure(tag, figure, step, close=False)

    def text(self, step: int, tag: str, text: str) -> None:
        """Write Markdown."""
        self._writer.add_text(tag, text, step)

    def mixed(
        self,
        step: int,
        images: Tensor,
        targets: Tensor,
        classes: Sequence[str],
        *,
        tag: str = "mixed",
        titles: Sequence[str] | None = None,
        most: int = 12,
    ) -> None:
        """Write a grid of mixed images with their soft labels.

        Args:
            step: of the training.
            images: float [B, C, H, W] in [0, 1], any device.
            targets: float [B, len(classes)].
            classes: the names of the classes.
            tag: what the grid is called.
            titles: a word above each image.
            most: how many are shown.
        """
        shown = None if titles is None else list(titles)[:most]
        figure = mixed_figure(images[:most].detach().cpu(), targets[:most].detach().cpu(), classes, titles=shown)
        self.figure(step, tag, figure)

    def probabilities(self, step: int, progress: Sequence[float], probabilities: Mapping[str, Sequence[float]]) -> None:
        """Write how probable each method is over a training, as a figure; see `probability_figure`."""
        self.figure(step, "policy/probabilities", probability_figure(progress, probabilities))

    def hyperparameters(
        self, values: Mapping[str, bool | float | str | None], metrics: Mapping[str, float], *, step: int = 0
    ) -> None:
        """Write hyper-parameters and final metrics for TensorBoard's HPARAMS page.

        `SummaryWriter.add_hparams` would open a second run in a folder of its own, which then stands in every list of
        runs; here the same records go into the run they belong to.
        """
        shown = {name: "none" if value is None else value for name, value in values.items()}
        # torch annotates neither of the two.
        writer, records = cast(Any, self._writer), cast(Any, hparams)(shown, dict(metrics))
        for record in records:
            writer.file_writer.add_summary(record)
        self.scalars(step, metrics)

    def flush(self) -> None:
        """Write what is waiting."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is left and close the file."""
        self._writer.close()
