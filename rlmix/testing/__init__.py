"""Contract suites that third parties can run on their own methods and storages (needs pytest)."""

from rlmix.testing.methods import MethodContract as MethodContract
from rlmix.testing.methods import OperationCounter as OperationCounter
from rlmix.testing.storage import ServedContract as ServedContract
from rlmix.testing.storage import StorageContract as StorageContract

__all__ = ["MethodContract", "OperationCounter", "ServedContract", "StorageContract"]
