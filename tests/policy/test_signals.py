"""The observation: every entry against a slow recomputation with plain numbers, and N trainings against one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.decision import Decision
from rlmix.policy.signals import ENTRIES, LIMIT, Context, History, Predictions, names, signals

V0 = catalogue("v0")
KNOWN: dict[str, Any] = {
    "total_steps": 120,
    "num_examples": 400,
    "batch_size": 32,
    "num_classes": 10,
    "height": 8,
    "width": 12,
    "num_params": 26_122,
}
NAMES = names(V0)


def predictions(seed: int, rows: int, images: int, classes: int = 10, scale: float = 2.0) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows, images), generator=generator)
    logits = torch.randn(rows, images, classes, generator=generator)
    logits += torch.nn.functional.one_hot(labels, classes)
    return scale * logits, labels, None


def row(observations: Tensor, index: int = 0) -> dict[str, float]:
    return dict(zip(NAMES, observations[index].tolist(), strict=True))


def part(given: Predictions, rows: Tensor) -> Predictions:
    return given[0][rows], given[1][rows], None if given[2] is None else given[2][rows]


def softmax(logits: list[float]) -> list[float]:
    high = max(logits)
    exponentials = [math.exp(value - high) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def sd(values: list[float]) -> float:
    return math.sqrt(mean([(value - mean(values)) ** 2 for value in values]))


def quantile(values: list[float], level: float) -> float:
    ordered = sorted(values)
    place = level * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def described(given: Predictions) -> dict[str, Any]:
    """Return the statistics of one row's predictions by plain loops."""
    logits, labels = given[0][0].double().tolist(), given[1][0].tolist()
    tables = [softmax(line) for line in logits]
    pairs = list(zip(tables, labels, strict=True))
    hits = [table.index(max(table)) == label for table, label in pairs]
    return {
        "losses": [-math.log(table[label]) for table, label in pairs],
        "accuracy": mean([float(hit) for hit in hits]),
        "entropy": mean([-sum(p * math.log(p) for p in table) for table in tables]),
        "margins": [table[label] - max(p for c, p in enumerate(table) if c != label) for table, label in pairs],
        "sure_wrong": mean([float(max(table) > 0.9 and not hit) for table, hit in zip(tables, hits, strict=True)]),
    }


def temperature_loss(given: Predictions, log_temperature: float) -> float:
    logits = given[0][0].double() / math.exp(log_temperature)
    return float(torch.nn.functional.cross_entropy(logits, given[1][0]))


def test_there_are_34_numbers_and_the_named_memory() -> None:
    """A policy finds its entries by name; renaming or dropping one cuts old policies off."""
    assert len(ENTRIES) == 34
    blocks = [name.split("/")[0] for name in ENTRIES]
    sizes = {block: blocks.count(block) for block in dict.fromkeys(blocks)}
    assert sizes == {"time": 3, "context": 6, "loss": 4, "probe": 9, "val": 8, "has": 4}
    assert NAMES[34:39] == ("used/none", "used/mixup", "used/cutmix", "used/rmix", "used/grafting")
    assert NAMES[39:] == tuple(f"last/{name}" for name in V0.names)
    assert len(set(NAMES)) == len(NAMES)


def test_every_entry_agrees_with_plain_numbers() -> None:
    """One slow recomputation of each transform: a slip here would be learned by every policy."""
    context, history = Context.of(1, **KNOWN), History.initial(1, V0)
    first = (predictions(1, 1, 130), predictions(2, 1, 60))
    signals(context, history, 0, probe=first[0], val=first[1], catalogue=V0)
    history.record(torch.tensor([V0.index("uniform-cheap")]), 15)
    losses = [2.0, 1.5, math.nan, 1.0, 0.5, 0.75, math.inf]
    for number, loss in enumerate(losses):
        history.add_loss(torch.tensor([loss]), half=int(number >= 4), lr=0.1 / (number + 1))
    second = (predictions(3, 1, 130), predictions(4, 1, 60))
    found = row(signals(context, history, 15, probe=second[0], val=second[1], catalogue=V0))

    scale, lr = math.log(10), 0.1 / 7
    before, probe = described(first[0]), described(second[0])
    val_before, val = described(first[1]), described(second[1])
    finite = [2.0, 1.5, 1.0, 0.5, 0.75]
    nll, val_nll = mean(probe["losses"]), mean(val["losses"])
    expected = {
        "time/progress": 2 * 15 / 120 - 1,
        "time/epochs": math.log10(1 + 120 * 32 / 400) - 1,
        "time/lr": lr / 0.1,
        "context/lr": math.log10(lr) / 2 + 1,
        "context/n": (math.log10(400) - 3) / 1.5,
        "context/classes": 0.0,
        "context/batch": 5 / 4 - 1.5,
        "context/side": math.log2(math.sqrt(96)) / 2 - 2,
        "context/params": (math.log10(26_122) - 5) / 2,
        "loss/mean": mean(finite) / scale - 1,
        "loss/sd": sd(finite) / scale,
        "loss/change": 2 * (mean([0.5, 0.75]) - mean([2.0, 1.5, 1.0])) / scale,
        "loss/not_finite": 2 / 7,
        "probe/nll": nll / scale - 0.5,
        "probe/accuracy": 2 * probe["accuracy"] - 1,
        "probe/accuracy_change": 5 * (probe["accuracy"] - before["accuracy"]),
        "probe/entropy": 2 * probe["entropy"] / scale - 1,
        "probe/nll_sd": sd(probe["losses"]) / scale,
        "probe/margin_10": quantile(probe["margins"], 0.1),
        "probe/margin_50": quantile(probe["margins"], 0.5),
        "probe/margin_90": quantile(probe["margins"], 0.9),
        "probe/sure_wrong": 2 * probe["sure_wrong"],
        "val/accuracy": 2 * val["accuracy"] - 1,
        "val/accuracy_change": 5 * (val["accuracy"] - val_before["accuracy"]),
        "val/below_best": 5 * max(0.0, val_before["accuracy"] - val["accuracy"]),
        "val/accuracy_gap": 2 * (probe["accuracy"] - val["accuracy"]),
        "val/nll_gap": (nll - val_nll) / scale,
        "has/model": 1.0,
        "has/val": 1.0,
        "has/n": 1.0,
        "has/history": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    grid = [point / 1000 for point in range(-2000, 2001)]
    fits = [temperature_loss(second[1], point) for point in grid]
    assert found["val/ts_nll"] == pytest.approx(min(fits) / scale - 0.5, abs=1e-6)
    assert found["val/log_temperature"] == pytest.approx(grid[fits.index(min(fits))], abs=2e-3)
    assert set(ENTRIES) == set(expected) | {"val/ts_nll", "val/log_temperature", "val/ece"}
    assert 0 < found["val/ece"] < 5
    assert [found[f"used/{method}"] for method in V0.methods] == pytest.approx([0.25, 0.5, 0.25, 0, 0])
    assert [name for name in V0.names if found[f"last/{name}"]] == ["uniform-cheap"]


def test_many_trainings_give_each_what_it_gives_alone() -> None:
    """The parity of pool and deployment rests on this: a row's bits depend on the row only."""
    rows = 9
    probe, val = predictions(5, rows, 131), predictions(6, rows, 77)
    losses = torch.rand(3, 6, rows, generator=torch.Generator().manual_seed(7))
    taken = torch.arange(3 * rows).view(3, rows) % len(V0)

    def course(kept: Tensor) -> Tensor:
        context = Context.of(len(kept), **{**KNOWN, "total_steps": 18, "num_examples": 100.0 + kept})
        history, found = History.initial(len(kept), V0), []
        for decision in range(3):
            found.append(
                signals(context, history, 6 * decision, probe=part(probe, kept), val=part(val, kept), catalogue=V0)
            )
            history.record(taken[decision][kept], 6)
            for step in range(6):
                history.add_loss(losses[decision, step][kept], half=int(step >= 3), lr=0.1)
        return torch.stack(found, 1)

    together = course(torch.arange(rows))
    for kept in ([0], [8], [3, 4, 5], list(range(8))):
        assert torch.equal(course(torch.tensor(kept)), together[kept])


def test_missing_sources_are_zero_and_said_to_be_missing() -> None:
    """A policy must be able to tell "nothing known" from a measured zero."""
    history = History.initial(1, V0)
    bare = Context.of(1, **{**KNOWN, "num_examples": None})
    found = row(signals(bare, history, 30, catalogue=V0))
    told = {"time/progress", "context/batch", "context/side"}
    assert {name for name, value in found.items() if value != 0} == told
    found = row(signals(Context.of(1, **KNOWN), history, 30, val=predictions(1, 1, 20), catalogue=V0))
    assert found["has/val"] == found["val/accuracy"] == 0, "validation cannot be looked at without a model"
    assert found["has/n"] == 1


def test_masked_rows_look_as_if_the_source_were_not_given() -> None:
    """The pool hides sources by row; a hidden one must equal one that a user leaves out, also in the memory."""
    probe, val = predictions(8, 3, 40), predictions(9, 3, 30)
    hidden = (
        (probe[0], probe[1], torch.tensor([True, True, False])),
        (val[0], val[1], torch.tensor([True, False, True])),
    )
    known = {**KNOWN, "num_examples": torch.tensor([400.0, math.nan, 400.0])}
    context, history = Context.of(3, **known), History.initial(3, V0)
    for step in (0, 60):
        pooled = signals(context, history, step, probe=hidden[0], val=hidden[1], catalogue=V0)
        history.record(torch.tensor([0, 1, 2]), 60)
    for index, (use_probe, use_val, use_n) in enumerate(
        [(True, True, True), (True, False, False), (False, False, True)]
    ):
        alone = torch.tensor([index])
        context = Context.of(1, **{**KNOWN, "num_examples": 400 if use_n else None})
        history = History.initial(1, V0)
        for step in (0, 60):
            single = signals(
                context,
                history,
                step,
                probe=part(probe, alone) if use_probe else None,
                val=part(val, alone) if use_val else None,
                catalogue=V0,
            )
            history.record(alone, 60)
        assert torch.equal(pooled[index], single[0])


def test_changes_are_zero_at_the_first_decision() -> None:
    """There is nothing to compare with; a difference to zero accuracy would look like a leap."""
    history = History.initial(1, V0)
    given = {"probe": predictions(1, 1, 50), "val": predictions(2, 1, 50)}
    found = row(signals(Context.of(1, **KNOWN), history, 0, catalogue=V0, **given))
    assert [found[name] for name in ("probe/accuracy_change", "val/accuracy_change", "val/below_best")] == [0, 0, 0]
    assert found["has/history"] == 0


def test_best_accuracy_is_kept_over_decisions() -> None:
    """`val/below_best` compares with the best of all decisions, not with the last."""
    context, history = Context.of(1, **KNOWN), History.initial(1, V0)
    labels = torch.arange(10).unsqueeze(0)
    logits = torch.nn.functional.one_hot(labels, 10).float()
    probe = predictions(1, 1, 50)
    found = []
    for right in (5, 9, 7, 8):
        shifted = labels.clone()
        shifted[0, right:] = (labels[0, right:] + 1) % 10
        val = (logits, shifted, None)
        found.append(row(signals(context, history, 0, probe=probe, val=val, catalogue=V0))["val/below_best"])
    assert found == pytest.approx([0.0, 0.0, 1.0, 0.5])


def test_broken_numbers_become_zero_and_large_ones_are_clipped() -> None:
    """A diverged classifier must not make the policy's network return NaN."""
    context, history = Context.of(1, **KNOWN), History.initial(1, V0)
    history.add_loss(torch.tensor([1e30]), half=0, lr=0.0)
    broken = (torch.full((1, 20, 10), math.nan), torch.zeros(1, 20, dtype=torch.int64), None)
    observation = signals(context, history, 0, probe=broken, val=broken, catalogue=V0)
    assert bool(torch.isfinite(observation).all())
    assert float(observation.abs().max()) <= LIMIT
    found = row(observation)
    assert found["loss/mean"] == LIMIT
    assert found["probe/nll"] == found["val/ts_nll"] == found["time/lr"] == 0
    assert found["context/lr"] == -LIMIT


def test_impossible_classes_leave_the_entropy_finite() -> None:
    """A logit of minus infinity has probability 0, and 0 log 0 is 0."""
    logits, labels, _ = predictions(1, 1, 30)
    logits[..., 7:] = -math.inf
    found = row(
        signals(Context.of(1, **KNOWN), History.initial(1, V0), 0, probe=(logits, labels % 7, None), catalogue=V0)
    )
    assert -1 < found["probe/entropy"] < 1


def test_usage_adds_up_over_intervals_of_different_length() -> None:
    """Shares are of steps, not of decisions."""
    history = History.initial(2, V0)
    history.record(torch.tensor([V0.index("rmix"), V0.index("none")]), 30)
    history.record(torch.tensor([V0.index("none"), V0.index("cutmix-1")]), torch.tensor([10, 30]))
    observation = signals(Context.of(2, **KNOWN), history, 40, catalogue=V0)
    first, second = row(observation, 0), row(observation, 1)
    assert (first["used/rmix"], first["used/none"], first["last/none"]) == (0.75, 0.25, 1.0)
    assert (second["used/none"], second["used/cutmix"], second["last/cutmix-1"]) == (0.5, 0.5, 1.0)


def test_the_memory_is_named_by_the_catalogue_itself() -> None:
    """A policy with a catalogue of its own has a memory of its own."""
    own = Catalogue({"plain": Decision("none"), "half": Decision("mixup", probability=0.5)})
    assert names(own)[34:] == ("used/none", "used/mixup", "last/plain", "last/half")
    history = History.initial(1, own)
    history.record(torch.tensor([1]), 8)
    assert signals(Context.of(1, **KNOWN), history, 8, catalogue=own)[0, 34:].tolist() == [0.5, 0.5, 0.0, 1.0]


def test_history_goes_through_its_state_and_forks_by_row() -> None:
    """Snapshots and forks of the pool are exact, and copies do not share memory."""
    history = History.initial(3, V0)
    history.record(torch.tensor([1, 2, 3]), 5)
    history.add_loss(torch.tensor([1.0, 2.0, 3.0]), half=1, lr=torch.tensor([0.1, 0.2, 0.3]))
    copy, forked = History.from_state(history.state()), history.select(torch.tensor([2, 2]))
    context = Context.of(3, **KNOWN)
    before = signals(context, history, 5, catalogue=V0)
    history.add_loss(torch.ones(3), half=1)
    assert torch.equal(signals(context, copy, 5, catalogue=V0), before)
    assert torch.equal(signals(Context.of(2, **KNOWN), forked, 5, catalogue=V0), before[[2, 2]])


def test_largest_learning_rate_is_remembered() -> None:
    """`time/lr` shows where in warm-up and decay a training is."""
    context, history, found = Context.of(1, **KNOWN), History.initial(1, V0), []
    for lr in (0.1, 0.4, 0.2):
        history.set_lr(lr)
        found.append(row(signals(context, history, 0, catalogue=V0))["time/lr"])
    assert found == pytest.approx([1.0, 1.0, 0.5])


def test_misspelt_context_is_refused() -> None:
    """A misspelt name would be an unknown value for ever."""
    with pytest.raises(TypeError, match="Context has no 'batchsize'"):
        Context.of(1, batchsize=32)


def test_no_value_is_read_back() -> None:
    """On a GPU, every read makes the host wait; on the meta device, it fails."""
    context = Context.of(2, "meta", **KNOWN)
    history = History.initial(2, V0, "meta")
    for tensor in (history.total, history.last, history.shares, context.width):
        assert tensor.device.type == "meta"
    history.add_loss(torch.zeros(2, device="meta"), half=1, lr=0.1)
    history.record(torch.zeros(2, dtype=torch.int64, device="meta"), 5)
    given = (torch.zeros(2, 30, 10, device="meta"), torch.zeros(2, 30, dtype=torch.int64, device="meta"), None)
    assert signals(context, history, 5, probe=given, val=given, catalogue=V0).shape == (2, len(NAMES))
