"""Every registered method keeps the contract of `rlmix.testing`."""

from __future__ import annotations

import pytest

from rlmix.methods import AbstractMethod, get, names
from rlmix.testing import MethodContract

VARIANTS = {
    "mixup, batch": ("mixup", {"alpha": 0.2, "scope": "batch"}),
    "cutmix, batch": ("cutmix", {"scope": "batch"}),
    "rmix, image": ("rmix", {"scope": "image", "grids": (4, 3, 1)}),
    "rmix, threshold": ("rmix", {"threshold": 0.33, "alpha": 0.2}),
    "grafting, quantile": ("grafting", {"threshold": "quantile", "temperature": 0.2, "norm": 1, "grid": 4}),
    "grafting, fixed": ("grafting", {"threshold": "fixed", "level": 0.02, "rate": 0.7}),
    "uniform, image": ("uniform", {"scope": "image"}),
}


class TestRegisteredMethods(MethodContract):
    """The contract, for every method with its defaults and for each method's other modes."""

    @pytest.fixture(params=[*names(), *VARIANTS])
    def method(self, request: pytest.FixtureRequest) -> AbstractMethod:
        """Return each registered method, then the variants."""
        name, params = VARIANTS.get(request.param, (request.param, {}))
        return get(name, **params)
