"""Policy directories: what is saved comes back, and every kind of damage is named."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from rlmix._files import sha256_of
from rlmix.errors import OutputError, PolicyError
from rlmix.ops.rng import Streams, derive
from rlmix.policy.artifact import DOCUMENT, TENSORS, LearnedPolicy, load, save
from rlmix.policy.codec import catalogue
from rlmix.policy.network import Layers, PolicyNetwork
from rlmix.policy.parametric import find_codec
from rlmix.policy.signals import names

NAMES = ("time/progress", "probe/nll", "val/ece", "used/mixup")


def layers(*widths: int, seed: int = 0) -> Layers:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        (torch.randn(two, one, generator=generator), torch.randn(two, generator=generator))
        for one, two in itertools.pairwise(widths)
    )


def policy(*, critic: bool = True) -> LearnedPolicy:
    return LearnedPolicy(
        network=PolicyNetwork(actor=layers(4, 8, 5), critic=layers(4, 8, 1, seed=1) if critic else None),
        observation_names=NAMES,
        low=torch.tensor([-1.0, -0.1, 0.0, 0.0]),
        high=torch.tensor([1.0, 2.3, 1.0, 1.0]),
        catalogue=catalogue("cheap"),
        horizon=8,
        card={"instances": "digits", "seed": 3},
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "policy", policy())
    return tmp_path / "policy"


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = json.loads((folder / DOCUMENT).read_text())
    change(document)
    (folder / DOCUMENT).write_text(json.dumps(document))


def put_tensors(folder: Path, data: bytes) -> None:
    """Put `data` in place of the tensors, with the checksum that an attacker would write."""
    (folder / TENSORS).write_bytes(data)
    edit(folder, lambda document: document["tensors"].update(sha256=sha256_of(data)))


@pytest.mark.parametrize("critic", [True, False])
def test_a_policy_comes_back_as_it_was(tmp_path: Path, critic: bool) -> None:
    """Bits of the weights and of the ranges, names, catalogue, card."""
    first = policy(critic=critic)
    save(tmp_path / "deep" / "policy", first)
    again = load(tmp_path / "deep" / "policy")
    assert again.observation_names == first.observation_names
    assert again.catalogue == first.catalogue
    assert (again.horizon, dict(again.card)) == (8, {"instances": "digits", "seed": 3})
    assert torch.equal(again.low, first.low)
    assert torch.equal(again.high, first.high)
    observations = torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    assert torch.equal(again.network.logits(observations), first.network.logits(observations))
    assert (again.network.critic is not None) == critic
    assert sorted(path.name for path in (tmp_path / "deep" / "policy").iterdir()) == [DOCUMENT, TENSORS]


def test_saving_again_replaces_the_policy(folder: Path) -> None:
    """An agent saves its policy again and again into one folder."""
    save(folder, replace(policy(), horizon=4))
    assert load(folder).horizon == 4


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    """The error comes from the package's own tree."""
    (tmp_path / "policy").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        save(tmp_path / "policy", policy())


def test_a_card_that_is_no_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """Half a policy must not be left behind."""
    with pytest.raises(PolicyError, match="`card` must hold what JSON can"):
        save(tmp_path / "policy", replace(policy(), card={"model": torch.zeros(1)}))
    assert not any((tmp_path / "policy").iterdir())


@pytest.mark.parametrize("name", [DOCUMENT, TENSORS])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    """Copies of folders are often incomplete."""
    (folder / name).unlink()
    with pytest.raises(PolicyError, match=f"{name}` cannot be read .*No such file"):
        load(folder)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1, 2", "nul", '{"schema": "rlmix.policy/1"', "[" * 200_000, '{"a":' * 100_000, "9" * 10_000],
    ids=["empty", "cut", "list", "word", "object", "deep-list", "deep-object", "long-number"],
)
def test_broken_json_is_refused(folder: Path, text: str) -> None:
    """Made by an interrupted copy, or to exhaust the parser's stack."""
    (folder / DOCUMENT).write_text(text)
    with pytest.raises(PolicyError, match="no valid JSON"):
        load(folder)


def test_files_of_absurd_size_are_not_read(folder: Path) -> None:
    """A hand-made document may be there to fill the memory."""
    (folder / DOCUMENT).write_text(" " * (5 * 2**20))
    with pytest.raises(PolicyError, match="larger than 4 MiB"):
        load(folder)


def test_binary_rubbish_is_refused(folder: Path) -> None:
    """What is no text is no document."""
    (folder / DOCUMENT).write_bytes(bytes(range(256)))
    with pytest.raises(PolicyError, match="no valid JSON"):
        load(folder)


def set_entry(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["observation"]["entries"][1].update({key: value})


def set_decision(value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["catalogue"]["entries"][1].update(decision=value)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d.update(schema="rlmix.policy/3"), "has the schema `rlmix.policy/3`, expected `rlmix.policy/1`"),
        (lambda d: d.pop("schema"), "has the schema `None`"),
        (lambda d: d.pop("horizon"), "in `document`, `horizon` is missing"),
        (lambda d: d.update(extra=1), "in `document`, `extra` is unknown"),
        (lambda d: d.update(horizon=0), "`document.horizon` must be a whole number from 1"),
        (lambda d: d.update(horizon=True), "`document.horizon` must be a whole number"),
        (lambda d: d.update(card=[]), "`document.card` must be an object"),
        (lambda d: d.update(observation=7), "`document.observation` must be an object with name, entries, got 7"),
        (lambda d: d["observation"].update(name="rlmix.obs/9"), "must be 'rlmix.obs/1', got 'rlmix.obs/9'"),
        (lambda d: d["observation"].update(entries={}), "`document.observation.entries` must be a list"),
        (
            lambda d: d["observation"]["entries"].pop(),
            "leads from 4 to 5 numbers; the policy has 3 observation entries",
        ),
        (set_entry("name", "time/progress"), "`observation_names` has a name twice"),
        (set_entry("name", None), r"entries\[1\].name` must be a string, got None"),
        (set_entry("low", 3.0), "the range of `probe/nll` must be finite and ascending, got 3.0"),
        (set_entry("low", 10**400), r"entries\[1\].low` must be a finite number"),
        (set_entry("high", float("inf")), r"entries\[1\].high` must be a finite number, got inf"),
        (set_entry("high", "1"), r"entries\[1\].high` must be a finite number, got '1'"),
        (
            set_decision({"method": "mixpu"}),
            "entry `mixup-0.2` cannot be used: there is no mix method `mixpu`. Did you",
        ),
        (
            set_decision({"method": "mixup", "params": {"beta": 1}}),
            "`mixup-0.2` cannot be used: .* no parameter `beta`",
        ),
        (set_decision({"method": "mixup", "params": {"alpha": -1}}), "`mixup-0.2` cannot be used: `alpha` must be"),
        (set_decision({"method": "mixup", "params": {"alpha": [[]]}}), "`mixup-0.2` cannot be used"),
        (set_decision({"module": "os"}), "`mixup-0.2` cannot be used: a Decision has the keys"),
        (set_decision({"method": "mixup", "params": {"alpha": 0.3}}), "not the one that `catalogue.digest` belongs to"),
        (lambda d: d["catalogue"]["entries"].clear(), "one or more Decisions"),
        (lambda d: d["architecture"].update(activation="relu"), "must be 'tanh', got 'relu'"),
        (lambda d: d["architecture"].update(actor=[4]), "must be a list of the lengths of input, hidden layers"),
        (
            lambda d: d["architecture"].update(actor=[4, 10**9, 5]),
            r"actor\[1\]` must be a whole number from 1 to 65536",
        ),
        (
            lambda d: d["architecture"].update(actor=[4, 9, 5]),
            r"tensor `actor.0.weight` must be \[9, 4\], got \[8, 4\]",
        ),
        (lambda d: d["architecture"].update(actor=[4, 8, 8, 5]), "tensor `actor.2.bias` is missing"),
        (lambda d: d["architecture"].update(critic=None), "tensor `critic.0.bias` is unknown"),
        (lambda d: d["tensors"].update(file="../../secret"), "must be 'policy.safetensors', got '../../secret'"),
        (lambda d: d["tensors"].update(sha256=5), "`document.tensors.sha256` must be a string"),
        (lambda d: d["tensors"].update(sha256="0" * 64), "`policy.json` expects 000000000000"),
    ],
)
def test_a_contradicting_document_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    """Each is named with its file, so that somebody can mend it."""
    edit(folder, change)
    with pytest.raises(PolicyError, match=match) as caught:
        load(folder)
    assert str(folder) in str(caught.value)


def test_a_changed_tensor_file_is_noticed(folder: Path) -> None:
    """One flipped bit of a weight changes decisions without a sound."""
    data = bytearray((folder / TENSORS).read_bytes())
    data[-3] ^= 1
    (folder / TENSORS).write_bytes(bytes(data))
    with pytest.raises(PolicyError, match="has the SHA-256 .* The file is damaged or of another policy"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda t: t.update({"actor.0.bias": torch.full((8,), torch.nan)}),
            "`actor` layer 0 holds numbers that are not",
        ),
        (lambda t: t.update({"actor.0.bias": torch.zeros(8).double()}), "`actor` layer 0 must be float32"),
        (lambda t: t.update({"actor.0.bias": torch.zeros(9)}), r"tensor `actor.0.bias` must be \[8\], got \[9\]"),
        (lambda t: t.update({"surplus": torch.zeros(1)}), "tensor `surplus` is unknown"),
        (lambda t: t.pop("critic.1.weight"), "tensor `critic.1.weight` is missing"),
    ],
)
def test_wrong_tensors_are_refused(folder: Path, change: Callable[[dict[str, Tensor]], object], match: str) -> None:
    """With a right checksum, as of a directory made by hand."""
    tensors = from_bytes((folder / TENSORS).read_bytes())
    change(tensors)
    put_tensors(folder, to_bytes(tensors))
    with pytest.raises(PolicyError, match=match):
        load(folder)


class Poison:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.path, "run")


def test_a_pickle_in_place_of_the_tensors_does_not_run(folder: Path, tmp_path: Path) -> None:
    """A policy from a stranger may choose badly; it must not be able to do anything else."""
    mark = tmp_path / "mark"
    poison = pickle.dumps(Poison(mark))
    pickle.loads(poison)
    assert mark.exists(), "the poison must work, or this test proves nothing"
    mark.unlink()
    put_tensors(folder, poison)
    with pytest.raises(PolicyError, match="no safetensors file"):
        load(folder)
    (folder / DOCUMENT).write_bytes(poison)
    with pytest.raises(PolicyError, match="no valid JSON"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("size", [0, 7, 8, 100])
def test_hand_made_tensor_files_are_refused(folder: Path, size: int) -> None:
    """A header that claims more than there is must not be believed."""
    put_tensors(folder, b"\xff" * size)
    with pytest.raises(PolicyError, match="no safetensors file"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"low": torch.zeros(3)}, r"`low` and `high` must have the shape \[4\], got \[3\] and \[4\]"),
        ({"horizon": 0}, "`horizon` must be a whole number of at least 1, got 0"),
        ({"catalogue": catalogue("v0")}, "4 observation entries and 11 catalogue entries"),
    ],
)
def test_parts_that_do_not_fit_make_no_policy(change: dict[str, Any], match: str) -> None:
    """An agent that exports itself wrongly must learn it then, not its users when they load it."""
    with pytest.raises(PolicyError, match=match):
        replace(policy(), **change)


def test_columns_are_found_by_name() -> None:
    """A policy reads its entries wherever they stand."""
    observed = names(catalogue("cheap"))
    columns = policy().columns(observed)
    assert [observed[column] for column in columns.tolist()] == list(NAMES)
    with pytest.raises(PolicyError, match="the policy reads `val/ece`, which is not observed here"):
        policy().columns([name for name in observed if name != "val/ece"])


def test_observations_are_clipped_to_the_training_range() -> None:
    """Far outside, a network extrapolates without limits."""
    given = policy()
    far, near = torch.tensor([[9.0, 9.0, 9.0, 9.0], [-9.0, -9.0, -9.0, -9.0]]), torch.stack((given.high, given.low))
    assert torch.equal(given.probabilities(far), given.probabilities(near))


def test_masked_entries_are_never_chosen() -> None:
    """What a training cannot carry out must not be decided, also when exploring."""
    given, observations = policy(), torch.randn(200, 4, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([False, True, False, True, False]).expand(200, 5)
    keys = Streams([derive(7, number) for number in range(200)])
    for chosen in (given.act(observations, mask), given.act(observations, mask, keys)):
        assert set(chosen.tolist()) == {1, 3}
    shares = given.probabilities(observations, mask)
    assert float(shares[:, [0, 2, 4]].abs().max()) == 0
    assert torch.allclose(shares.sum(1), torch.ones(200))


def test_one_observation_gives_what_a_batch_gives() -> None:
    """The controller asks for one, the evaluation for many."""
    given, observations = policy(), torch.randn(100, 4, generator=torch.Generator().manual_seed(2))
    assert [given.choose(one) for one in observations] == given.act(observations).tolist()


def test_exploration_draws_from_the_policys_distribution() -> None:
    """Binomial counts of 20,000 draws stay within 6 standard deviations: false alarms below 1e-7."""
    given, count = policy(), 20_000
    observation = torch.tensor([[0.2, 0.5, 0.1, 0.9]])
    keys = Streams([derive(11, number) for number in range(count)])
    drawn = given.act(observation.expand(count, 4), explore=keys)
    for entry, share in enumerate(given.probabilities(observation)[0].tolist()):
        assert abs(int((drawn == entry).sum()) - count * share) <= 6 * (count * share * (1 - share)) ** 0.5 + 1
    again = given.act(observation.expand(3, 4), explore=Streams(keys.keys[100:103]))
    assert torch.equal(again, drawn[100:103]), "a row's draw depends on its key alone"


OLD = Path(__file__).parent / "artefacts" / "discrete"


def test_a_policy_of_an_older_version_acts_as_it_did() -> None:
    """Its files and answers were written before actions could set parameters; every bit must be the same."""
    old, expected = load(OLD), json.loads((OLD / "expected.json").read_text())
    observations, mask = torch.tensor(expected["observations"]), torch.tensor(expected["mask"])
    assert old.codec is None
    assert torch.equal(
        old.network.logits(torch.clamp(observations, old.low, old.high)), torch.tensor(expected["logits"])
    )
    assert old.act(observations).tolist() == expected["act"]
    assert old.entries(observations).tolist() == expected["act"]
    assert old.act(observations, mask).tolist() == expected["masked"]
    assert old.act(observations, mask, Streams(expected["keys"])).tolist() == expected["explored"]
    assert torch.equal(old.probabilities(observations, mask), torch.tensor(expected["probabilities"]))
    assert [old.choose(row) for row in observations] == expected["choose"]
    assert [old.decision(entry, row) for entry, row in zip(expected["act"], observations, strict=True)] == [
        catalogue("v0").decisions[entry] for entry in expected["act"]
    ]


def test_a_discrete_policy_is_written_as_before(tmp_path: Path) -> None:
    """Older versions must be able to read what newer ones write, where nothing is new."""
    save(tmp_path, load(OLD))
    assert (tmp_path / TENSORS).read_bytes() == (OLD / TENSORS).read_bytes()
    first, second = (json.loads((folder / DOCUMENT).read_text()) for folder in (OLD, tmp_path))
    assert {**first, "versions": None} == {**second, "versions": None}
    assert list(first) == list(second)


def acting(kind: str) -> LearnedPolicy:
    """Return a policy whose actions set parameters."""
    codec = find_codec(kind, "v0")
    return LearnedPolicy(
        network=PolicyNetwork(actor=layers(4, 8, codec.outputs), critic=layers(4, 8, 1, seed=1)),
        observation_names=NAMES,
        low=torch.tensor([-1.0, -0.1, 0.0, 0.0]),
        high=torch.tensor([1.0, 2.3, 1.0, 1.0]),
        catalogue=codec.catalogue,
        horizon=8,
        card={},
        codec=codec,
    )


@pytest.mark.parametrize("kind", ["multidiscrete", "hybrid"])
def test_policies_that_set_parameters_come_back_as_they_were(tmp_path: Path, kind: str) -> None:
    """Modes, draws, probabilities and Decisions, bit for bit."""
    first = acting(kind)
    save(tmp_path, first)
    again = load(tmp_path)
    assert json.loads((tmp_path / DOCUMENT).read_text())["schema"] == "rlmix.policy/2"
    assert again.codec is not None
    assert (again.codec.kind, again.codec.digest) == (kind, first.actions.digest)
    assert again.catalogue == first.catalogue
    rows, keys = torch.randn(20, 4, generator=torch.Generator().manual_seed(2)), Streams(list(range(20)))
    mask = torch.ones(20, 8, dtype=torch.bool)
    mask[:, first.choose(rows[0])] = False
    for explore in (None, keys):
        actions = first.act(rows, mask, explore)
        assert torch.equal(again.act(rows, mask, explore), actions)
        entries = first.entries(rows, mask, explore)
        assert [first.actions.entry(action) for action in actions.tolist()] == entries.tolist()
        assert mask.gather(1, entries.unsqueeze(1)).all()
        for number, (row, entry) in enumerate(zip(rows, entries.tolist(), strict=True)):
            key = None if explore is None else Streams([number])
            found, expected = again.decision(entry, row, key), first.actions.decode(actions[number].tolist())
            assert found.method == expected.method
            # One row is multiplied in another order than a batch.
            for (_, one), (_, other) in zip(found.params, expected.params, strict=True):
                assert one == (pytest.approx(other, rel=1e-6) if isinstance(other, float) else other)
    assert torch.equal(again.probabilities(rows), first.probabilities(rows))
    torch.testing.assert_close(first.probabilities(rows).sum(1), torch.ones(20))
    assert [first.choose(row) for row in rows] == first.entries(rows).tolist()
    assert len(set(first.entries(rows).tolist())) > 2


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda d: d["actions"].update(kind="box"), "actions are described by their kind"),
        (lambda d: d["actions"].pop("space"), "actions are described by their kind"),
        (lambda d: d["actions"]["space"][1]["parameters"][0].update(high=9.0), "not the ones that their digest"),
        (lambda d: d["actions"]["space"][1]["parameters"][0].update(high=0.0), "`mixup` cannot be used: .*ascending"),
        (lambda d: d["actions"]["space"][1]["decision"].update(method="mixpu"), "`mixup` cannot be used: .*Did you"),
        (lambda d: d["actions"]["space"][3]["parameters"][0].update(high=7.0), "`rmix` cannot be used: .*threshold"),
        (lambda d: d.update(schema="rlmix.policy/1"), "`catalogue` is missing"),
        (lambda d: d["actions"]["space"].pop(), "not the ones that their digest"),
    ],
)
def test_contradicting_actions_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], match: str
) -> None:
    """As for catalogues."""
    save(tmp_path, acting("hybrid"))
    edit(tmp_path, change)
    with pytest.raises(PolicyError, match=match) as caught:
        load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_actions_and_network_must_fit() -> None:
    """A head of another kind would be read as something else."""
    hybrid = acting("hybrid")
    with pytest.raises(PolicyError, match="from 4 to 24 numbers; .* multidiscrete actions of 13 outputs"):
        replace(hybrid, codec=acting("multidiscrete").codec)
    with pytest.raises(PolicyError, match="`codec` has another catalogue"):
        replace(hybrid, catalogue=catalogue("v0"))
