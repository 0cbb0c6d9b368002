"""Every registered method keeps the contract of `rlmix.testing`."""

from __future__ import annotations

import pytest

from rlmix.methods import AbstractMethod, get, names
from rlmix.testing import MethodContract

VARIANTS = {
    "comixup, partition 4": ("comixup", {"partition": 4, "threshold": 0.5, "threshold_rule": "soft", "omega": 0.5}),
    "comixup, icm": ("comixup", {"partition": 5, "grid": 5, "rounds": 2, "alpha": 0.3, "threshold": 0.4}),
    "mixup, batch": ("mixup", {"alpha": 0.2, "scope": "batch"}),
    "cutmix, batch": ("cutmix", {"scope": "batch"}),
    "rmix, image": ("rmix", {"scope": "image", "grids": (4, 3, 1)}),
    "cutmix, exact area": ("cutmix", {"exact_area": True, "pairing": "reverse"}),
    "resizemix, batch": ("resizemix", {"scope": "batch", "low": 0.5, "high": 1.0}),
    "fmix, batch": ("fmix", {"scope": "batch", "grid": 5, "alpha": 0.5}),
    "fmix, released": ("fmix", {"mode": "released"}),
    "gridmix, batch": ("gridmix", {"scope": "batch", "count": 3}),
    "gridmix, cells": ("gridmix", {"variant": "cells", "count": 5}),
    "smoothmix, batch": ("smoothmix", {"scope": "batch", "low": 0.1}),
    "attentivemix, lam": ("attentivemix", {"k": None, "grid": 5, "alpha": 0.5}),
    "attentivemix, batch": ("attentivemix", {"k": None, "scope": "batch", "pairing": "reverse"}),
    "guidedmixup, mutual": ("guidedmixup", {"pairing": "mutual", "scope": "batch"}),
    "rmix, least": ("rmix", {"rule": "least", "grids": (4,), "released_labels": True}),
    "rmix, top": ("rmix", {"rule": "top"}),
    "rmix, differ": ("rmix", {"rule": "differ", "pairing": "reverse"}),
    "rmix, threshold": ("rmix", {"threshold": 0.33, "alpha": 0.2}),
    "grafting, quantile": ("grafting", {"threshold": "quantile", "temperature": 0.2, "norm": 1, "grid": 4}),
    "grafting, fixed": ("grafting", {"threshold": "fixed", "level": 0.02, "rate": 0.7}),
    "saliencymix, released": ("saliencymix", {"mode": "released", "scope": "batch"}),
    "saliencymix, moved": ("saliencymix", {"placement": "salient-nonsalient", "alpha": 0.5}),
    "saliencymix, released and moved": ("saliencymix", {"mode": "released", "placement": "nonsalient-salient"}),
    "grafting, batch": ("grafting", {"scope": "batch"}),
    "puzzlemix, 2": ("puzzlemix", {"grids": (2,), "scope": "image", "transport": False}),
    "puzzlemix, 4": ("puzzlemix", {"grids": (4,), "t_size": 1, "t_eps": 0.1, "pairing": "reverse"}),
    "puzzlemix, 5": ("puzzlemix", {"grids": (5,), "levels": 4, "neighbour": 1, "t_size": None}),
    "puzzlemix, chains": ("puzzlemix", {"grids": (4, 3), "solver": "chains", "levels": 2, "gamma": 0.0}),
    "uniform, image": ("uniform", {"scope": "image"}),
}


class TestRegisteredMethods(MethodContract):
    """The contract, for every method with its defaults and for each method's other modes."""

    @pytest.fixture(params=[*names(), *VARIANTS])
    def method(self, request: pytest.FixtureRequest) -> AbstractMethod:
        """Return each registered method, then the variants."""
        name, params = VARIANTS.get(request.param, (request.param, {}))
        return get(name, **params)
