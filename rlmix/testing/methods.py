"""What every mix method promises, as a pytest class.

A method of your own is tested by a subclass with a fixture:

    class TestMyMix(MethodContract):
        @pytest.fixture
        def method(self):
            return MyMix(strength=0.5)
"""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from rlmix._apply import apply
from rlmix._mix import mix
from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams, derive
from rlmix.plan import MixPlan
from rlmix.types import MixInputs

READ_BACKS = (
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.item",
    "aten.masked_select",
    "aten.nonzero",
    "aten.unique",
    "aten.repeat_interleave.Tensor",
)
"""Operations whose result the host has to wait for (by the start of their names)."""

SIZES = ((32, 32), (7, 10), (16, 5))


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count tensor operations, and list those that read a device.

    Attributes:
        counts: operation name -> number of calls; views are not counted.
        read_backs: names of operations that wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, int] = {}
        self.read_backs: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record one operation and run it."""
        name = str(func)
        if not func.is_view:
            self.counts[name] = self.counts.get(name, 0) + 1
        indexed_by_mask = name.startswith(("aten.index.", "aten.index_put")) and any(
            isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name.startswith(READ_BACKS) or indexed_by_mask:
            self.read_backs.append(name)
        return func(*args, **(kwargs or {}))


def batch_of(
    count: int, size: tuple[int, int], *, groups: int = 1, seed: int = 0, channels: int = 3
) -> tuple[Tensor, Tensor, MixInputs]:
    """Return images float32 [B, channels, H, W], labels 0..B-1 (all different) and inputs with saliency maps."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, *size, generator=generator)
    saliency = torch.rand(count, *size, generator=generator)
    labels = torch.arange(count)
    return images, labels, MixInputs(count, *size, groups=groups, saliency=saliency, images=images, labels=labels)


def sources_seen(plan: MixPlan) -> Tensor:
    """Return how much of each source is seen at each pixel: [B, B, H, W], by mixing images that are one-hot."""
    marks = torch.eye(plan.batch_size).view(plan.batch_size, plan.batch_size, 1, 1)
    return apply(marks.expand(-1, -1, *plan.size).contiguous(), plan)


def _numpy_state() -> tuple[int, bytes]:
    """Return NumPy's global random state: where it stands, and its words."""
    state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  (the state under test)
    return int(state["pos"]), state["key"].tobytes()


class MethodContract:
    """The promises of `rlmix.methods.AbstractMethod`; give the fixture `method`."""

    @pytest.fixture
    def method(self) -> AbstractMethod:
        """Return the method under test."""
        raise NotImplementedError

    def test_an_unmixed_row_has_the_bits_of_its_input(self, method: AbstractMethod) -> None:
        """With probability 0 nothing may touch an image or its label."""
        images, labels, inputs = batch_of(9, (32, 32))
        unmixed = dataclasses.replace(method, probability=0.0)
        for key in range(4):
            plan = unmixed.plan(inputs, Streams([key]))
            assert torch.equal(apply(images, plan), images)
            assert torch.equal(plan.soft_targets(labels, 9), torch.eye(9))
            assert torch.equal(plan.lam, torch.ones(9))

    def test_a_probability_leaves_that_share_of_the_rows_unmixed(self, method: AbstractMethod) -> None:
        """The rows left out keep their bits, the others are those of the method with probability 1."""
        images, _, inputs = batch_of(400, (8, 8), groups=100)
        streams = Streams([derive(3, group) for group in range(100)])
        whole = apply(images, method.plan(inputs, streams))
        some = apply(images, dataclasses.replace(method, probability=0.25).plan(inputs, streams))
        mixed = (some != images).flatten(1).any(1)
        assert torch.equal(some[mixed], whole[mixed])
        # Binomial(400, 1/4) and four times Binomial(100, 1/4) lie below these but for a probability of 1e-6.
        assert int(mixed.sum()) < (160 if method.scope == "image" else 200)

    @pytest.mark.parametrize("size", SIZES)
    def test_label_rows_sum_to_one_and_give_lam_to_the_own_label(
        self, method: AbstractMethod, size: tuple[int, int]
    ) -> None:
        """All labels are different, so the own entry of a row is lam and nothing else."""
        _, labels, inputs = batch_of(16, size)
        for key in range(6):
            plan = method.plan(inputs, Streams([key]))
            targets = plan.soft_targets(labels, 16)
            sums = targets.sum(1)
            single = plan.partners.dim() == 2 and plan.partners.shape[1] <= 1
            assert torch.equal(sums, torch.ones(16)) if single else torch.allclose(sums, torch.ones(16), atol=1e-6)
            assert targets.dtype == torch.float32
            assert bool((targets >= 0).all())
            assert torch.allclose(targets.diagonal(), plan.lam, atol=1e-6)
            assert bool(((plan.lam >= 0) & (plan.lam <= 1)).all())

    @pytest.mark.parametrize("size", SIZES)
    def test_pixels_come_from_the_sources_in_the_shares_that_lam_says(
        self, method: AbstractMethod, size: tuple[int, int]
    ) -> None:
        """Counted on one-hot images: weights sum to 1 in every pixel, and lam is the own share of the pixels."""
        _, _, inputs = batch_of(12, size)
        for key in range(6):
            plan = method.plan(inputs, Streams([key]))
            seen = sources_seen(plan)
            assert torch.allclose(seen.sum(1), torch.ones(12, *size), atol=1e-6)
            if method.labels_by_area:
                own = seen.diagonal(dim1=0, dim2=1).double().mean((0, 1))
                assert torch.allclose(own, plan.lam.double(), atol=1e-6)
                assert torch.allclose(
                    seen.double().mean((2, 3)), plan.soft_targets(torch.arange(12), 12).double(), atol=1e-6
                )

    def test_pairs_say_what_soft_targets_say(self, method: AbstractMethod) -> None:
        """Losses by class number and losses by distribution must agree."""
        _, labels, inputs = batch_of(10, (8, 8))
        plan = method.plan(inputs, Streams([5]))
        targets = torch.zeros(10, 10)
        for classes, weights in plan.pairs(labels):
            assert classes.dtype == torch.int64
            targets[torch.arange(10), classes] += weights
        assert torch.allclose(targets, plan.soft_targets(labels, 10), atol=1e-6)

    def test_the_same_generator_gives_the_same_plan(self, method: AbstractMethod) -> None:
        """A run must be repeatable from its seed."""
        _, _, inputs = batch_of(10, (8, 8))
        plans = [method.draw(inputs, generator=torch.Generator().manual_seed(11)) for _ in range(2)]
        assert plans[0].equal(plans[1])

    @pytest.mark.parametrize("groups", [1, 3, 8])
    def test_a_group_gets_the_same_plan_whatever_stands_beside_it(self, method: AbstractMethod, groups: int) -> None:
        """What a classifier of a pool gets depends neither on N nor on its place."""
        size = 6
        images, labels, inputs = batch_of(groups * size, (8, 8), groups=groups)
        assert inputs.saliency is not None
        keys = [derive(7, group) for group in range(groups)]
        whole = method.plan(inputs, Streams(keys))
        mixed, targets = apply(images, whole), whole.soft_targets(labels, groups * size)
        for group in range(groups):
            rows = slice(group * size, (group + 1) * size)
            given = MixInputs(size, 8, 8, saliency=inputs.saliency[rows], images=images[rows])
            alone = method.plan(given, Streams([keys[group]]))
            assert torch.equal(apply(images[rows], alone), mixed[rows])
            assert torch.equal(alone.soft_targets(torch.arange(size), size), targets[rows, rows])

    def test_the_global_random_state_is_untouched(self, method: AbstractMethod) -> None:
        """A mix must not change what the rest of a training draws."""
        images, labels, inputs = batch_of(6, (8, 8))
        before = torch.get_rng_state(), _numpy_state()
        mix(images, labels, method, num_classes=6, generator=torch.Generator().manual_seed(0), saliency=inputs.saliency)
        assert torch.equal(before[0], torch.get_rng_state())
        assert before[1] == _numpy_state()

    def test_inputs_are_never_written(self, method: AbstractMethod) -> None:
        """The caller's images, labels and maps stay as they were; the result shares no memory with them."""
        images, labels, inputs = batch_of(6, (8, 8))
        assert inputs.saliency is not None
        copies = images.clone(), labels.clone(), inputs.saliency.clone()
        plan = method.plan(inputs, Streams([1]))
        mixed = apply(images, plan)
        assert torch.equal(mixed, apply(images, plan))
        plan.soft_targets(labels, 6)
        mixed.zero_()
        assert all(map(torch.equal, copies, (images, labels, inputs.saliency)))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
    def test_dtype_device_and_memory_format_are_kept(
        self, method: AbstractMethod, dtype: torch.dtype, memory_format: torch.memory_format
    ) -> None:
        """Labels stay float32 whatever the images are; values agree with float64 within the dtype's precision."""
        images, labels, inputs = batch_of(6, (12, 8))
        given = images.to(dtype).contiguous(memory_format=memory_format)
        plan = method.plan(inputs, Streams([2]))
        mixed = apply(given, plan)
        assert mixed.dtype == dtype
        assert mixed.device == given.device
        assert mixed.is_contiguous(memory_format=memory_format)
        assert plan.soft_targets(labels, 6).dtype == torch.float32
        exact = apply(given.double(), plan)
        assert torch.allclose(mixed.double(), exact, atol=8 * torch.finfo(dtype).eps, rtol=8 * torch.finfo(dtype).eps)

    def test_a_single_image_comes_back_as_it_is(self, method: AbstractMethod) -> None:
        """The last batch of an epoch may hold one image, whose only partner is itself."""
        images, labels, inputs = batch_of(1, (8, 8))
        for key in range(4):
            plan = method.plan(inputs, Streams([key]))
            assert torch.allclose(apply(images, plan), images, atol=1e-6)
            assert torch.allclose(plan.soft_targets(labels, 1), torch.ones(1, 1))
            assert torch.allclose(plan.lam, torch.ones(1))

    def test_gradients_flow_to_the_images(self, method: AbstractMethod) -> None:
        """`apply` is linear: its gradient is the credit that the plan gives."""
        images, _, inputs = batch_of(5, (6, 8), channels=1)
        plan = method.plan(inputs, Streams([4]))
        leaf = images.clone().requires_grad_()
        weights = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(9))
        (gradient,) = torch.autograd.grad(apply(leaf, plan).squeeze(1), leaf, weights)
        assert torch.allclose(gradient.squeeze(1), plan.credit(weights), atol=1e-6)
        seen = sources_seen(plan)
        owed = torch.einsum("bshw,bhw->shw", seen, weights)
        assert torch.allclose(gradient.sum((1, 2, 3)), owed.sum((1, 2)), atol=1e-4)
        if plan.moves is None and plan.place is None:
            assert torch.allclose(gradient.squeeze(1), owed, atol=1e-5)

    def test_the_number_of_operations_does_not_grow_with_the_batch_and_nothing_is_read_back(
        self, method: AbstractMethod
    ) -> None:
        """A loop over images, or a read from the device, would make a GPU wait.

        A method that says that its operations grow may need some more of them for each row, the same for every row.
        """
        counted = []
        least = max(4, method.rows_together)
        for count in (least, 2 * least, 3 * least) if method.operations_grow else (least, 3 * least):
            images, labels, inputs = batch_of(count, (8, 8))
            streams = Streams([6])
            # What is the same for all batches of a size is kept from the first one; counted too, since compiled code
            # for the CPU, which runs where nobody counts, keeps nothing for the tensor code.
            with OperationCounter():
                method.plan(inputs, streams)
            with OperationCounter() as counter:
                plan = method.plan(inputs, streams)
                apply(images, plan)
                plan.soft_targets(labels, count)
            assert counter.read_backs == []
            counted.append(counter.counts)
        if method.operations_grow:
            grown = [{name: more.get(name, 0) - less.get(name, 0) for name in more} for less, more in pairwise(counted)]
            assert grown[0] == grown[1]
        else:
            assert counted[0] == counted[1]

    @pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
    def test_a_single_broken_saliency_map_harms_nothing(self, method: AbstractMethod, broken: float) -> None:
        """One saturated image must not stop a training: its map counts as uniform."""
        images, labels, inputs = batch_of(6, (8, 8))
        assert inputs.saliency is not None
        maps = inputs.saliency.clone()
        maps[2] = broken
        for key in range(4):
            plan = method.plan(dataclasses.replace(inputs, saliency=maps), Streams([key]))
            assert bool(torch.isfinite(apply(images, plan)).all())
            targets = plan.soft_targets(labels, 6)
            assert torch.allclose(targets.sum(1), torch.ones(6), atol=1e-6)

    def test_half_precision_and_coarse_maps_serve(self, method: AbstractMethod) -> None:
        """Providers differ in resolution and dtype."""
        images, _, inputs = batch_of(6, (32, 32))
        for maps in (torch.rand(6, 4, 4), torch.rand(6, 5, 7).half(), torch.rand(6, 32, 32).bfloat16()):
            plan = method.plan(dataclasses.replace(inputs, saliency=maps), Streams([1]))
            assert bool(torch.isfinite(apply(images, plan)).all())

    def test_it_says_where_it_comes_from(self, method: AbstractMethod) -> None:
        """A method without a source cannot be checked by a reader."""
        assert "https://" in (type(method).__doc__ or "")
        assert "https://" in type(method).source
