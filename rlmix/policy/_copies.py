"""Copies of a service's policies, for trainings that do not reach it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias, final

from rlmix._files import sha256_of, write_bytes, write_text
from rlmix.errors import OutputError, PolicyError
from rlmix.policy.artifact import DOCUMENT, TENSORS, load
from rlmix.policy.sources import Learned

Files: TypeAlias = Mapping[str, bytes]
"""The two files of a policy directory by name."""

_LOGGER = logging.getLogger("rlmix")
_NEWEST = "newest"


def built(files: Files) -> Learned:
    """Return the policy of two files.

    Raises:
        PolicyError: they are none.
    """
    with tempfile.TemporaryDirectory(prefix="rlmix-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return Learned(load(folder))


@final
class Copies:
    """The copies of one policy's versions on this machine.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, files: Files) -> None:
        """Keep a copy; where nothing can be written, say so and go on."""
        digest = sha256_of(files[DOCUMENT])
        try:
            for name, data in files.items():
                write_bytes(self._folder / digest / name, data)
            write_text(self._folder / _NEWEST, digest)
        except OutputError as error:
            _LOGGER.warning("no copy of the policy is kept for the next training (%s).", error)

    def newest(self) -> Files | None:
        """Return the files that were kept last, if they are whole."""
        try:
            digest = (self._folder / _NEWEST).read_text(encoding="utf-8").strip()
            files = {name: (self._folder / digest / name).read_bytes() for name in (DOCUMENT, TENSORS)}
            built(files)
        except (OSError, ValueError, PolicyError):
            return None
        return files if sha256_of(files[DOCUMENT]) == digest else None
