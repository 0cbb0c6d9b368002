"""Catalogues and the codec: order, names, digests."""

from __future__ import annotations

import json

import pytest

from rlmix.errors import InputError, UnknownNameError
from rlmix.policy.codec import Catalogue, DiscreteCodec, catalogue
from rlmix.policy.decision import Decision

# A change of these breaks no policy (they keep their own catalogue), but makes new ones incomparable with old ones.
V0 = (
    "none", "mixup-0.2", "mixup-1", "cutmix-1", "rmix", "rmix-0.33", "rmix-0.77", "grafting-0.2", "grafting-1",
    "uniform-cheap", "uniform",
)  # fmt: skip


def test_catalogues_hold_the_agreed_entries_in_order() -> None:
    """Actions are positions: a changed order would turn one action into another."""
    assert catalogue("v0").names == V0
    assert catalogue("cheap").names == (*V0[:4], "uniform-cheap")
    assert catalogue("v0").methods == ("none", "mixup", "cutmix", "rmix", "grafting")
    assert not any(decision.needs_saliency for decision in catalogue("cheap").decisions)


def test_mixtures_are_over_the_single_entries() -> None:
    """`uniform` is the baseline: all nine single entries, each equally often."""
    entries = dict(zip(V0, catalogue("v0").decisions, strict=True))
    assert dict(entries["uniform"].params) == {
        "members": tuple(entries[name] for name in V0[:9]),
        "scope": "batch",
    }
    assert dict(entries["uniform-cheap"].params)["members"] == tuple(entries[name] for name in V0[:4])
    assert entries["uniform"].usage() == pytest.approx(
        {"none": 1 / 9, "mixup": 2 / 9, "cutmix": 1 / 9, "rmix": 3 / 9, "grafting": 2 / 9}
    )


@pytest.mark.parametrize("name", ["v0", "cheap"])
def test_json_gives_back_the_same_catalogue(name: str) -> None:
    """A policy keeps its catalogue as JSON."""
    first = catalogue(name)
    again = Catalogue.from_json(json.loads(json.dumps(first.to_json())))
    assert again == first
    assert (again.names, again.decisions, again.digest) == (first.names, first.decisions, first.digest)


def test_digest_tells_catalogues_apart() -> None:
    """Names, Decisions and order all count."""
    entries = {"a": Decision("none"), "b": Decision("mixup", {"alpha": 0.2})}
    digests = {
        Catalogue(entries).digest,
        Catalogue(dict(reversed(entries.items()))).digest,
        Catalogue({"a": entries["a"], "c": entries["b"]}).digest,
        Catalogue({**entries, "b": Decision("mixup", {"alpha": 0.3})}).digest,
    }
    assert len(digests) == 4
    assert len({Catalogue(entries), Catalogue(dict(entries)), catalogue("cheap")}) == 2
    assert repr(Catalogue(entries)) == "Catalogue(a, b)"


@pytest.mark.parametrize(
    ("document", "match"),
    [
        ({}, 'a catalogue is a list of {"name"'),
        ([{"name": "a"}], "a catalogue is a list"),
        ([{"name": 1, "decision": {"method": "none"}}], "a catalogue is a list"),
        ([], "one or more Decisions by name"),
        ([{"name": "", "decision": {"method": "none"}}], "one or more Decisions by name"),
        ([{"name": "a", "decision": {"method": "none"}}] * 2, "has the name `a` twice"),
    ],
)
def test_json_of_another_form_is_refused(document: object, match: str) -> None:
    """A catalogue from a file is checked before anything is built from it."""
    with pytest.raises(InputError, match=match):
        Catalogue.from_json(document)


def test_subset_keeps_the_order_of_the_catalogue() -> None:
    """The same entries must be the same catalogue, in whatever order they were asked for."""
    assert catalogue("v0").subset(["cutmix-1", "none"]).names == ("none", "cutmix-1")
    with pytest.raises(UnknownNameError, match="no entry `cutmix`. Did you mean `cutmix-1`"):
        catalogue("v0").subset(["cutmix"])


def test_codec_inverts_itself() -> None:
    """What an agent chose, what was carried out and what was logged must be one thing."""
    codec = DiscreteCodec(catalogue("v0"))
    assert codec.n == 11
    assert [codec.encode(codec.decode(action)) for action in range(codec.n)] == list(range(codec.n))
    with pytest.raises(InputError, match=r"`action` must be in \[0, 11\), got 11"):
        codec.decode(11)
    with pytest.raises(UnknownNameError, match=r"no entry `mixup\(alpha=0.3\)`. Known: none, mixup\(alpha=0.2\)"):
        codec.encode(Decision("mixup", {"alpha": 0.3}))


def test_unknown_catalogue_names_the_nearest() -> None:
    """A typo in a configuration."""
    with pytest.raises(UnknownNameError, match="no catalogue `chaep`. Did you mean `cheap`"):
        catalogue("chaep")
