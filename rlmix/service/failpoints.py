"""Places where the process can be made to end at once, so that a test can kill it exactly there."""

from __future__ import annotations

import os
from collections import Counter

VARIABLE = "RLMIX_FAILPOINT"
"""Environment variable: `NAME` of a place, or `NAME:COUNT` for the COUNT-th time that it is passed."""

CODE = 9
"""Exit code of a process that ended at such a place."""

_passed: Counter[str] = Counter()


def fail_point(name: str) -> None:
    """End the process here, without any cleaning up, if the environment asks for it; otherwise do nothing.

    Args:
        name: of the place, `service.SOMETHING` or `learner.SOMETHING`; each name stands for one moment.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    place, _, count = wanted.partition(":")
    if place == name:
        _passed[name] += 1
        if _passed[name] == int(count or 1):
            os._exit(CODE)
