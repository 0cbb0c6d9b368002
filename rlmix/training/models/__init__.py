"""The classifiers that can be trained by name; `registry` is the table of them."""

from rlmix.training.models.registry import build as build
from rlmix.training.models.registry import init as init
from rlmix.training.models.registry import names as names

__all__ = ["build", "init", "names"]
