"""The files of agents that are no networks: one JSON document each, checked when it is read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rlmix._files import write_text
from rlmix.errors import PolicyError

SCHEMA = "rlmix.agent/1"


def write(path: str | os.PathLike[str], kind: str, fields: dict[str, Any]) -> None:
    """Write an agent. Floats come back bit for bit.

    Args:
        path: the file.
        kind: of the agent.
        fields: what JSON can hold.

    Raises:
        OutputError: `path` cannot be written.
    """
    write_text(path, json.dumps({"schema": SCHEMA, "kind": kind, **fields}, indent=2) + "\n")


def read(path: str | os.PathLike[str], kind: str, fields: set[str]) -> dict[str, Any]:
    """Return the document, having checked that it is one of `kind` with exactly these fields.

    Raises:
        PolicyError: the file is missing, damaged or of another agent.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PolicyError(f"`{path}` cannot be read as an agent ({error}). Give a file that `save` wrote.") from error
    expected = {"schema", "kind", *fields}
    if not isinstance(document, dict) or set(document) != expected:
        raise PolicyError(f"`{path}` must hold exactly the fields {', '.join(sorted(expected))}.")
    if (document["schema"], document["kind"]) != (SCHEMA, kind):
        raise PolicyError(f"`{path}` holds {document['schema']}/{document['kind']}, expected {SCHEMA}/{kind}.")
    return document
