"""Contract suites that third parties can run on their own methods (needs pytest)."""

from rlmix.testing.methods import MethodContract as MethodContract
from rlmix.testing.methods import OperationCounter as OperationCounter

__all__ = ["MethodContract", "OperationCounter"]
