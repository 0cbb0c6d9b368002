"""The score and what is made of it."""

from __future__ import annotations

import math

import pytest
import torch

from rlmix.envs.reward import measure, relative, score, uniform_entry
from rlmix.errors import EnvError
from rlmix.policy.codec import Catalogue, catalogue
from rlmix.policy.decision import Decision


def logits_and_labels(seed=0, sets=3, count=250):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (sets, count), generator=generator)
    logits = torch.randn(sets, count, 10, generator=generator) + 2.0 * torch.nn.functional.one_hot(labels, 10)
    return logits, labels


def test_a_score_is_accuracy_and_a_quarter_of_the_information():
    """The closed form: two classes, right in three of four images, always equally sure."""
    labels = torch.zeros(4, dtype=torch.int64)
    logits = torch.tensor([[1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
    # The best temperature makes the confidence the accuracy: the entropy of 3/4 is left.
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    found = measure(logits, labels)
    assert found.accuracy.item() == 0.75
    assert found.ts_nll.item() == pytest.approx(entropy, abs=1e-6)
    assert found.score.item() == pytest.approx(0.75 + 0.25 * (1 - entropy / math.log(2)), abs=1e-6)


@pytest.mark.parametrize("factor", [0.01, 0.3, 7.0, 100.0])
def test_scaling_the_logits_changes_no_score(factor):
    """Mixing makes networks under-confident; a reward that minds would teach not to mix."""
    logits, labels = logits_and_labels()
    torch.testing.assert_close(score(logits * factor, labels), score(logits, labels), atol=1e-6, rtol=0)


def test_each_classifier_is_scored_by_itself_and_labels_may_be_common():
    """A score that depends on the neighbours would make the reward depend on N."""
    logits, labels = logits_and_labels()
    together = score(logits, labels)
    for row in range(3):
        assert together[row].item() == score(logits[row], labels[row]).item()
    common = score(logits, labels[0])
    assert common.shape == (3,)
    assert common[0].item() == together[0].item()


def test_a_classifier_that_is_not_finite_scores_nothing():
    """NaN in a reward would spread into the policy."""
    logits, labels = logits_and_labels()
    logits[1, 3, 4] = torch.nan
    found = measure(logits, labels)
    assert (found.score[1].item(), found.accuracy[1].item()) == (0.0, 0.0)
    assert found.ts_nll[1].item() == pytest.approx(math.log(10))
    assert (found.score[[0, 2]] > 0).all()


def test_the_reward_is_the_scaled_and_clipped_difference():
    """One constant for all instances; no instance may outshout the others."""
    scores, references = torch.tensor([0.9, 0.86, 0.1, 1.0]), torch.tensor([0.85, 0.85, 0.9, 0.8])
    torch.testing.assert_close(relative(scores, references), torch.tensor([1.0, 0.2, -2.0, 2.0]), atol=1e-5, rtol=0)


def test_the_reference_is_the_widest_mixture():
    """The bar is random choice among all that the agent can choose."""
    v0, cheap = catalogue("v0"), catalogue("cheap")
    assert v0.names[uniform_entry(v0)] == "uniform"
    assert cheap.names[uniform_entry(cheap)] == "uniform-cheap"
    with pytest.raises(EnvError, match=r"the catalogue has only none, mixup. Add a `uniform` entry, or give reward"):
        uniform_entry(Catalogue({"none": Decision("none"), "mixup": Decision("mixup")}))
