"""Writes the file that a revision is kept by: a small database with rows in each table, made by the code of its time.

Run it once, when the newest revision is new: python tests/service/storage/databases/make.py
"""

from __future__ import annotations

import itertools
import sqlite3
import struct
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlmix.service.records import DecisionRecord, Feedback, Learner, Spec, Token
from rlmix.service.storage import migrate, sql
from rlmix.service.storage.abstract import AbstractStorage
from rlmix.service.storage.opening import open_storage

SPEC: Spec = {"total_steps": 100, "num_classes": 10, "num_examples": None, "label/data": "digits"}
BEGUN = 1_795_000_000_000_000


def record(seq: int, **changes: Any) -> DecisionRecord:
    """Return a decision with numbers that are easily rounded."""
    made = DecisionRecord(
        seq=seq,
        attempt=1,
        step=10 * seq,
        observation=struct.pack("<3f", 0.1, -1.0, seq / 7),
        allowed=(0, 2, 3),
        explore=2**63 - 1,
        origin="server",
        entry=2,
        decision='{"method":"cutmix","params":{},"probability":1.0}',
        probability=0.1 + 0.2,
        value=-1e-300,
        issued=BEGUN + seq,
    )
    return replace(made, **changes)


def fill(storage: AbstractStorage) -> None:
    """Put rows into every table: two projects, and runs that have ended, go on, and were claimed."""
    for project in ("default", "other"):
        storage.create_project(project)
        tensors, _ = storage.put_blob(b"tensors")
        for text in ('{"policy": 1}', '{"policy": 2, "name": "\u00e9"}'):
            document, _ = storage.put_blob(text.encode())
            storage.add_version(project, "default", document, tensors)
    storage.put_blob(b"\x00\xff" * 8)
    storage.set_alias("default", "default", "default", 1, 0)
    storage.set_alias("other", "default", "default", 2, 0)
    storage.create_run("default", "ended", "default", "default", SPEC)
    storage.set_alias("default", "default", "default", 2, 1)
    storage.create_run("default", "active", "default", "default", {**SPEC, "num_examples": 7})
    storage.create_run("other", "ended", "default", "default", SPEC)
    for project, run in (("default", "ended"), ("default", "active"), ("other", "ended")):
        storage.put_decision(project, run, record(0))
        storage.put_decision(project, run, record(1, allowed=None, explore=None, value=None))
        storage.put_decision(project, run, record(2, origin="held", probability=None, value=None))
        storage.put_decision(project, run, record(2**53 - 1, origin="snapshot", probability=5e-324, explore=0))
        given = Feedback(seq=0, values={"val_accuracy": 0.1 + 0.2, "n": -1e300}, received=5)
        storage.put_feedback(project, run, given, 1)
        storage.put_feedback(project, run, Feedback(seq=2, values={"val_accuracy": 1 / 3}, received=2**53), 1)
    storage.end_run("default", "ended", "finished", 1)
    storage.end_run("other", "ended", "failed", 1)
    storage.claim_run("default", "active")
    fence = storage.acquire("learner", "me", 60.0)
    assert fence is not None
    checkpoint, _ = storage.put_blob(b"checkpoint")
    state = Learner(cursor=1, checkpoint=checkpoint)
    storage.save_learner("default", "default", state, lease="learner", fence=fence)
    token = Token(name="me", project=None, scopes=("admin",), created=BEGUN, expires=None, revoked=None)
    storage.create_token(token, 64 * "0")
    storage.create_token(replace(token, name="you", project="other", scopes=("read", "decide")), 64 * "1")
    storage.revoke_token("you")


def dump(path: Path) -> str:
    """Return a file of SQLite as statements."""
    with closing(sqlite3.connect(path)) as connection:
        return "\n".join(connection.iterdump()) + "\n"


def main() -> None:
    """Write the file of the newest revision."""
    clock = itertools.count(BEGUN, 1_000_003)
    sql.now = lambda: next(clock)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        with closing(open_storage(f"sqlite:///{path}")) as storage:
            fill(storage)
        Path(__file__).with_name(f"r{migrate.head()}.sql").write_text(dump(path))


if __name__ == "__main__":
    main()
