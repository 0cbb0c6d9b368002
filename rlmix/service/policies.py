"""Policies that the service has read from its storage: checked once, then kept."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import final

from rlmix.errors import PolicyError
from rlmix.policy.artifact import DOCUMENT, TENSORS, load
from rlmix.policy.sources import Learned
from rlmix.service.storage.abstract import AbstractStorage

_KEPT = 32


@final
class Policies:
    """The policies of a storage, by their digests. Calls may come from several threads.

    Args:
        storage: where their blobs are.
    """

    def __init__(self, storage: AbstractStorage) -> None:
        self._storage = storage
        self._kept: OrderedDict[str, Learned] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, document: str, tensors: str) -> Learned:
        """Return the policy of two blobs.

        Raises:
            MissingError: a blob is not there.
            PolicyError: they are no policy, or not one with each other.
        """
        with self._lock:
            found = self._kept.get(document)
            if found is not None:
                self._kept.move_to_end(document)
                return found
        policy = _read(self._storage.blob(document), self._storage.blob(tensors))
        with self._lock:
            self._kept[document] = policy
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return policy


def _read(document: bytes, tensors: bytes) -> Learned:
    with tempfile.TemporaryDirectory(prefix="rlmix-") as folder:
        (Path(folder) / DOCUMENT).write_bytes(document)
        (Path(folder) / TENSORS).write_bytes(tensors)
        try:
            return Learned(load(folder))
        except PolicyError as error:
            # Where the service keeps its files is nobody's business.
            raise PolicyError(str(error).replace(f"{folder}/", "")) from None
