"""The exceptions of rlmix: one small tree, so that `except RlmixError` catches all and nothing else.

    RlmixError
    ├── InputError (ValueError)          images, labels or saliency of a wrong shape, dtype, device or value
    ├── MethodError (ValueError)         a parameter of a mix method out of its range
    ├── PlanError (ValueError)           a MixPlan that does not fit the images, or is inconsistent
    ├── UnknownNameError (LookupError)   an unknown method, parameter, data set, model or catalogue entry
    ├── ConfigError (ValueError)         a configuration of a wrong form
    ├── DataError (OSError)              image data that is not where it was looked for
    ├── PolicyError (ValueError)         a policy directory that is damaged or foreign
    ├── CheckpointError (ValueError)     a checkpoint that is damaged or of another run
    ├── OutputError (OSError)            an output folder that cannot be written
    ├── EnvError (ValueError)            a call that the environment cannot answer
    ├── ServiceError (ConnectionError)   the policy service is away, or answers what no service answers
    ├── StorageError (OSError)           a database that is damaged, in use, or of another version
    │   ├── MissingError (LookupError)   nothing is stored under this name
    │   └── ConflictError (ValueError)   something else is stored under this name
    │       └── FencedError              somebody else goes on with this run, or holds this lease
    └── MissingDependencyError (ImportError)  an optional package that is not installed

Each class also inherits the builtin that a caller would expect. Messages say what was given, what was expected and
how to mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class RlmixError(Exception):
    """Base of every error that rlmix raises on purpose."""


class InputError(RlmixError, ValueError):
    """Images, labels or saliency maps of a wrong shape, dtype, device or value."""


class MethodError(RlmixError, ValueError):
    """A parameter of a mix method is out of its range."""


class PlanError(RlmixError, ValueError):
    """A MixPlan does not fit the images it is applied to, or contradicts itself."""


class UnknownNameError(RlmixError, LookupError):
    """A name that nothing is registered under; the message names the nearest known one."""


class ConfigError(RlmixError, ValueError):
    """A configuration has unknown keys or values of a wrong type or range."""


class DataError(RlmixError, OSError):
    """Image data is missing or unreadable."""


class PolicyError(RlmixError, ValueError):
    """A policy directory is damaged, incomplete or of another kind."""


class CheckpointError(RlmixError, ValueError):
    """A checkpoint is damaged or belongs to another run."""


class OutputError(RlmixError, OSError):
    """An output folder or file cannot be written."""


class EnvError(RlmixError, ValueError):
    """The environment was asked for something it cannot do."""


class ServiceError(RlmixError, ConnectionError):
    """The policy service is away, refuses a request, or answers what no service answers."""


class StorageError(RlmixError, OSError):
    """The service's database is damaged, in use by another process, or of another version."""


class MissingError(StorageError, LookupError):
    """Nothing is stored under a name."""


class ConflictError(StorageError, ValueError):
    """Something else is stored under a name, and what is stored never changes."""


class FencedError(ConflictError):
    """Somebody else has claimed a run, or taken a lease, since: whoever had it before must not write any more."""


class MissingDependencyError(RlmixError, ImportError):
    """An optional package is needed and not installed."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the sentence that helps somebody who misspelt `name`.

    Args:
        name: what was given.
        known: the names that would have been right.

    Returns:
        "Did you mean `x`? Known: a, b, c." or, where nothing is near, "Known: a, b, c."
    """
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean `{close[0]}`? " if close else ""
    return f"{guess}Known: {', '.join(names)}."
