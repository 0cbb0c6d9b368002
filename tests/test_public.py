"""The public surface is what is written down."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest

# The contract with users: names may be added, and none of these may be renamed or taken away.
PROMISED = {
    "rlmix": {
        "Decision",
        "MixController",
        "MixInputs",
        "MixPlan",
        "MixedBatch",
        "RlmixError",
        "Streams",
        "apply",
        "methods",
        "mix",
        "mixed_accuracy",
        "mixed_cross_entropy",
        "mixed_loss",
        "saliency",
        "soft_cross_entropy",
    },
    "rlmix.methods": {"get", "names"},
    "rlmix.saliency": {
        "Detector",
        "SaliencyBank",
        "cam",
        "feature_map",
        "fine_grained",
        "input_gradient",
        "spectral_residual",
        "to_uint8",
    },
    "rlmix.envs": {"MixVecEnv"},
    "rlmix.agents": {"evaluate", "train_ppo"},
    "rlmix.testing": {"MethodContract"},
}


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_the_public_list_is_the_public_names(name: str) -> None:
    """A name that is importable but not listed gets used, and then cannot be taken back."""
    package = importlib.import_module(name)
    public = {
        key
        for key, value in vars(package).items()
        if not key.startswith("_") and not isinstance(value, ModuleType) and key != "annotations"
    }
    listed = {key for key in package.__all__ if not isinstance(getattr(package, key), ModuleType)}
    assert public == listed - {key for key in listed if key.startswith("_")}


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_promised_names_are_there(name: str) -> None:
    """A renamed function breaks every training script that calls it."""
    assert PROMISED[name] <= set(importlib.import_module(name).__all__)


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_the_public_list_has_no_name_twice(name: str) -> None:
    """A doubled entry is the trace of a bad merge."""
    listed = importlib.import_module(name).__all__
    assert len(listed) == len(set(listed))
