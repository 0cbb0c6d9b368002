"""Generated pictures of printed letters: many classes in many typefaces, from the fonts that come with matplotlib."""

from __future__ import annotations

import io
import math
import string
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from rlmix.errors import DataError
from rlmix.ops import rng

CLASSES = tuple(string.ascii_uppercase + string.digits)
SIDE = 32
TRAIN, TEST = 9000, 1800
FONTS = (
    "DejaVuSans",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralBolIta",
    "cmr10",
    "cmss10",
    "cmtt10",
)

# Letters are set once, larger than they are shown.
_CANVAS, _POINTS = 64, 44
# What is drawn for a picture.
_CLASS, _FONT, _TURN, _SLANT, _SIZE, _PLACE, _GREYS, _SLOPE, _GRAIN = range(131, 140)
_KEY = rng.words("generated letters")


def letters() -> tuple[Tensor, Tensor]:
    """Return TRAIN + TEST pictures, float32 [n, 1, SIDE, SIDE] in [0, 1], and their classes, int64 [n].

    Each shows one letter or digit of a random typeface, size, place, slant and angle (up to 18 degrees), on a
    darker ground that slopes in brightness and has grain. All numbers are functions of a fixed key.

    Raises:
        DataError: matplotlib has come without its fonts.
    """
    count = TRAIN + TEST
    key = torch.tensor([_KEY])

    def drawn(purpose: int, *shape: int) -> Tensor:
        return rng.uniform(key, purpose, (count, *shape))[0]

    labels = rng.integers(key, _CLASS, (count,), len(CLASSES))[0]
    fonts = rng.integers(key, _FONT, (count,), len(FONTS))[0]
    angle = (drawn(_TURN) - 0.5) * (math.pi / 5)
    slant = (drawn(_SLANT) - 0.5) * 0.4
    # A place of the picture is looked up at this many times its distance from the middle of the canvas.
    reach = 0.6 + 0.3 * drawn(_SIZE)
    cosine, sine = torch.cos(angle) * reach, torch.sin(angle) * reach
    turned = torch.stack([torch.stack([cosine + slant * sine, slant * cosine - sine]), torch.stack([sine, cosine])])
    shift = (drawn(_PLACE, 2) - 0.5) * 0.25
    sheets = glyphs()[labels, fonts].unsqueeze(1)
    places = functional.affine_grid(
        torch.cat([turned.permute(2, 0, 1), shift.unsqueeze(2)], 2), [count, 1, SIDE, SIDE], align_corners=False
    )
    ink = functional.grid_sample(sheets, places, align_corners=False)
    ground, contrast = drawn(_GREYS, 2, 1, 1, 1).unbind(1)
    pixels = (torch.arange(SIDE) + 0.5) / SIDE - 0.5
    across, down = (0.5 * (drawn(_SLOPE, 2, 1, 1, 1) - 0.5)).unbind(1)
    slope = across * pixels + down * pixels.view(SIDE, 1)
    grain = 0.2 * (drawn(_GRAIN, 1, SIDE, SIDE) - 0.5)
    pictures = torch.lerp(0.4 * ground + slope, 0.6 + 0.4 * contrast, ink) + grain
    return pictures.clamp(0.0, 1.0), labels


def glyphs() -> Tensor:
    """Return every letter in every typeface, upright in the middle of its canvas: float32 [classes, fonts, 64, 64].

    Raises:
        DataError: matplotlib has come without its fonts.
    """
    folder = Path(mpl.get_data_path()) / "fonts" / "ttf"
    sheets = torch.empty(len(CLASSES), len(FONTS), _CANVAS, _CANVAS)
    for place, name in enumerate(FONTS):
        try:
            # Given a path, Pillow would take a system font of that name where the file is missing.
            font = ImageFont.truetype(io.BytesIO((folder / f"{name}.ttf").read_bytes()), _POINTS)
        except OSError as error:
            raise DataError(
                f"data set `letters` needs the font {folder / name}.ttf, which matplotlib brings: {error}. Install "
                "matplotlib from PyPI, whose package has its fonts."
            ) from error
        for number, letter in enumerate(CLASSES):
            sheet = Image.new("L", (_CANVAS, _CANVAS))
            ImageDraw.Draw(sheet).text((_CANVAS / 2, _CANVAS / 2), letter, fill=255, font=font, anchor="mm")
            sheets[number, place] = torch.from_numpy(np.array(sheet, dtype=np.float32) / 255.0)
    return sheets
