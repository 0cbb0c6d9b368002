"""The fine-grained saliency of a batch beside a loop over OpenCV's detector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image
from torch import Tensor

from benchmarks.timing import Candidate, Case, Goal
from rlmix.saliency import fine_grained

OPENCV, RLMIX = "loop over OpenCV", "rlmix fine_grained"
# Batch size, pixels a side, rounds, and how many times as fast as the loop the batch is to be.
SIZES = ((128, 32, 100, 3), (128, 64, 30, None), (32, 224, 15, None))


def pictures(batch: int, side: int) -> Tensor:
    """Return parts of two photographs, uint8 [batch, 3, side, side], RGB."""
    generator = np.random.default_rng(4)
    photographs = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    parts = []
    for number in range(batch):
        picture = photographs[number % 2]
        top, left = (int(generator.integers(length - side + 1)) for length in picture.shape[:2])
        parts.append(picture[top : top + side, left : left + side])
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).contiguous()


def one_by_one(
    detector: cv2.saliency.StaticSaliencyFineGrained, images: NDArray[np.uint8]
) -> list[NDArray[np.float32]]:
    """Return OpenCV's maps of BGR images [B, H, W, 3]; they come in the form that OpenCV likes best."""
    return [detector.computeSaliency(image)[1] for image in images]


def cases() -> list[Callable[[], Case]]:
    """Return what builds a case, for each size."""
    return [partial(_case, *size) for size in SIZES]


def _case(batch: int, side: int, rounds: int, factor: int | None) -> Case:
    cv2.setNumThreads(1)
    images = pictures(batch, side)
    rows = np.ascontiguousarray(images.flip(1).permute(0, 2, 3, 1).numpy())
    detector = cv2.saliency.StaticSaliencyFineGrained.create()

    def check() -> None:
        torch.testing.assert_close(
            fine_grained(images), torch.from_numpy(np.stack(one_by_one(detector, rows))), rtol=0.0, atol=0.0
        )

    text = f"fine-grained saliency: at least {factor} times as fast as a loop over OpenCV"
    return Case(
        group="fine_grained",
        name=f"fine-grained saliency, B = {batch}, {side}x{side} pixels",
        candidates=(
            Candidate(name=OPENCV, run=lambda _: one_by_one(detector, rows)),
            Candidate(name=RLMIX, run=lambda _: fine_grained(images)),
        ),
        rounds=rounds,
        goals=() if factor is None else (Goal(candidate=RLMIX, baseline=OPENCV, limit=1 / factor, text=text),),
        check=check,
        notes=(
            "From uint8 images to float32 maps, all bits equal. OpenCV runs on one thread, with one detector for all "
            "images, which lie ready as it likes them: BGR, channels last; its maps are not brought back into one "
            "tensor."
        ),
    )
