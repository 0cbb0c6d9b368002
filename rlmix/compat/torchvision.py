"""`MixUp` and `CutMix` as torchvision.transforms.v2 has them, on rlmix plans. torchvision itself is not needed."""

from __future__ import annotations

import abc
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from rlmix._apply import apply
from rlmix._mix import check_class_numbers
from rlmix.errors import InputError
from rlmix.methods.registry import get
from rlmix.ops import rng
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

_REFUSED = ("BoundingBoxes", "Mask", "KeyPoints")


class NoImageError(InputError, TypeError):
    """A sample without an image or a video; torchvision raises a TypeError for it."""


class _AbstractBatchMix(nn.Module, abc.ABC):
    """What the two transforms share: finding images and labels in a sample, and mixing them with one plan."""

    _method: ClassVar[str]
    _copies_pixels: ClassVar[bool]
    """Whether every pixel of the result is one of the input, so that whole numbers stay exact."""

    def __init__(
        self,
        *,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels_getter: Callable[[Any], Any] | str | None = "default",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if labels_getter != "default" and labels_getter is not None and not callable(labels_getter):
            raise InputError(f"labels_getter should either be 'default', a callable, or None, but got {labels_getter}.")
        self.alpha = float(alpha)
        self.num_classes = num_classes
        self.labels_getter = labels_getter
        self.generator = generator
        self._mix = get(self._method, alpha=self.alpha, scope="batch")

    def forward(self, *inputs: Any) -> Any:
        """Mix the images (and videos) and the labels of a sample, and pass everything else through.

        Args:
            inputs: images and labels, or one sample of nested dictionaries, lists and tuples. Images are floating point
                [B, C, H, W] (videos [B, T, C, H, W]): all `tv_tensors.Image` and `Video`, or else the first tensor that
                is not the labels. Labels are whole numbers [B], or [B, C] with a value for each class.

        Returns:
            The sample in its own form, with labels [B, C], floating point.

        Raises:
            InputError: no labels, or images or labels of a wrong form.
        """
        sample = inputs if len(inputs) > 1 else inputs[0]
        leaves, form = tree_flatten(sample)
        self._refuse_other_kinds(leaves)
        labels = self._labels(sample)
        marked = [place for place, leaf in enumerate(leaves) if leaf is labels]
        if not marked:
            raise InputError("The labels must be a part of the sample: `labels_getter` returned another tensor.")
        images = _image_places(leaves, labels)
        if not images:
            raise NoImageError("No image or video was found in the sample.")
        sizes = sorted({tuple(leaves[place].shape[-2:]) for place in images})
        for place in images:
            self._check_image(leaves[place], labels.shape[0])
        if len(sizes) > 1:
            raise InputError(f"Found multiple HxW dimensions in the sample: {sizes}.")
        plan = self._draw(labels.shape[0], sizes[0], leaves[images[0]].device)
        for place in images:
            leaves[place] = _mixed(leaves[place], plan)
        for place in marked:
            leaves[place] = self._mixed_labels(labels, plan.to(labels.device))
        return tree_unflatten(leaves, form)

    def extra_repr(self) -> str:
        """Return the options, for `print`."""
        return f"alpha={self.alpha}, num_classes={self.num_classes}"

    def _draw(self, batch: int, size: tuple[int, int], device: torch.device) -> MixPlan:
        partners = torch.arange(batch, device=device).roll(1)
        streams = rng.streams_from(self.generator or torch.default_generator)
        return self._mix.plan(MixInputs(batch, *size, partners=partners), streams)

    def _labels(self, sample: Any) -> Tensor:
        """Return the labels of a sample, checked but for their values."""
        getter = _find_labels if self.labels_getter == "default" else self.labels_getter
        labels = getter(sample) if callable(getter) else None
        if not isinstance(labels, Tensor):
            raise InputError(f"The labels must be a tensor, but got {type(labels)} instead.")
        if labels.dim() not in (1, 2):
            raise InputError(
                "labels should be index based with shape (batch_size,) or probability based with shape "
                f"(batch_size, num_classes), but got a tensor of shape {labels.shape} instead."
            )
        if labels.dim() == 1 and self.num_classes is None:
            raise InputError("num_classes must be passed if the labels are index-based (1D)")
        if labels.dim() == 2 and self.num_classes not in (None, labels.shape[1]):
            raise InputError(
                "When passing 2D labels, the number of elements in last dimension must match num_classes: "
                f"{labels.shape[1]} != {self.num_classes}. You can leave num_classes to None."
            )
        if labels.dim() == 1 and self.num_classes is not None:
            check_class_numbers(labels, self.num_classes)
        return labels

    def _mixed_labels(self, labels: Tensor, plan: MixPlan) -> Tensor:
        if labels.dim() == 1 and self.num_classes is not None:
            return plan.soft_targets(labels, self.num_classes)
        dtype = labels.dtype if labels.is_floating_point() else torch.float32
        return plan.mix_targets(labels.to(dtype)).to(dtype)

    def _check_image(self, image: Tensor, batch: int) -> None:
        expected = 5 if _is_video(image) else 4
        if image.dim() != expected:
            raise InputError(
                f"Expected a batched input with {expected} dims, but got {image.dim()} dimensions instead."
            )
        if image.shape[0] != batch:
            raise InputError(
                "The batch size of the image or video does not match the batch size of the labels: "
                f"{image.shape[0]} != {batch}."
            )
        if not image.is_floating_point() and not self._copies_pixels:
            raise InputError(f"the images must be floating point, got {image.dtype}. Use images.float() / 255.")

    def _refuse_other_kinds(self, leaves: list[Any]) -> None:
        kinds = [getattr(_loaded("torchvision.tv_tensors"), name, None) for name in _REFUSED]
        kinds.append(getattr(_loaded("PIL.Image"), "Image", None))
        refused = tuple(kind for kind in kinds if kind is not None)
        if any(isinstance(leaf, refused) for leaf in leaves):
            raise InputError(
                f"{type(self).__name__}() does not support PIL images, bounding boxes, keypoints and masks. Masks "
                "follow their images by plan.apply_mask (rlmix.MixPlan)."
            )


@final
class MixUp(_AbstractBatchMix):
    """Blend each image of a batch with the one before it, and the labels likewise, by one weight for the batch.

    Takes the place of `torchvision.transforms.v2.MixUp` (https://docs.pytorch.org/vision/, as of version 0.29). Source
    of the method: https://arxiv.org/abs/1710.09412. An image that stands after its labels in a sample is mixed too.

    Args:
        alpha: concentration of the Beta distribution, above 0.
        num_classes: C; may be None where labels are [B, C].
        labels_getter: where the labels are: a function of the sample, or "default": the second of a pair, or the entry
            of a dictionary (itself or the second of a pair) whose name holds "label".
        generator: a CPU generator; None takes one key a call from torch's default one, so that `torch.manual_seed`
            alone makes a training repeatable.

    Raises:
        InputError: `labels_getter` is something else.
        MethodError: `alpha` out of its range.

    Example:
        >>> import torch
        >>> from rlmix.compat.torchvision import MixUp
        >>> images, targets = MixUp(num_classes=10)(torch.rand(4, 3, 8, 8), torch.arange(4))
        >>> targets.shape
        torch.Size([4, 10])
    """

    _method = "mixup"
    _copies_pixels = False


@final
class CutMix(_AbstractBatchMix):
    """Paste one box, the same for the batch, of the image before; the label follows the area that is really covered.

    Takes the place of `torchvision.transforms.v2.CutMix` (https://docs.pytorch.org/vision/, as of version 0.29). Source
    of the method: https://arxiv.org/abs/1905.04899. An image that stands after its labels in a sample is mixed too.
    Whole-number images are taken as well, since their pixels are only copied.

    Args:
        alpha: concentration of the Beta distribution, above 0.
        num_classes: C; may be None where labels are [B, C].
        labels_getter: where the labels are: a function of the sample, or "default": the second of a pair, or the entry
            of a dictionary (itself or the second of a pair) whose name holds "label".
        generator: a CPU generator; None takes one key a call from torch's default one, so that `torch.manual_seed`
            alone makes a training repeatable.

    Raises:
        InputError: `labels_getter` is something else.
        MethodError: `alpha` out of its range.
    """

    _method = "cutmix"
    _copies_pixels = True


def _loaded(module: str) -> Any:
    """Return a module if something has imported it: before that nothing can be of its types."""
    return sys.modules.get(module)


def _is_video(image: Tensor) -> bool:
    vision = _loaded("torchvision.tv_tensors")
    return vision is not None and isinstance(image, vision.Video)


def _image_places(leaves: list[Any], labels: Tensor) -> list[int]:
    """Return which leaves are images: all that say so, or else the first tensor that is not the labels."""
    tensors = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf is not labels]
    vision = _loaded("torchvision.tv_tensors")
    named = [place for place in tensors if vision is not None and isinstance(leaves[place], vision.TVTensor)]
    return named or tensors[:1]


def _mixed(image: Tensor, plan: MixPlan) -> Tensor:
    """Mix images or videos, of any dtype, and return them as the type that they came as."""
    pixels = image.as_subclass(Tensor)
    frames = pixels.flatten(1, 2) if pixels.dim() == 5 else pixels
    # Whole numbers stay exact: each pixel is a copy then, and a float64 holds them up to 2**53.
    floating = frames if frames.is_floating_point() else frames.double()
    mixed = apply(floating, plan).to(frames.dtype).reshape(pixels.shape)
    return mixed if type(image) is Tensor else _loaded("torchvision.tv_tensors").wrap(mixed, like=image)


def _find_labels(sample: Any) -> Any:
    """Return the labels by the form of the sample: a pair, or a dictionary (alone or second of a pair)."""
    found = sample
    if isinstance(sample, list | tuple):
        found = sample[1] if len(sample) > 1 else None
    if isinstance(found, Tensor):
        return found
    if not isinstance(found, Mapping):
        raise InputError(
            "When using the default labels_getter, the input passed to forward must be a dictionary or a two-tuple "
            f"whose second item is a dictionary or a tensor, but got {type(sample)} instead."
        )
    names = [name for name in found if isinstance(name, str) and "label" in name.lower()]
    exact = [name for name in names if name.lower() == "labels"]
    if not names:
        raise InputError(
            "Could not infer where the labels are in the sample. Try passing a callable as the labels_getter parameter?"
        )
    return found[(exact or names)[0]]
