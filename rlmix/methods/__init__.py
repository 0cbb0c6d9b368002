"""Mix methods: one a file, found by name through `get`."""

from rlmix.methods.method import AbstractMethod as AbstractMethod
from rlmix.methods.registry import get as get
from rlmix.methods.registry import names as names
from rlmix.methods.registry import parameters as parameters

__all__ = ["AbstractMethod", "get", "names", "parameters"]
