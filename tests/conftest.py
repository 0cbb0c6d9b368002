"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Figures are drawn into files, also where a display exists; must be set before matplotlib is imported.
os.environ["MPLBACKEND"] = "Agg"

import pytest
import torch

# A shell starts what runs in its background with Ctrl-C ignored, and the programs that tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests' tensors are small: threads cost more than they bring, and sums would depend on the machine.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder that holds pyproject.toml."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def reference_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the references that environments compute out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLMIX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
