"""The controller in ordinary training loops."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from rlmix._files import equal_trees, load_tree, save_tree
from rlmix._mix import mix
from rlmix.errors import CheckpointError, InputError, PolicyError, UnknownNameError
from rlmix.methods import registry
from rlmix.methods.method import AbstractMethod
from rlmix.ops.rng import Streams, derive
from rlmix.plan import MixPlan
from rlmix.policy.artifact import LearnedPolicy, save
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.controller import MixController
from rlmix.policy.decision import Decision
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.policy.probe import forward
from rlmix.policy.signals import Context, History, names, signals
from rlmix.policy.sources import Schedule
from rlmix.saliency import Detector, SaliencyBank, fine_grained, input_gradient
from rlmix.types import MixInputs

CLASSES, SIZE, STEPS, HORIZON = 10, 32, 48, 8
V0 = catalogue("v0")


def learned(seed: int = 0, entries: Catalogue = V0) -> LearnedPolicy:
    """Return a policy that reads everything and whose choice depends on it."""
    generator, observed = torch.Generator().manual_seed(seed), names(entries)

    def layers(*widths: int) -> Layers:
        return tuple(
            (torch.randn(two, one, generator=generator) * 2 / one**0.5, torch.zeros(two))
            for one, two in itertools.pairwise(widths)
        )

    return LearnedPolicy(
        network=PolicyNetwork(actor=layers(len(observed), 32, len(entries))),
        observation_names=observed,
        low=torch.full((len(observed),), -5.0),
        high=torch.full((len(observed),), 5.0),
        catalogue=entries,
        horizon=HORIZON,
        card={},
    )


POLICY = learned()


def always(name: str) -> LearnedPolicy:
    """Return a policy that reads one entry and always prefers `name`."""
    bias = torch.zeros(len(V0))
    bias[V0.index(name)] = 5.0
    actor = ((torch.zeros(len(V0), 1), bias),)
    return replace(
        POLICY,
        network=PolicyNetwork(actor=actor),
        observation_names=("time/progress",),
        low=torch.tensor([-0.5]),
        high=torch.tensor([0.5]),
    )


@dataclass
class Loop:
    """An ordinary training on random images."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    images: Tensor
    labels: Tensor

    @classmethod
    def new(cls) -> Loop:
        torch.manual_seed(5)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return cls(model, optimizer, torch.rand(600, 1, 8, 8), torch.randint(CLASSES, (600,)))

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        rows = self.ids(step)
        return self.images[rows], self.labels[rows]

    @property
    def validation(self) -> tuple[Tensor, Tensor]:
        return self.images[400:], self.labels[400:]

    def ids(self, step: int) -> Tensor:
        return torch.arange(step * SIZE, (step + 1) * SIZE) % 400

    def run(self, mixer: MixController, steps: range, *, model: bool = True) -> list[tuple[Tensor, Tensor]]:
        mixed = []
        for step in steps:
            images, labels = self.batch(step)
            mixed.append(mixer(images, labels, model=self.model if model else None, ids=self.ids(step)))
            loss = functional.cross_entropy(self.model(mixed[-1][0]), mixed[-1][1])
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            mixer.observe(loss=loss, lr=0.1)
        return mixed

    def state(self) -> dict[str, Any]:
        return {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state_dict()["state"]}


def controller(source: Any = POLICY, **changes: Any) -> MixController:
    arguments = {"num_classes": CLASSES, "total_steps": STEPS, "seed": 3, **changes}
    return MixController(source, **arguments)


def equal(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one, two) for pair in zip(first, second, strict=True) for one, two in zip(*pair, strict=True)
    )


@pytest.mark.parametrize("name", [name for name in registry.names() if name != "uniform"])
def test_a_fixed_method_mixes_as_mix_does_with_the_key_of_the_step(name: str) -> None:
    """The pool draws with the same keys: what is trained and what is deployed must mix alike."""
    loop, mixer = Loop.new(), controller(name)
    for step in range(3):
        images, labels = loop.batch(step)
        found = mixer(images, labels, model=loop.model)
        keys = Streams([derive(3, 1, step)])
        expected = mix(images, labels, name, num_classes=CLASSES, generator=keys, model=loop.model)
        assert torch.equal(found[0], expected.images)
        assert torch.equal(found[1], expected.targets)
    assert mixer.decisions == [(0, Decision(name))]
    assert mixer.probabilities is None
    assert mixer.observation is None


def test_a_policy_decides_at_its_points_and_then_no_more() -> None:
    """H decisions, evenly spread; a training that goes on keeps the last."""
    loop = Loop.new()
    mixer = controller(num_examples=400, validation=loop.validation)
    assert (mixer.decision, mixer.decisions) == (None, [])
    loop.run(mixer, range(STEPS + 5))
    assert [step for step, _ in mixer.decisions] == [number * STEPS // HORIZON for number in range(HORIZON)]
    assert mixer.decision == mixer.decisions[-1][1]
    assert len({decision for _, decision in mixer.decisions}) > 1, "this policy reacts to what it reads"
    shares = mixer.probabilities
    assert shares is not None
    assert tuple(shares) == V0.names
    assert sum(shares.values()) == pytest.approx(1.0)
    assert V0.decisions[V0.index(max(shares, key=lambda name: shares[name]))] == mixer.decision


@pytest.mark.parametrize("validation", [True, False])
def test_observations_are_those_of_the_signals_themselves(validation: bool) -> None:
    """The controller adds only the collecting: written out here in a few lines, with whole lists."""
    loop = Loop.new()
    mixer = controller(num_examples=400, validation=loop.validation if validation else None)
    context = Context.of(
        1,
        total_steps=STEPS,
        num_examples=400,
        batch_size=SIZE,
        num_classes=CLASSES,
        height=8,
        width=8,
        num_params=sum(part.numel() for part in loop.model.parameters()),
    )
    history, interval = History.initial(1, V0), STEPS // HORIZON
    for step in range(STEPS):
        batch = loop.batch(step)
        mixed, targets = mixer(*batch, model=loop.model)
        if step % interval == 0:
            recent = [loop.batch(earlier) for earlier in range(step, max(-1, step - 4), -1)]
            images, labels = (torch.cat(parts) for parts in zip(*recent, strict=True))
            probe = (forward(loop.model, images).unsqueeze(0), labels.unsqueeze(0), None)
            val = (forward(loop.model, loop.images[400:]).unsqueeze(0), loop.labels[400:].unsqueeze(0), None)
            expected = signals(context, history, step, probe=probe, val=val if validation else None, catalogue=V0)
            assert mixer.observation is not None
            assert torch.allclose(mixer.observation, expected[0], atol=1e-6)
            assert mixer.decision == V0.decisions[int(POLICY.act(expected))]
            history.record(POLICY.act(expected), interval)
        loss = functional.cross_entropy(loop.model(mixed), targets)
        loss.backward()
        loop.optimizer.step()
        loop.optimizer.zero_grad()
        mixer.observe(loss=loss, lr=0.1)
        history.add_loss(loss.reshape(1), half=int(step % interval >= interval / 2), lr=0.1)


def test_equal_seeds_mix_equally_and_others_do_not() -> None:
    """A training is repeated by its seed."""
    runs = [Loop.new().run(controller(seed=seed), range(STEPS)) for seed in (3, 3, 4)]
    assert equal(runs[0], runs[1])
    assert not equal(runs[0], runs[2])


@pytest.mark.parametrize("interrupted", [1, 5, 6, 9, 11, 12, 40])
@pytest.mark.parametrize("explore", [False, True])
def test_a_resumed_training_goes_on_as_if_nothing_had_happened(tmp_path: Path, interrupted: int, explore: bool) -> None:
    """Same decisions, same mixing: also just before and after a decision, where recent images count."""
    straight, whole = Loop.new(), controller(num_examples=400, validation=Loop.new().validation, explore=explore)
    expected = straight.run(whole, range(STEPS))

    loop = Loop.new()
    first = controller(num_examples=400, validation=loop.validation, explore=explore)
    before = loop.run(first, range(interrupted))
    save_tree(tmp_path / "checkpoint", first.state_dict())
    loop.run(first, range(interrupted, interrupted + 2))  # what was done after the checkpoint is lost
    again = Loop.new()
    again.run(controller(num_examples=400, validation=loop.validation, explore=explore), range(interrupted))
    second = controller(num_examples=400, validation=loop.validation, explore=explore)
    second.load_state_dict(load_tree(tmp_path / "checkpoint"))
    after = again.run(second, range(interrupted, STEPS))
    assert equal(before + after, expected)
    assert second.decisions == whole.decisions
    assert second.probabilities == whole.probabilities
    assert second.close() == whole.close()


@pytest.mark.parametrize("source", ["mixup", Schedule([(0, "cutmix"), (0.5, "mixup")])])
def test_sources_that_do_not_look_are_resumed_too(source: Any) -> None:
    """The step alone decides; it must come back."""
    expected = Loop.new().run(controller(source), range(STEPS))
    loop, first, second = Loop.new(), controller(source), controller(source)
    before = loop.run(first, range(10))
    second.load_state_dict(first.state_dict())
    assert equal(before + loop.run(second, range(10, STEPS)), expected)


def test_a_state_does_not_change_when_training_goes_on(tmp_path: Path) -> None:
    """Checkpoints are often written later, or by another thread."""
    loop, mixer = Loop.new(), controller()
    loop.run(mixer, range(10))
    state = mixer.state_dict()
    save_tree(tmp_path / "state", state)
    loop.run(mixer, range(10, 20))
    assert equal_trees(load_tree(tmp_path / "state"), state)
    assert len(state["decisions"]) == 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"seed": 4}, "its `seed` is 3, here 4"),
        ({"total_steps": 50}, "its `source` is|its `total_steps` is 48, here 50"),
        ({"num_classes": 11}, "its `num_classes` is 10, here 11"),
        ({"source": "mixup"}, "belongs to another training: its `source`"),
    ],
)
def test_a_state_of_another_training_is_refused(change: dict[str, Any], match: str) -> None:
    """Going on with other random numbers or another catalogue would look like a resumed training."""
    state = controller().state_dict()
    with pytest.raises(CheckpointError, match=match):
        controller(**change).load_state_dict(state)


def test_a_damaged_state_is_refused() -> None:
    """A checkpoint of an older program lacks keys."""
    state = controller().state_dict()
    del state["step"]
    with pytest.raises(CheckpointError, match="damaged .*'step'"):
        controller().load_state_dict(state)
    with pytest.raises(CheckpointError, match="damaged"):
        controller().load_state_dict({**controller().state_dict(), "decisions": [(0, "{")]})


def entry(mixer: MixController, name: str) -> float:
    assert mixer.observation is not None
    return float(mixer.observation[POLICY.observation_names.index(name)])


def test_every_source_of_signals_may_be_missing() -> None:
    """The policy works without each of them, and is told that they are missing."""
    loop, cheap = Loop.new(), catalogue("cheap").names
    mixer = controller()
    for step in range(STEPS):
        mixer(*loop.batch(step))
    assert {name: entry(mixer, name) for name in ("has/model", "has/val", "has/n", "has/history")} == {
        "has/model": 0.0,
        "has/val": 0.0,
        "has/n": 0.0,
        "has/history": 0.0,
    }
    assert all(decision in [V0.decisions[V0.index(name)] for name in cheap] for _, decision in mixer.decisions)

    mixer = controller(num_examples=400, validation=lambda: loop.validation)
    loop.run(mixer, range(STEPS))
    assert [entry(mixer, name) for name in ("has/model", "has/val", "has/n", "has/history")] == [1, 1, 1, 1]


def test_methods_with_saliency_need_the_model() -> None:
    """Without it the policy chooses among the others; where nothing else is left, it says so."""
    loop, mixer = Loop.new(), controller(always("rmix"))
    mixer(*loop.batch(0), model=loop.model)
    assert mixer.decision == Decision("rmix")
    mixer = controller(always("rmix"))
    mixer(*loop.batch(0))
    assert mixer.decision == Decision("none")
    with pytest.raises(InputError, match="`rmix`: needs saliency, and nothing else can be chosen. .* model=model"):
        controller("rmix")(*loop.batch(0))
    with pytest.raises(InputError, match="`rmix`, `grafting-1`: needs saliency"):
        controller(always("none"), allow=["rmix", "grafting-1"])(*loop.batch(0))


def test_only_allowed_entries_are_chosen() -> None:
    """Users switch off what their data cannot stand."""
    loop, mixer = Loop.new(), controller(always("rmix"), allow=["cutmix-1"])
    mixer(*loop.batch(0), model=loop.model)
    assert mixer.decision == Decision("cutmix", {"alpha": 1.0})
    assert mixer.probabilities == {name: float(name == "cutmix-1") for name in V0.names}
    with pytest.raises(UnknownNameError, match="`allow` names `cutmix`, which is no entry .* Did you mean `cutmix-1`"):
        controller(allow=["cutmix"])
    with pytest.raises(InputError, match="`allow` names no entry"):
        controller(allow=[])
    mixer = controller(Schedule([(0, "none"), (0.5, "mixup")]), allow=["none"])
    with pytest.raises(InputError, match="`mixup` is not among `allow`"):
        loop.run(mixer, range(STEPS), model=False)


def test_a_schedule_changes_at_its_steps() -> None:
    """Decided by progress, with nothing observed."""
    mixer, loop = controller(Schedule([(0, "cutmix"), (0.75, "none")])), Loop.new()
    loop.run(mixer, range(STEPS), model=False)
    assert mixer.decisions == [(0, Decision("cutmix")), (36, Decision("none"))]


class Counting(nn.Module):
    """Counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(64, CLASSES), 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        logits: Tensor = self.linear(images.flatten(1))
        return logits


@pytest.mark.parametrize("source", ["cutmix", Schedule([(0, "cutmix"), (0.5, "none")])])
def test_sources_that_do_not_look_cost_no_forward(source: Any) -> None:
    """Observing for nobody would cost a few per cent of a training."""
    model, mixer, loop = Counting(), controller(source), Loop.new()
    for step in range(STEPS):
        mixer(*loop.batch(step), model=model)
        mixer.observe(loss=1.0, lr=0.1)
    assert model.calls == 0


def test_a_policy_looks_only_at_its_decisions() -> None:
    """128 images, and the validation batch in parts of 256, at each of 8 decisions."""
    model, loop = Counting(), Loop.new()
    mixer = controller(
        learned(entries=catalogue("cheap")), validation=(torch.rand(300, 1, 8, 8), torch.zeros(300).long())
    )
    for step in range(STEPS):
        mixer(*loop.batch(step), model=model)
    assert model.calls == HORIZON * 3


def test_short_trainings_decide_at_every_step() -> None:
    """With fewer steps than decisions, no step is decided twice."""
    mixer, loop = controller(total_steps=3), Loop.new()
    loop.run(mixer, range(3))
    assert [step for step, _ in mixer.decisions] == [0, 1, 2]


def test_losses_may_be_told_in_any_form_and_place() -> None:
    """As a tensor with a graph, as one of a half precision, as a number, per sample, before the first batch."""
    loop, mixer = Loop.new(), controller()
    mixer.observe(loss=2.0)
    mixer.observe(lr=torch.tensor(0.1))
    losses: list[Tensor | float] = [
        torch.tensor(2.0, requires_grad=True),
        torch.tensor(2.0).half(),
        2,
        torch.full((4,), 2.0),
    ]
    for step, loss in enumerate(losses):
        mixer(*loop.batch(step), model=loop.model)
        mixer.observe(loss=loss, lr=0.1)
    mixer.observe()
    for step in range(4, 7):
        mixer(*loop.batch(step), model=loop.model)
    assert entry(mixer, "loss/mean") == pytest.approx(2.0 / torch.tensor(10.0).log().item() - 1)
    assert entry(mixer, "time/lr") == pytest.approx(1.0)


def test_the_last_small_batch_does_not_change_the_batch_size() -> None:
    """Loaders give a smaller batch at the end of an epoch; a decision there must not see another training."""
    loop, mixer, seen = Loop.new(), controller(num_examples=400), []
    for step in range(13):
        images, labels = loop.batch(step)
        size = 3 if step % 6 == 0 and step else SIZE
        mixer(images[:size], labels[:size], model=loop.model)
        seen.append(entry(mixer, "context/batch"))
    assert set(seen) == {-0.25}


def test_inputs_are_never_written_and_gradients_flow() -> None:
    """The loop may use its batch afterwards."""
    loop, mixer = Loop.new(), controller()
    images, labels = (tensor.clone() for tensor in loop.batch(0))
    before = images.clone(), labels.clone()
    images.requires_grad_()
    mixed, targets = mixer(images, labels, model=loop.model)
    assert torch.equal(images.detach(), before[0])
    assert torch.equal(labels, before[1])
    assert targets.shape == (SIZE, CLASSES)
    functional.cross_entropy(loop.model(mixed), targets).backward()
    assert images.grad is not None


def test_the_global_random_state_stays() -> None:
    """Using a controller must not change anything else of a training."""
    loop, mixer = Loop.new(), controller(explore=True)
    state = torch.random.get_rng_state()
    for step in range(8):
        mixer(*loop.batch(step), model=loop.model)
    assert torch.equal(torch.random.get_rng_state(), state)


def good() -> tuple[Tensor, Tensor]:
    return torch.rand(4, 1, 8, 8), torch.arange(4)


@pytest.mark.parametrize("source", ["mixup", POLICY])
@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x[0], y), r"`images` must be \[B, C, H, W\]"),
        (lambda x, y: (x[:0], y[:0]), r"`images` must be \[B, C, H, W\] with B at least 1"),
        (lambda x, y: ((x * 255).byte(), y), "`images` must be floating point"),
        (lambda x, y: (x * torch.nan, y), "`images` hold values that are not finite"),
        (lambda x, y: (x, y[:2]), r"`labels` must be \[4\]"),
        (lambda x, y: (x, y.float()), r"`labels` must be whole numbers"),
        (lambda x, y: (x, y + 8), r"`labels` must be in \[0, 10\), got values from 8 to 11"),
        (lambda x, y: (x, y - 1), r"`labels` must be in \[0, 10\), got values from -1 to 2"),
    ],
)
def test_bad_batches_are_refused_and_do_not_count(
    source: Any, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], match: str
) -> None:
    """Also at a decision, where the batch is looked at first; the next good batch is still step 0."""
    loop, mixer = Loop.new(), controller(source)
    with pytest.raises(InputError, match=match):
        mixer(*change(*good()), model=loop.model)
    fresh, batch = controller(source), good()
    assert equal([mixer(*batch, model=loop.model)], [fresh(*batch, model=loop.model)])
    assert mixer.decisions == fresh.decisions


def test_a_batch_of_one_image_works() -> None:
    """Its only partner is itself."""
    loop, mixer = Loop.new(), controller()
    for step in range(STEPS):
        images, labels = loop.batch(step)
        mixed, targets = mixer(images[:1], labels[:1], model=loop.model)
        assert torch.isfinite(mixed).all()
        assert torch.allclose(targets.sum(1), torch.ones(1))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"num_classes": 0}, "`num_classes` must be a whole number from 1"),
        ({"num_classes": 10.0}, "`num_classes` must be a whole number from 1 .*got 10.0"),
        ({"total_steps": 0}, "`total_steps` must be a whole number from 1"),
        ({"seed": -1}, "`seed` must be a whole number from 0"),
        ({"seed": True}, "`seed` must be a whole number"),
        ({"num_examples": 0}, "`num_examples` must be a whole number from 1"),
        ({"saliency": torch.zeros(4, 2, 2)}, r"`saliency` must be a function .* or a SaliencyBank, got Tensor"),
        ({"refresh_every": 3}, "`refresh_every` refreshes a bank, and there is none"),
        ({"refresh_every": 0, "saliency": SaliencyBank(4)}, "`refresh_every` must be a whole number from 1"),
        ({"label_smoothing": 1.5}, r"`label_smoothing` must be in \[0, 1\], got 1.5"),
        ({"validation": [1, 2, 3]}, "`validation` must be a pair of images and labels, .* got list"),
        ({"validation": torch.zeros(3)}, "`validation` must be a pair .* got Tensor"),
    ],
)
def test_bad_arguments_are_refused(changes: dict[str, Any], match: str) -> None:
    """Before the training begins."""
    with pytest.raises(InputError, match=match):
        controller(**changes)


def test_bad_validation_and_models_are_refused_at_the_first_step() -> None:
    """Not in the middle of a training."""
    loop = Loop.new()
    with pytest.raises(InputError, match=r"`labels` must be in \[0, 10\), got values from 10 to 10"):
        controller(validation=(torch.rand(3, 1, 8, 8), torch.full((3,), 10)))(*loop.batch(0), model=loop.model)
    with pytest.raises(InputError, match="got NoneType. Of a loader, give one batch"):
        controller(validation=lambda: None)(*loop.batch(0), model=loop.model)
    with pytest.raises(InputError, match="`model` returns 7 logits for each image, `num_classes` is 10"):
        controller()(*loop.batch(0), model=nn.Sequential(nn.Flatten(), nn.Linear(64, 7)))


def test_load_reads_a_directory(tmp_path: Path) -> None:
    """The two ways to name a directory give the same controller."""
    save(tmp_path / "policy", POLICY)
    arguments: dict[str, Any] = {"num_classes": CLASSES, "total_steps": STEPS, "seed": 3}
    found = [
        Loop.new().run(mixer, range(STEPS))
        for mixer in (MixController.load(tmp_path / "policy", **arguments), controller(tmp_path / "policy"))
    ]
    assert equal(*found)
    with pytest.raises(PolicyError, match="cannot be read"):
        MixController.load(tmp_path / "mixup", **arguments)


def test_closing_says_how_often_the_policy_was_on_unknown_ground(caplog: pytest.LogCaptureFixture) -> None:
    """`time/progress` goes from -1 to 0.75; this policy knows -0.5 to 0.5."""
    loop, mixer = Loop.new(), controller(always("none"))
    loop.run(mixer, range(STEPS))
    with caplog.at_level(logging.INFO, logger="rlmix"):
        report = mixer.close()
        mixer.close()
    assert report.outside == {"time/progress": 3}
    assert (report.steps, report.total_steps, report.decisions) == (48, 48, 8)
    assert report.text == (
        "mixed 48 of 48 steps with 8 decisions. "
        "Outside the policy's training range, and clipped to it: time/progress 3x."
    )
    assert [record.message for record in caplog.records] == [report.text]
    assert controller("none").close().text == "mixed 0 of 48 steps with 0 decisions."


def test_exploring_draws_from_the_policy_and_is_repeated_by_the_seed() -> None:
    """For learning while deployed: other seeds try other things."""

    def decisions(seed: int) -> list[tuple[int, Decision]]:
        mixer, loop = controller(always("cutmix-1"), seed=seed, explore=True), Loop.new()
        for step in range(STEPS):
            mixer(*loop.batch(step), model=loop.model)
        return mixer.decisions

    found = [decisions(seed) for seed in range(12)]
    assert found[0] == decisions(0)
    assert len({decision for run in found for _, decision in run}) > 1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Own(AbstractMethod):
    """A method that nobody registered."""

    name: ClassVar[str] = "own"
    strength: float = 0.5

    def _plan(self, inputs: MixInputs, streams: Streams) -> MixPlan:
        return registry.get("mixup", alpha=self.strength).plan(inputs, streams)


def test_a_method_of_ones_own_needs_no_registration() -> None:
    """An experiment must not have to change the library."""
    loop, mixer = Loop.new(), controller(Own(strength=0.3))
    found = loop.run(mixer, range(4))
    assert mixer.decision == Decision("own", {"strength": 0.3})
    assert equal(found, Loop.new().run(controller(Decision("mixup", {"alpha": 0.3})), range(4)))


def test_a_bank_gives_the_maps_and_the_training_refreshes_it() -> None:
    """Against the same training with every step of the bank written out; the model runs once a step."""
    loop, mixer = Loop.new(), controller("rmix", saliency=SaliencyBank(400, 4))
    by_hand, bank = Loop.new(), SaliencyBank(400, 4)
    found = loop.run(mixer, range(20), model=False)
    for step in range(20):
        images, labels = by_hand.batch(step)
        keys, maps = Streams([derive(3, 1, step)]), bank.read(loop.ids(step))
        batch = mix(images, labels, "rmix", num_classes=CLASSES, generator=keys, saliency=maps)
        assert torch.equal(batch.images, found[step][0].detach())
        assert torch.equal(batch.targets, found[step][1])
        leaf = batch.images.requires_grad_()
        functional.cross_entropy(by_hand.model(leaf), batch.targets).backward()
        assert leaf.grad is not None
        bank.refresh(loop.ids(step), batch.plan, leaf.grad)
        by_hand.optimizer.step()
        by_hand.optimizer.zero_grad()
    assert torch.equal(mixer.state_dict()["bank"]["maps"], bank.state_dict()["maps"])
    assert bank.known == 1.0


def test_a_bank_is_kept_warm_by_methods_that_do_not_read_it() -> None:
    """A policy may come to a method with saliency at any time; and a bank changes nothing of the others' mixing."""
    bank = SaliencyBank(400, 4)
    source = Schedule([(0, "cutmix"), (0.5, "rmix")])
    watched = Loop.new().run(controller(source, saliency=bank), range(STEPS // 2), model=False)
    assert bank.known == 1.0
    assert equal(
        [(mixed.detach(), targets) for mixed, targets in watched], Loop.new().run(controller(source), range(24))
    )


def test_a_bank_costs_no_pass_of_the_model_but_every_kth() -> None:
    """One forward a step is the training's own; a clean pass at steps 0, 5 and 10."""
    loop, calls = Loop.new(), []
    for every in (None, 5):
        model, mixer = Counting(), controller("rmix", saliency=SaliencyBank(400, 4), refresh_every=every)
        for step in range(11):
            images, labels = loop.batch(step)
            mixed, targets = mixer(images, labels, model=model, ids=loop.ids(step))
            functional.cross_entropy(model(mixed), targets).backward()
        calls.append(model.calls)
    assert calls == [11, 14]


def test_a_clean_pass_is_what_the_bank_then_gives() -> None:
    """At the very step; with images that were mirrored, maps in the example's own coordinates."""
    loop, bank = Loop.new(), SaliencyBank(400, 4)
    images, labels = loop.batch(0)
    mirrored = torch.arange(SIZE) % 2 == 0
    controller("rmix", saliency=bank, refresh_every=1)(
        images, labels, model=loop.model, ids=loop.ids(0), mirrored=mirrored
    )
    expected = SaliencyBank(400, 4)
    expected.update(loop.ids(0), input_gradient(loop.model, images, labels), mirrored)
    assert torch.equal(bank.read(loop.ids(0)), expected.read(loop.ids(0)))


def test_a_function_gives_the_maps_where_they_are_needed() -> None:
    """The model is not asked; a method without saliency asks nobody."""
    loop, seen = Loop.new(), []

    def provider(images: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return images.mean(1)

    model = Counting()
    images, labels = loop.batch(0)
    found = controller("rmix", saliency=provider)(images, labels, model=model)
    keys = Streams([derive(3, 1, 0)])
    expected = mix(images, labels, "rmix", num_classes=CLASSES, generator=keys, saliency=images.mean(1))
    assert equal([found], [(expected.images, expected.targets)])
    controller("cutmix", saliency=provider)(images, labels, model=model)
    assert (len(seen), model.calls) == (1, 0)
    assert controller("rmix", saliency=Detector(fine_grained))(images, labels)[0].shape == images.shape


def test_entries_with_saliency_may_be_chosen_where_a_bank_or_a_function_is_given() -> None:
    """The model is not needed for them then."""
    loop = Loop.new()
    for saliency in (SaliencyBank(400, 4), lambda images, labels: images.mean(1)):
        mixer = controller(always("rmix"), saliency=saliency)
        mixer(*loop.batch(0), ids=loop.ids(0))
        assert mixer.decision == Decision("rmix")


@pytest.mark.parametrize("source", ["rmix", POLICY])
def test_a_training_with_a_bank_is_resumed_exactly(source: Any, tmp_path: Path) -> None:
    """The maps decide the mixing, so they belong to the checkpoint."""

    def made() -> MixController:
        return controller(source, saliency=SaliencyBank(400, 4), refresh_every=7)

    whole, straight = made(), Loop.new()
    expected = straight.run(whole, range(STEPS))
    first, loop = made(), Loop.new()
    before = loop.run(first, range(13))
    save_tree(tmp_path / "checkpoint", first.state_dict())
    second = made()
    second.load_state_dict(load_tree(tmp_path / "checkpoint"))
    after = loop.run(second, range(13, STEPS))
    assert equal(before + after, expected)
    assert equal_trees(second.state_dict()["bank"], whole.state_dict()["bank"])


def test_a_state_with_another_bank_is_refused() -> None:
    """With empty maps a resumed training would go another way."""
    plain, banked = controller("rmix"), controller("rmix", saliency=SaliencyBank(400, 4))
    with pytest.raises(CheckpointError, match="of saliency banks it has none, this one one"):
        banked.load_state_dict(plain.state_dict())
    with pytest.raises(CheckpointError, match="of saliency banks it has one, this one none"):
        plain.load_state_dict(banked.state_dict())
    with pytest.raises(CheckpointError, match="`num_examples` is 400, here 300"):
        controller("rmix", saliency=SaliencyBank(300, 4)).load_state_dict(banked.state_dict())


@pytest.mark.parametrize(
    ("ids", "mirrored", "match"),
    [
        (None, None, r"needs to know the examples: mixer\(images, labels, ids=ids\)"),
        (torch.arange(3), None, r"`ids` must be \[4\], one for each image, got \[3\]"),
        (torch.tensor([0, 1, 2, 400]), None, r"`ids` must be in \[0, 400\).* from 0 to 400"),
        (torch.tensor([0, 1, 2, 1]), None, "example 1 more than once"),
        (torch.arange(4), torch.ones(3).bool(), r"`mirrored` must be bool \[4\]"),
    ],
)
def test_ids_that_a_bank_cannot_use_are_refused_and_do_not_count(
    ids: Tensor | None, mirrored: Tensor | None, match: str
) -> None:
    """Before anything is mixed or learned, with methods that would not read the maps too."""
    for source in ("rmix", "cutmix"):
        bank = SaliencyBank(400, 4)
        mixer, batch = controller(source, saliency=bank), good()
        with pytest.raises(InputError, match=match):
            mixer(*batch, ids=ids, mirrored=mirrored)
        assert bank.known == 0.0
        found = mixer(*batch, ids=torch.arange(4))
        fresh = controller(source, saliency=SaliencyBank(400, 4))(*batch, ids=torch.arange(4))
        assert equal([(found[0].detach(), found[1])], [(fresh[0].detach(), fresh[1])])


def test_a_clean_pass_needs_the_model_and_good_labels() -> None:
    """Said before the model is run."""
    loop = Loop.new()
    mixer = controller("rmix", saliency=SaliencyBank(400, 4), refresh_every=2)
    images, labels = loop.batch(0)
    with pytest.raises(InputError, match="`refresh_every` needs the model"):
        mixer(images, labels, ids=loop.ids(0))
    with pytest.raises(InputError, match=r"`labels` must be in \[0, 10\)"):
        mixer(images, labels + 10, model=loop.model, ids=loop.ids(0))


def test_label_smoothing_and_dense_labels_reach_the_targets() -> None:
    """As in `rlmix.mix`; one-hot rows mix as class numbers do, and a policy sees their classes."""
    loop = Loop.new()
    images, labels = loop.batch(0)
    mixed, plain = controller("cutmix")(images, labels)
    smoothed = controller("cutmix", label_smoothing=0.1)(images, labels)
    assert torch.equal(smoothed[0], mixed)
    assert torch.allclose(smoothed[1], plain * 0.9 + 0.01)
    one_hot = functional.one_hot(labels, CLASSES).float()
    dense = controller("cutmix")(images, one_hot)
    assert torch.equal(dense[0], mixed)
    assert torch.allclose(dense[1], plain)
    looks = [controller(), controller()]
    looks[0](images, labels, model=loop.model)
    looks[1](images, one_hot, model=loop.model)
    assert looks[0].observation is not None
    assert looks[1].observation is not None
    assert torch.equal(looks[0].observation, looks[1].observation)


@pytest.mark.gpu
@pytest.mark.parametrize("source", ["cutmix", "mixup", POLICY])
def test_nothing_waits_for_the_device_between_decisions(source: Any) -> None:
    """One hidden read in every step costs more than the mixing."""
    loop = Loop.new()
    model = loop.model.cuda()
    mixer = controller(source, num_examples=400, validation=loop.validation)
    for step in range(STEPS):
        images, labels = (tensor.cuda() for tensor in loop.batch(step))
        decides = step % (STEPS // HORIZON) == 0
        torch.cuda.set_sync_debug_mode("default" if decides else "error")
        try:
            mixed, targets = mixer(images, labels, model=model)
            mixer.observe(loss=functional.cross_entropy(model(mixed), targets), lr=0.1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert mixed.is_cuda
    assert targets.is_cuda


@pytest.mark.gpu
def test_a_state_goes_on_on_the_device(tmp_path: Path) -> None:
    """Checkpoints come back on the CPU."""
    loop = Loop.new()
    model = loop.model.cuda()

    def run(mixer: MixController, steps: range) -> list[tuple[Tensor, Tensor]]:
        return [mixer(images.cuda(), labels.cuda(), model) for images, labels in map(loop.batch, steps)]

    whole = controller(num_examples=400)
    expected = run(whole, range(STEPS))
    first, second = controller(num_examples=400), controller(num_examples=400)
    before = run(first, range(11))
    save_tree(tmp_path / "state", first.state_dict())
    second.load_state_dict(load_tree(tmp_path / "state"))
    assert equal(before + run(second, range(11, STEPS)), expected)
