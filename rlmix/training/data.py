"""Image data by name or by folder, as tensors in memory. Nothing is ever downloaded."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from rlmix.errors import DataError, UnknownNameError, nearest
from rlmix.ops import rng
from rlmix.training import letters, shapes

ENVIRONMENT_VARIABLE = "RLMIX_DATA"
DEFAULT_FOLDER = "data"
DIGITS_TEST = 397
# Of a folder without parts of its own, this share of the images becomes the test part.
FOLDER_TEST_SHARE = 0.2
DEBIAN_FASHION = "/usr/share/datasets/fashion-mnist"
_SPLIT = 100


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arrays:
    """One data set in memory.

    Args:
        name: what it is called.
        train_images: float32 [n, C, H, W] in [0, 1].
        train_labels: int64 [n] in [0, len(classes)).
        test_images: float32 [m, C, H, W] in [0, 1].
        test_labels: int64 [m].
        classes: the names of the classes.
        natural: whether these are photographs, which may be mirrored and shifted when a classifier is trained.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    natural: bool = False

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width


def load(
    name: str | os.PathLike[str],
    data_dir: str | os.PathLike[str] | None = None,
    *,
    image_size: int = 64,
    limit: int | None = None,
) -> Arrays:
    """Load a data set.

    Args:
        name: one of `DATASETS`, or a folder of images: `train/CLASS/*.png` beside `test/` or `val/`, or `CLASS/*.png`
            alone, of which a fifth becomes the test part (always the same fifth).
        data_dir: where torchvision's files are; if None the environment variable `RLMIX_DATA`, else `./data`.
        image_size: side in pixels to which the images of a folder are scaled and cropped.
        limit: at most this many training and this many test images, a random choice that is always the same. Every
            class keeps its share, so that a balanced data set stays balanced.

    Raises:
        DataError: the files are not there; the message says which were looked for and how to get them.
        UnknownNameError: neither a data set nor a folder.
    """
    if limit is not None and limit < 1:
        raise DataError(f"`limit` must be at least 1, got {limit}. Leave it out to use all images.")
    given = os.fspath(name)
    if given in DATASETS:
        return _limited(DATASETS[given](_root(data_dir)), limit)
    folder = Path(given)
    if folder.is_dir():
        return _folder(folder, image_size, limit)
    if os.sep in given or folder.exists():
        raise DataError(f"`{folder}` is not a folder of images. Give one that holds a folder for each class.")
    raise UnknownNameError(f"there is no data set and no folder `{given}`. {nearest(given, DATASETS)}")


def shuffled(count: int, *words: str) -> Tensor:
    """Return the permutation of range(count) that belongs to `words`: int64 [count], the same everywhere."""
    key = rng.derive(0, *(rng.words(word) for word in words))
    return rng.permutation(torch.tensor([key]), _SPLIT, count)[0]


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    return Path(data_dir if data_dir is not None else os.environ.get(ENVIRONMENT_VARIABLE, DEFAULT_FOLDER))


def _limited(arrays: Arrays, limit: int | None) -> Arrays:
    if limit is None:
        return arrays
    train = _chosen(arrays.train_labels, limit, arrays.name, "limit", "train")
    test = _chosen(arrays.test_labels, limit, arrays.name, "limit", "test")
    return Arrays(
        name=arrays.name,
        train_images=arrays.train_images[train],
        train_labels=arrays.train_labels[train],
        test_images=arrays.test_images[test],
        test_labels=arrays.test_labels[test],
        classes=arrays.classes,
        natural=arrays.natural,
    )


def _chosen(labels: Tensor, limit: int, *words: str) -> Tensor:
    """Return at most `limit` rows, int64: the choice that belongs to `words`, in which every class keeps its share."""
    order = shuffled(len(labels), *words)
    own = labels[order]
    counts = torch.bincount(own)
    grouped = torch.argsort(own, stable=True)
    place = torch.empty_like(order)
    place[grouped] = torch.arange(len(own)) - (counts.cumsum(0) - counts)[own[grouped]]
    # The middles of each class's places, laid evenly over [0, 1]: any first part of them holds the shares of all.
    evenly = (place.double() + 0.5) / counts[own]
    return order[torch.argsort(evenly, stable=True)[:limit]]


def _digits(root: Path) -> Arrays:
    """Return scikit-learn's 1,797 grey 8x8 digits, which come with the package."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.as_tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.as_tensor(bunch.target, dtype=torch.int64)
    order = shuffled(len(labels), "digits")
    test, train = order[:DIGITS_TEST], order[DIGITS_TEST:]
    return Arrays(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        classes=tuple(str(digit) for digit in range(10)),
    )


def _shapes(root: Path) -> Arrays:
    images, labels = shapes.shapes()
    count = shapes.TRAIN
    return _arrays("shapes", (images[:count], images[count:]), (labels[:count], labels[count:]), shapes.CLASSES)


def _letters(root: Path) -> Arrays:
    images, labels = letters.letters()
    count = letters.TRAIN
    return _arrays("letters", (images[:count], images[count:]), (labels[:count], labels[count:]), letters.CLASSES)


def _fashion_mnist(root: Path) -> Arrays:
    from torchvision.datasets import FashionMNIST

    raw = root / "FashionMNIST" / "raw"
    help_text = (
        "Its four files, as in Debian's package dataset-fashion-mnist, must stand there unpacked: "
        f"mkdir -p {raw} && for f in train t10k; do for k in images-idx3 labels-idx1; do "
        f"zcat {DEBIAN_FASHION}/$f-$k-ubyte.gz > {raw}/$f-$k-ubyte; done; done."
    )
    with _explained("fashion-mnist", root, raw / "train-images-idx3-ubyte", help_text):
        parts = [FashionMNIST(root, train=train, download=False) for train in (True, False)]
    images = [torch.as_tensor(part.data).unsqueeze(1).float() / 255.0 for part in parts]
    return _arrays("fashion-mnist", images, [part.targets for part in parts], parts[0].classes)


def _cifar10(root: Path) -> Arrays:
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, root, "cifar-10-batches-py", "cifar-10-python.tar.gz")


def _cifar100(root: Path) -> Arrays:
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, root, "cifar-100-python", "cifar-100-python.tar.gz")


def _cifar(name: str, dataset: Callable[..., Any], root: Path, folder: str, archive: str) -> Arrays:
    help_text = f"Unpack {archive} of https://www.cs.toronto.edu/~kriz/cifar.html there."
    with _explained(name, root, root / folder, help_text):
        parts = [dataset(root, train=train, download=False) for train in (True, False)]
    # uint8 [n, H, W, C] -> float32 [n, C, H, W], contiguous, in one conversion.
    images = [torch.from_numpy(part.data).permute(0, 3, 1, 2).float().contiguous().div_(255.0) for part in parts]
    return _arrays(name, images, [part.targets for part in parts], parts[0].classes, natural=True)


@contextmanager
def _explained(name: str, root: Path, path: Path, help_text: str) -> Iterator[None]:
    """Turn what torchvision raises for missing or damaged files into one message that helps."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, KeyError, ValueError) as error:
        # torchvision's own words about a missing file advise a download, which is not how it is done here.
        problem = f"`{path}` is damaged or incomplete ({error})" if path.exists() else f"there is no `{path}`"
        raise DataError(
            f"`{name}` cannot be read: {problem}. {help_text} Where the data are is said by --data-dir or the "
            f"environment variable {ENVIRONMENT_VARIABLE}; it was `{root}`."
        ) from error


def _arrays(name: str, images: Sequence[Tensor], labels: Sequence[Any], classes: Any, natural: bool = False) -> Arrays:
    train_labels, test_labels = (torch.as_tensor(part, dtype=torch.int64) for part in labels)
    return Arrays(
        name=name,
        train_images=images[0],
        train_labels=train_labels,
        test_images=images[1],
        test_labels=test_labels,
        classes=tuple(classes),
        natural=natural,
    )


def _folder(folder: Path, image_size: int, limit: int | None) -> Arrays:
    """Read a folder of images; with a limit only the chosen ones are decoded."""
    if image_size < 1:
        raise DataError(f"`image_size` must be at least 1, got {image_size}.")
    name = folder.resolve().name
    if (folder / "train").is_dir():
        held_out = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), None)
        if held_out is None:
            raise DataError(f"`{folder}` has `train/` but neither `test/` nor `val/`. Add one with the same classes.")
        train, classes = _listing(folder / "train")
        test, test_classes = _listing(held_out)
        if test_classes != classes:
            raise DataError(f"`{held_out}` has the classes {test_classes}, expected {classes} as in `train/`.")
    else:
        files, classes = _listing(folder)
        order = shuffled(len(files), "folder", "split").tolist()
        count = round(len(files) * FOLDER_TEST_SHARE)
        if not 0 < count < len(files):
            raise DataError(f"`{folder}` holds {len(files)} images, too few to keep a test part. Add more.")
        test, train = ([files[row] for row in rows] for rows in (order[:count], order[count:]))
    if limit is not None:
        train, test = (
            [files[row] for row in _chosen(torch.tensor([label for _, label in files]), limit, "folder", "limit", part)]
            for part, files in (("train", train), ("test", test))
        )
    images = [_decoded([path for path, _ in part], image_size) for part in (train, test)]
    return _arrays(name, images, [[label for _, label in part] for part in (train, test)], classes, natural=True)


def _listing(folder: Path) -> tuple[list[tuple[Path, int]], list[str]]:
    """Return the (file, class) pairs and the class names of a folder that holds one folder for each class."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(folder))
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(
            f"`{folder}` is no image folder: it must hold one folder for each class, and each of them images, such as "
            f"`{folder / 'cat' / '1.jpg'}` ({textwrap.shorten(str(error), 150)})."
        ) from error
    return [(Path(path), label) for path, label in found.samples], list(found.classes)


def _decoded(files: Sequence[Path], side: int) -> Tensor:
    """Return float32 [n, 3, side, side] in [0, 1]: the short side is scaled, the middle kept."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    images = torch.empty(len(files), 3, side, side)
    for row, file in enumerate(files):
        try:
            with Image.open(file) as opened:
                fitted = ImageOps.fit(opened.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(f"`{file}` cannot be read as an image ({error}). Mend or remove it.") from error
        images[row] = torch.from_numpy(np.array(fitted, dtype=np.float32) / 255.0).permute(2, 0, 1)
    return images


DATASETS: dict[str, Callable[[Path], Arrays]] = {
    "digits": _digits,
    "shapes": _shapes,
    "letters": _letters,
    "fashion-mnist": _fashion_mnist,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
}
