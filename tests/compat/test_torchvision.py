"""rlmix.compat.torchvision, beside the torchvision that is installed."""

from __future__ import annotations

import inspect
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from rlmix.compat.torchvision import CutMix, MixUp
from rlmix.errors import MethodError

CLASSES = 10
KINDS = {"MixUp": (MixUp, v2.MixUp), "CutMix": (CutMix, v2.CutMix)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(count: int = 5, size: tuple[int, int] = (9, 7)) -> tuple[Tensor, Tensor]:
    """Return images and labels that are all different."""
    return torch.rand(count, 3, *size, generator=generator()), torch.arange(count)


def numbered(count: int, size: tuple[int, int] = (9, 7)) -> Tensor:
    """Return images filled with their own number."""
    return torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, *size).contiguous()


@pytest.mark.parametrize("name", KINDS)
def test_the_arguments_and_their_defaults_are_torchvisions(name: str) -> None:
    """A training script changes one import, nothing else."""
    ours, theirs = (dict(inspect.signature(kind).parameters) for kind in KINDS[name])
    assert ours.pop("generator").default is None
    assert list(ours) == list(theirs)
    assert {key: given.default for key, given in ours.items()} == {key: given.default for key, given in theirs.items()}
    assert all(ours[key].kind == theirs[key].kind for key in ours)
    assert isinstance(KINDS[name][0](num_classes=3), torch.nn.Module)


IMAGES, LABELS = batch()
SAMPLES: dict[str, Callable[[], Any]] = {
    "a pair": lambda: (IMAGES, LABELS),
    "a list": lambda: [IMAGES, LABELS],
    "a pair with more": lambda: (IMAGES, LABELS, "name", 3),
    "a dictionary": lambda: {"image": IMAGES, "labels": LABELS, "id": 7},
    "another name": lambda: {"image": IMAGES, "FooLaBeLBar": LABELS},
    "two names": lambda: {"image": IMAGES, "old_label": torch.zeros(5), "Labels": LABELS},
    "a pair with a dictionary": lambda: (IMAGES, {"label": LABELS, "weight": torch.ones(5)}),
    "an image that says so": lambda: (torch.ones(5), {"label": LABELS, "image": tv_tensors.Image(IMAGES)}),
    "a video": lambda: {"clip": tv_tensors.Video(IMAGES.unsqueeze(1).expand(5, 4, 3, 9, 7)), "labels": LABELS},
    "an image and a video": lambda: {
        "image": tv_tensors.Image(IMAGES), "clip": tv_tensors.Video(IMAGES.unsqueeze(1)), "labels": LABELS
    },
    "soft labels": lambda: (IMAGES, torch.rand(5, CLASSES, generator=generator())),
    "half soft labels": lambda: (IMAGES, torch.rand(5, CLASSES, generator=generator()).half()),
    "double images": lambda: (IMAGES.double(), torch.rand(5, CLASSES, generator=generator()).double()),
    "whole one-hot labels": lambda: (IMAGES.bfloat16(), torch.eye(CLASSES, dtype=torch.int64)[:5]),
}  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("name", KINDS)
def test_equal_draws_give_torchvisions_samples(name: str, sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms, types, dtypes, pixels and labels, with the weight and the box of this library's draw."""
    ours, theirs = (kind(num_classes=CLASSES) for kind in KINDS[name])
    ours.generator = generator(3)
    plan = ours._draw(5, (9, 7), torch.device("cpu"))
    ours.generator = generator(3)
    params: dict[str, Any] = {"lam": float(plan.lam[0])}
    if plan.window is not None:
        (top, bottom), (left, right) = (span(side[0]) for side in plan.window)
        params = {"box": (left, top, right, bottom), "lam_adjusted": float(plan.lam[0])}
    monkeypatch.setattr(theirs, "make_params", lambda _: params)
    given = SAMPLES[sample]()
    arguments = given if type(given) is tuple else (given,)
    same(ours(*arguments), theirs(*arguments))
    if len(arguments) > 1:
        ours.generator = generator(3)
        same(ours(given), theirs(given))


def span(side: Tensor) -> tuple[int, int]:
    """Return [first, last) of an interval."""
    pixels = side.nonzero().flatten().tolist()
    return (pixels[0], pixels[-1] + 1) if pixels else (0, 0)


def same(one: Any, two: Any) -> None:
    """Compare two samples: forms, types, and tensors up to rounding."""
    assert type(one) is type(two)
    if isinstance(one, Tensor):
        assert one.dtype == two.dtype
        # Labels are mixed in float32 whatever they are.
        eps = max(float(torch.finfo(kind).eps) for kind in (one.dtype, torch.float32))
        torch.testing.assert_close(one.as_subclass(Tensor), two.as_subclass(Tensor), rtol=2 * eps, atol=2 * eps)
    elif isinstance(one, dict):
        assert list(one) == list(two)
        same(list(one.values()), list(two.values()))
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for first, second in zip(one, two, strict=True):
            same(first, second)
    else:
        assert one == two


ERRORS: dict[str, tuple[dict[str, Any], Callable[[], tuple[Any, ...]], type[Exception], str]] = {
    "no labels": ({}, lambda: (IMAGES, None), ValueError, "must be a dictionary or a two-tuple"),
    "no label-like name": ({}, lambda: ({"image": IMAGES},), ValueError, "Could not infer where the labels are"),
    "a getter of nothing": ({"labels_getter": None}, batch, ValueError, "The labels must be a tensor"),
    "labels in a list": (
        {"labels_getter": lambda sample: sample[1]}, lambda: (IMAGES, [1, 2]), ValueError, "The labels must be a tensor"
    ),
    "labels with three axes": ({}, lambda: (IMAGES, torch.zeros(5, 2, 2)), ValueError, "labels should be index based"),
    "other number of classes": (
        {}, lambda: (IMAGES, torch.zeros(5, 3)), ValueError, "last dimension must match num_classes: 3 != 10"
    ),
    "unknown number of classes": ({"num_classes": None}, batch, ValueError, "num_classes must be passed if the labels"),
    "one image": ({}, lambda: (IMAGES[0], LABELS[:3]), ValueError, "Expected a batched input with 4 dims, but got 3"),
    "other batch": (
        {}, lambda: (IMAGES[:3], LABELS), ValueError, r"does not match the batch size of the labels: 3 != 5"
    ),
    "a mask": (
        {}, lambda: ({"labels": LABELS, "image": IMAGES, "mask": tv_tensors.Mask(torch.zeros(5, 9, 7))},), ValueError,
        r"does not support PIL images, bounding boxes, keypoints and masks",
    ),
    "a PIL image": (
        {}, lambda: (v2.functional.to_pil_image(IMAGES[0]), LABELS), ValueError, "does not support PIL images"
    ),
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", KINDS)
def test_bad_samples_raise_the_errors_of_torchvision(name: str, error: str) -> None:
    """Code that catches these, and tests that match their texts, go on working."""
    options, sample, kind, message = ERRORS[error]
    for transform in KINDS[name]:
        with pytest.raises(kind, match=message):
            transform(**{"num_classes": CLASSES, **options})(*sample())


def test_other_errors_are_of_torchvisions_types() -> None:
    """Arguments that cannot be, a sample without an image, and images of two sizes."""
    labels = {"labels": LABELS}
    for mixup, cutmix in zip(*KINDS.values(), strict=True):
        with pytest.raises(ValueError, match="labels_getter should either be 'default', a callable, or None"):
            mixup(labels_getter="other")
        sizes = {"one": tv_tensors.Image(IMAGES), "two": tv_tensors.Image(IMAGES[..., 1:]), **labels}
        with pytest.raises(ValueError, match="Found multiple HxW dimensions in the sample"):
            cutmix(num_classes=CLASSES)(sizes)
    with pytest.raises(TypeError, match="No image or video was found in the sample"):
        CutMix(num_classes=CLASSES)({"labels": LABELS, "id": 3})
    with pytest.raises(MethodError, match="`alpha` must be a number above 0"):
        MixUp(alpha=0.0)
    with pytest.raises(ValueError, match="`labels` must be in"):
        CutMix(num_classes=3)(IMAGES, LABELS)
    with pytest.raises(ValueError, match="must be floating point, got torch.uint8. Use images.float\\(\\) / 255"):
        MixUp(num_classes=CLASSES)((IMAGES * 255).byte(), LABELS)
    with pytest.raises(ValueError, match="must be a part of the sample"):
        CutMix(num_classes=CLASSES, labels_getter=lambda _: LABELS.clone())(IMAGES, LABELS)


@pytest.mark.parametrize("name", KINDS)
def test_an_image_behind_its_labels_is_mixed_too(name: str) -> None:
    """torchvision takes the first plain tensor for the image: the labels would be mixed, and the image would not."""
    transform = KINDS[name][0](num_classes=CLASSES, generator=generator(1))
    sample = transform({"labels": LABELS, "image": IMAGES})
    assert not torch.equal(sample["image"], IMAGES)
    transform.generator = generator(1)
    assert torch.equal(sample["image"], transform(IMAGES, LABELS)[0])


def test_labels_follow_the_pixels() -> None:
    """Images are filled with their own number, labels are all different; the partner is the image before."""
    transform = CutMix(num_classes=5, generator=generator())
    images = numbered(5)
    for _ in range(20):
        mixed, targets = transform(images, torch.arange(5))
        for source in range(5):
            assert torch.allclose(targets[:, source], (mixed == source).float().mean((1, 2, 3)), atol=1e-6)
        before = torch.stack([targets[row, row - 1] for row in range(5)])
        assert torch.allclose(targets.diagonal() + before, torch.ones(5))


def test_cutmix_copies_whole_numbers_exactly() -> None:
    """Bytes are cut by torchvision too; 64-bit numbers must not be rounded on the way."""
    transform = CutMix(num_classes=5, generator=generator(2))
    for dtype, offset in ((torch.uint8, 0), (torch.int64, 2**40)):
        images = numbered(5).to(dtype) + offset
        mixed, targets = transform(images, torch.arange(5))
        assert mixed.dtype == dtype
        assert torch.allclose(targets.diagonal(), (mixed == images).float().mean((1, 2, 3)), atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_own_weights_are_distributed_as_torchvisions(name: str) -> None:
    """Two samples of 600 own weights; equal distributions would be refused once in a million such tests."""
    images, labels = torch.zeros(2, 1, 16, 16), torch.arange(2)
    ours, theirs = KINDS[name]
    torch.manual_seed(1)
    samples = [
        torch.stack([transform(images, labels)[1][0, 0] for _ in range(600)]).double()
        for transform in (ours(num_classes=2, alpha=0.7), theirs(num_classes=2, alpha=0.7))
    ]
    levels = torch.cat(samples).sort().values
    shares = [torch.searchsorted(sample.sort().values, levels + 1e-6) / 600 for sample in samples]
    # Kolmogorov and Smirnov's bound for two samples: 2 exp(-2 n m / (n + m) d**2) = 1e-6.
    assert float((shares[0] - shares[1]).abs().max()) < math.sqrt(-math.log(1e-6 / 2) / 600)


@pytest.mark.parametrize("name", KINDS)
def test_inputs_are_not_written_and_gradients_flow(name: str) -> None:
    """The caller's batch stays as it was, channels_last too."""
    images = IMAGES.clone().contiguous(memory_format=torch.channels_last).requires_grad_()
    labels = torch.eye(CLASSES)[:5]
    before = images.detach().clone(), labels.clone()
    mixed, _ = KINDS[name][0](generator=generator())(images, labels)
    mixed.sum().backward()
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images.detach(), before[0])
    assert torch.equal(labels, before[1])
    assert images.grad is not None


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", KINDS)
def test_batches_of_any_size_are_taken(name: str, count: int) -> None:
    """The last batch of an epoch may hold one image, whose only partner is itself."""
    images, labels = batch(count)
    mixed, targets = KINDS[name][0](num_classes=CLASSES, generator=generator())(images, labels)
    assert torch.allclose(targets.sum(1), torch.ones(count))
    if count == 1:
        assert torch.allclose(mixed, images, atol=1e-6)
        assert torch.equal(targets, torch.eye(CLASSES)[:1])


def test_it_serves_as_a_collate_function_and_in_random_choice() -> None:
    """The two ways in which torchvision's documentation uses its transforms."""
    choice = v2.RandomChoice([MixUp(num_classes=CLASSES), CutMix(num_classes=CLASSES)])
    data = [(image, int(label)) for image, label in zip(IMAGES, LABELS, strict=True)]
    loader = torch.utils.data.DataLoader(
        data, batch_size=2, collate_fn=lambda items: choice(*torch.utils.data.default_collate(items))
    )
    torch.manual_seed(0)
    first, second = (list(loader) for _ in range(2))
    assert [len(images) for images, _ in first] == [2, 2, 1]
    assert not torch.equal(first[0][1], second[0][1])
    torch.manual_seed(0)
    assert torch.equal(first[0][1], next(iter(loader))[1])


def test_it_prints_and_pickles() -> None:
    """Workers of a loader get a pickled copy; a log shows the transform."""
    transform = pickle.loads(pickle.dumps(CutMix(alpha=0.5, num_classes=7)))
    assert repr(transform) == "CutMix(alpha=0.5, num_classes=7)"


@pytest.mark.parametrize("module", ["rlmix.compat.torchvision", "rlmix.compat.timm"])
def test_the_copied_library_is_not_imported(module: str, tmp_path: Path) -> None:
    """Whoever has only torch must be able to use them, with plain tensors."""
    code = (
        f"import sys, torch, {module} as compat\n"
        "kind = getattr(compat, 'CutMix', None) or compat.Mixup\n"
        "kind(num_classes=4)(torch.rand(4, 3, 8, 8), torch.arange(4))\n"
        "print(sorted({'torchvision', 'timm', 'PIL', 'numpy.random'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "torchvision" not in result.stdout
    assert "timm" not in result.stdout
