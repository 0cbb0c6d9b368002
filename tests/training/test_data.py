"""Image data by name or by folder."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from rlmix.errors import DataError, UnknownNameError
from rlmix.training.data import ENVIRONMENT_VARIABLE, load, shuffled

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def paint(folder: Path, count: int, *, size: tuple[int, int] = (30, 20)) -> None:
    """Write `count` images of one colour for each class."""
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, colour).save(folder / name / f"{number}.png")


def test_digits_are_split_once_and_for_all() -> None:
    """A split that moves between versions lets test images into training; the sum of the test rows pins it."""
    digits = load("digits")
    assert digits.train_images.shape == (1400, 1, 8, 8)
    assert digits.test_images.shape == (397, 1, 8, 8)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    assert float(digits.train_images.min()) == 0.0
    assert float(digits.train_images.max()) == 1.0
    assert digits.shape == (1, 8, 8)
    assert digits.num_classes == 10
    assert torch.equal(shuffled(1797, "digits").sort().values, torch.arange(1797))
    assert hashlib.sha256(digits.test_labels.numpy().tobytes()).hexdigest()[:16] == "b796af623ec5ffd7"


def test_a_limit_keeps_the_same_images_every_time() -> None:
    """Two runs with one limit must be comparable."""
    first, second = load("digits", limit=50), load("digits", limit=50)
    assert first.train_images.shape[0] == first.test_images.shape[0] == 50
    assert torch.equal(first.train_images, second.train_images)
    assert len(first.train_labels.unique()) > 5
    assert load("digits", limit=10_000).train_images.shape[0] == 1400


@pytest.mark.parametrize("limit", [3, 10, 30])
def test_a_limit_keeps_balanced_classes_balanced(limit: int, tmp_path: Path) -> None:
    """A fifth of CIFAR-100 chosen blindly has classes of 80 images and classes of 120."""
    paint(tmp_path / "train", 20, size=(4, 4))
    paint(tmp_path / "test", 20, size=(4, 4))
    some = load(tmp_path, image_size=4, limit=limit)
    for labels in (some.train_labels, some.test_labels):
        counts = torch.bincount(labels, minlength=3)
        assert len(labels) == limit
        assert int(counts.max() - counts.min()) <= 1


def test_a_limit_keeps_the_shares_of_uneven_classes(tmp_path: Path) -> None:
    """A rare class must neither vanish nor become as frequent as the others."""
    for name, count in (("common", 30), ("rare", 10)):
        for part in ("train", "test"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", (4, 4)).save(tmp_path / part / name / f"{number}.png")
    assert torch.bincount(load(tmp_path, image_size=4, limit=20).train_labels).tolist() == [15, 5]
    assert torch.bincount(load(tmp_path, image_size=4, limit=8).test_labels).tolist() == [6, 2]


def test_a_limit_below_one_is_refused() -> None:
    """Nothing can be trained on nothing."""
    with pytest.raises(DataError, match="`limit` must be at least 1, got 0"):
        load("digits", limit=0)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-batches-py"),
        ("cifar100", "cifar-100-python"),
        ("fashion-mnist", "FashionMNIST/raw/train-images-idx3-ubyte"),
    ],
)
def test_missing_files_are_named_with_the_way_to_get_them(name: str, file: str, tmp_path: Path) -> None:
    """torchvision's own message advises a download and names no path."""
    with pytest.raises(DataError, match=f"there is no `{tmp_path / file}`") as raised:
        load(name, tmp_path)
    assert "--data-dir" in str(raised.value)
    assert "download=True" not in str(raised.value)


def test_the_environment_variable_says_where_data_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user with one folder of data sets names it once."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match="elsewhere"):
        load("cifar10")


def test_damaged_files_are_told_from_missing_ones(tmp_path: Path) -> None:
    """Half a download must not be reported as no download."""
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match="is damaged or incomplete"):
        load("cifar10", tmp_path)


def test_cifar_is_read_in_torchvisions_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are stored by channel; axes in the wrong order would give striped images that still train a little."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).reshape(2, 3072) % 251
    files = [*[f"data_batch_{number}" for number in range(1, 6)], "test_batch", "batches.meta"]
    digests = {}
    for file in files:
        content = {"data": pixels.astype(np.uint8), "labels": [3, 4]}
        meta = {"label_names": [f"class{number}" for number in range(10)]}
        data = pickle.dumps(meta if file == "batches.meta" else content)
        (folder / file).write_bytes(data)
        digests[file] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(CIFAR10, "train_list", [[file, digests[file]] for file in files[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", digests["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    arrays = load("cifar10", tmp_path)
    assert arrays.natural
    assert arrays.classes[3] == "class3"
    expected = torch.from_numpy(pixels.astype(np.float32)).view(2, 3, 32, 32) / 255
    torch.testing.assert_close(arrays.test_images, expected)
    assert arrays.train_images.is_contiguous()
    assert arrays.train_labels.tolist() == [3, 4] * 5


def test_fashion_mnist_is_read_in_torchvisions_layout(tmp_path: Path) -> None:
    """The unpacked idx files must stand where the message says."""
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 3), ("t10k", 2)):
        pixels = (np.arange(count * 784) % 256).astype(np.uint8)
        header = b"".join(number.to_bytes(4, "big") for number in (0x803, count, 28, 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        labels = (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + bytes(range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    arrays = load("fashion-mnist", tmp_path)
    assert arrays.train_images.shape == (3, 1, 28, 28)
    assert arrays.test_labels.tolist() == [0, 1]
    assert float(arrays.test_images[0, 0, 0, 255 % 28]) == pytest.approx((255 % 28) / 255)


def test_a_folder_with_parts_is_read_as_it_stands(tmp_path: Path) -> None:
    """Classes are the folders' names in order; a validation folder serves where there is no test folder."""
    paint(tmp_path / "train", 3)
    paint(tmp_path / "val", 2)
    arrays = load(tmp_path, image_size=16)
    assert arrays.classes == ("blue", "green", "red")
    assert arrays.train_images.shape == (9, 3, 16, 16)
    assert arrays.test_images.shape == (6, 3, 16, 16)
    for image, label in zip(arrays.test_images, arrays.test_labels.tolist(), strict=True):
        expected = torch.tensor(COLOURS[arrays.classes[label]]).view(3, 1, 1) / 255
        torch.testing.assert_close(image, expected.expand(3, 16, 16))


def test_a_folder_without_parts_keeps_a_fifth_for_the_test(tmp_path: Path) -> None:
    """The same images must be held out every time, and none be in both parts."""
    paint(tmp_path, 5)
    for number, path in enumerate(sorted(tmp_path.rglob("*.png"))):
        Image.new("L", (8, 8), number * 10).save(path)
    first, second = load(tmp_path, image_size=8), load(tmp_path, image_size=8)
    assert len(first.test_labels) == 3
    assert torch.equal(first.test_images, second.test_images)
    values = [set(part[:, 0, 0, 0].tolist()) for part in (first.train_images, first.test_images)]
    assert not values[0] & values[1]
    assert len(values[0] | values[1]) == 15


def test_a_limit_on_a_folder_decodes_only_what_it_keeps(tmp_path: Path) -> None:
    """A quick try on a large folder must be quick."""
    paint(tmp_path, 5)
    assert load(tmp_path, image_size=8, limit=4).train_images.shape == (4, 3, 8, 8)


def test_the_parts_of_a_folder_must_have_the_same_classes(tmp_path: Path) -> None:
    """Labels would otherwise mean different things in the two parts."""
    paint(tmp_path / "train", 1)
    (tmp_path / "val" / "blue").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "blue" / "1.png")
    with pytest.raises(DataError, match=r"has the classes \['blue'\], expected \['blue', 'green', 'red'\]"):
        load(tmp_path)


def test_a_training_part_alone_is_refused(tmp_path: Path) -> None:
    """Test images are never guessed where the user made parts."""
    paint(tmp_path / "train", 1)
    with pytest.raises(DataError, match="neither `test/` nor `val/`"):
        load(tmp_path)


def test_a_folder_without_classes_says_what_was_expected(tmp_path: Path) -> None:
    """The commonest mistake is a folder of loose images."""
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    with pytest.raises(DataError, match="must hold one folder for each class"):
        load(tmp_path)


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    """Two images leave no test part."""
    (tmp_path / "red").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "red" / "1.png")
    with pytest.raises(DataError, match="too few to keep a test part"):
        load(tmp_path)


def test_an_unreadable_image_is_named(tmp_path: Path) -> None:
    """One broken file among a million must be found without a search."""
    paint(tmp_path, 3)
    (tmp_path / "red" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"red/0.png` cannot be read as an image"):
        load(tmp_path, image_size=8)


def test_a_bad_image_size_is_refused(tmp_path: Path) -> None:
    """PIL's own message speaks of something else."""
    with pytest.raises(DataError, match="`image_size` must be at least 1, got 0"):
        load(tmp_path, image_size=0)


def test_an_unknown_name_names_the_nearest() -> None:
    """A misspelt data set is told from a folder that is not there."""
    with pytest.raises(UnknownNameError, match=r"no folder `cifar1000`. Did you mean `cifar100`\?"):
        load("cifar1000")
    with pytest.raises(DataError, match="`some/where` is not a folder of images"):
        load("some/where")
