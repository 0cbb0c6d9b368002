"""rlmix.mix: the front door and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rlmix
from rlmix.errors import InputError
from rlmix.saliency import input_gradient


def generator() -> torch.Generator:
    """Return a seeded generator."""
    return torch.Generator().manual_seed(0)


def batch() -> tuple[Tensor, Tensor]:
    """Return four images and labels."""
    return torch.rand(4, 3, 8, 8, generator=generator()), torch.tensor([0, 1, 2, 1])


def test_it_draws_applies_and_labels_in_one_call() -> None:
    """The one-call form must be its three parts, nothing else."""
    images, labels = batch()
    mixed = rlmix.mix(images, labels, "cutmix", num_classes=3, generator=generator(), alpha=0.5)
    plan = rlmix.methods.get("cutmix", alpha=0.5).draw(rlmix.MixInputs(4, 8, 8), generator=generator())
    assert mixed.plan.equal(plan)
    assert torch.equal(mixed.images, rlmix.apply(images, plan))
    assert torch.equal(mixed.targets, plan.soft_targets(labels, 3))


def test_a_model_gives_the_saliency_that_a_method_needs() -> None:
    """`model=` must be what `saliency=input_gradient(...)` is."""
    images, labels = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    first = rlmix.mix(images, labels, "rmix", num_classes=3, generator=generator(), model=model)
    maps = input_gradient(model, images, labels)
    second = rlmix.mix(images, labels, "rmix", num_classes=3, generator=generator(), saliency=maps)
    assert first.plan.equal(second.plan)


def test_a_mixture_asks_for_saliency_only_where_its_member_needs_it() -> None:
    """A saliency pass costs as much as a training step; half the members need none."""
    images, labels = batch()
    calls = []
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model.register_forward_hook(lambda *_: calls.append(1))
    method = rlmix.methods.get("uniform", members=("cutmix", "rmix"))
    for key in range(12):
        before = len(calls)
        mixed = rlmix.mix(images, labels, method, num_classes=3, generator=rlmix.Streams([key]), model=model)
        needed = method.settle(key)[0].name == "rmix"
        assert len(calls) - before == int(needed)
        maps = input_gradient(model, images, labels)
        same = rlmix.mix(images, labels, method, num_classes=3, generator=rlmix.Streams([key]), saliency=maps)
        assert torch.equal(mixed.images, same.images)


def test_a_callable_gives_the_saliency_only_where_the_settled_method_needs_it() -> None:
    """A bank or a detector costs something; `model=` does not count where a source is given."""
    images, labels = batch()
    calls = []

    def source(given: Tensor, classes: Tensor) -> Tensor:
        calls.append(1)
        assert given is images
        assert torch.equal(classes, labels)
        return given.abs().mean(1)

    method = rlmix.methods.get("uniform", members=("cutmix", "rmix"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    model.register_forward_hook(lambda *_: pytest.fail("the model was asked"))
    for key in range(12):
        before, streams = len(calls), rlmix.Streams([key])
        mixed = rlmix.mix(images, labels, method, num_classes=3, generator=streams, saliency=source, model=model)
        assert len(calls) - before == int(method.settle(key)[0].name == "rmix")
        maps = images.abs().mean(1)
        same = rlmix.mix(images, labels, method, num_classes=3, generator=streams, saliency=maps)
        assert torch.equal(mixed.images, same.images)
        assert torch.equal(mixed.targets, same.targets)


def test_targets_are_smoothed_when_asked_for() -> None:
    """Off by default: a peer's default of 0.1 surprises."""
    images, labels = batch()
    plain, smooth = (
        rlmix.mix(images, labels, "cutmix", num_classes=3, generator=generator(), label_smoothing=value)
        for value in (0.0, 0.3)
    )
    assert torch.equal(plain.targets, rlmix.mix(images, labels, num_classes=3, generator=generator()).targets)
    assert torch.allclose(smooth.targets, 0.7 * plain.targets + 0.1)
    assert torch.equal(plain.images, smooth.images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", ["none", "mixup", "cutmix", "rmix"])
def test_dense_labels_are_mixed_as_class_numbers_are(method: str, dtype: torch.dtype) -> None:
    """One-hot rows give what the class numbers give; saliency comes from the model for them too."""
    images, labels = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    rows = torch.eye(3)[labels]
    one, two = (
        rlmix.mix(images, given, method, num_classes=3, generator=generator(), model=model)
        for given in (labels, rows.to(dtype))
    )
    assert torch.allclose(one.images, two.images, atol=1e-6)
    assert torch.allclose(one.targets, two.targets, atol=1e-6)
    assert two.targets.dtype == torch.float32


def test_images_may_have_several_classes() -> None:
    """Multi-label rows do not sum to 1 and are not brought to it."""
    images, _ = batch()
    labels = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    mixed = rlmix.mix(images, labels, "cutmix", num_classes=3, generator=generator())
    lam, partners = mixed.plan.lam.unsqueeze(1), mixed.plan.partners[:, 0]
    weight = mixed.plan.label_shares
    assert torch.allclose(mixed.targets, labels * (1 - weight) + labels[partners] * weight, atol=1e-6)
    assert bool((lam < 1).any())


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("name", rlmix.methods.names())
def test_odd_last_and_single_batches_are_mixed(name: str, count: int) -> None:
    """The last batch of an epoch has any size; several peers assert an even one."""
    images = torch.rand(count, 3, 33, 32, generator=generator())
    maps = torch.rand(count, 33, 32, generator=generator())
    labels = torch.arange(count)
    mixed = rlmix.mix(images, labels, name, num_classes=7, generator=generator(), saliency=maps)
    assert mixed.images.shape == images.shape
    assert mixed.targets.shape == (count, 7)
    assert torch.allclose(mixed.targets.sum(1), torch.ones(count), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int16])
def test_labels_of_any_whole_number_type_serve(dtype: torch.dtype) -> None:
    """Data sets store labels in small types."""
    images, labels = batch()
    one, two = (rlmix.mix(images, given, "mixup", num_classes=3, generator=generator()) for given in
                (labels, labels.to(dtype)))  # fmt: skip
    assert torch.equal(one.targets, two.targets)


IMAGES, LABELS = batch()
NAN = IMAGES.clone()
NAN[1, 0, 2, 3] = float("nan")
BAD = {
    "rank 3": (IMAGES[0], LABELS, {}, r"`images` must be \[B, C, H, W\] .* image.unsqueeze\(0\)"),
    "empty": (IMAGES[:0], LABELS[:0], {}, "with B at least 1"),
    "uint8": ((IMAGES * 255).byte(), LABELS, {}, "`images` must be floating point, got torch.uint8"),
    "bool images": (IMAGES > 0.5, LABELS, {}, r"got torch.bool. Use images.float\(\)\.$"),
    "bytes": ((IMAGES * 255).byte(), LABELS, {}, r"Use images.float\(\) / 255\.$"),
    "a number for labels": (IMAGES, LABELS[0], {}, r"`labels` must be \[4\], one class number .* got \[\]"),
    "dense labels of other classes": (IMAGES, torch.eye(4), {}, r"dense `labels` must be \[4, 3\], a value for each"),
    "too few dense labels": (IMAGES, torch.eye(3), {}, r"`labels` must be \[4\], one class number .* got \[3, 3\]"),
    "logits for labels": (IMAGES, torch.eye(4)[:, :3] * 7 - 1, {}, r"must be in \[0, 1\], got values from -1 to 6"),
    "NaN labels": (IMAGES, torch.full((4, 3), float("nan")), {}, r"dense `labels` must be in \[0, 1\]"),
    "NaN under dense labels": (NAN, torch.eye(4)[:, :3], {}, "`images` hold values that are not finite"),
    "smoothing": (IMAGES, LABELS, {"label_smoothing": 1.5}, r"`label_smoothing` must be in \[0, 1\], got 1.5"),
    "smoothing of dense labels": (
        IMAGES, torch.eye(4)[:, :3], {"label_smoothing": 0.1}, "must be 0 with dense labels .smooth these before"
    ),
    "a source of nothing": (
        IMAGES, LABELS, {"method": "rmix", "saliency": lambda *_: None}, "method `rmix` needs saliency maps"
    ),
    "a source of arrays": (
        IMAGES, LABELS, {"method": "rmix", "saliency": lambda *_: [1]}, r"`saliency` must be a tensor .* got list from"
    ),
    "a source of empty maps": (
        IMAGES, LABELS, {"method": "rmix", "saliency": lambda *_: torch.zeros(4, 2, 2)}, "came from .*<lambda>"
    ),
    "NaN": (NAN, LABELS, {}, "`images` hold values that are not finite"),
    "infinite": (IMAGES / 0, LABELS, {}, "`images` hold values that are not finite"),
    "too few labels": (IMAGES, LABELS[:3], {}, r"`labels` must be \[4\], one class number .* got \[3\]"),
    "one-hot": (IMAGES, torch.eye(4).long(), {}, r"One-hot labels become class numbers by labels.argmax\(1\)"),
    "float labels": (IMAGES, LABELS.float(), {}, r"`labels` must be whole numbers \(int64\), got torch.float32"),
    "bool labels": (IMAGES, LABELS > 1, {}, "got torch.bool"),
    "label too large": (IMAGES, LABELS + 1, {}, r"`labels` must be in \[0, 3\), got values from 1 to 3"),
    "label negative": (IMAGES, LABELS - 1, {}, r"`labels` must be in \[0, 3\), got values from -1 to 1"),
    "no saliency": (IMAGES, LABELS, {"method": "rmix"}, "method `rmix` needs saliency maps"),
    "empty saliency": (
        IMAGES, LABELS, {"method": "rmix", "saliency": torch.zeros(4, 8, 8)},
        "no saliency map of the batch has a finite value above zero; they came from `saliency`",
    ),
    "NaN saliency": (
        IMAGES, LABELS, {"method": "grafting", "saliency": torch.full((4, 8, 8), float("nan"))},
        "no saliency map of the batch has a finite value above zero",
    ),
    "saliency of another batch": (
        IMAGES, LABELS, {"method": "rmix", "saliency": torch.rand(5, 8, 8)},
        r"`saliency` must be \[B, h, w\] with B = 4",
    ),
    "small image": (IMAGES[:, :, :3], LABELS, {"method": "rmix", "saliency": torch.rand(4, 8, 8)}, "at least 4 pixels"),
    "no generator": (IMAGES, LABELS, {"generator": None}, "`generator` must be a CPU torch.Generator, got None"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_what_to_do(name: str) -> None:
    """Nothing of this may end in a wrong mix, or in an error from the inside of torch."""
    images, labels, options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        rlmix.mix(images, labels, **{"num_classes": 3, "generator": generator(), **options})  # type: ignore[arg-type]


def test_a_model_whose_gradients_vanish_is_named_as_the_provider() -> None:
    """A diverged or saturated net gives maps of zeros for the whole batch."""
    images, labels = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    nn.init.zeros_(model[1].weight)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="they came from rlmix.saliency.input_gradient"):
        rlmix.mix(images, labels, "rmix", num_classes=3, generator=generator(), model=model)


def test_parameters_beside_a_finished_method_are_refused() -> None:
    """They would be ignored in silence."""
    images, labels = batch()
    with pytest.raises(InputError, match=r"parameters \['alpha'\] were given beside a finished method"):
        rlmix.mix(images, labels, rlmix.methods.get("mixup"), num_classes=3, generator=generator(), alpha=1.0)


def test_values_are_not_read_when_asked_not_to() -> None:
    """On a GPU a read would make the host wait; `check=False` shows that none happens."""
    mixed = rlmix.mix(NAN, LABELS, "none", num_classes=3, generator=generator(), check=False)
    assert torch.isnan(mixed.images).sum() == 1
