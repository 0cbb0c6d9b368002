"""The tables, for SQLite and PostgreSQL alike. `revisions` makes them; a test holds the two together."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData()

projects = Table(
    "projects",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(63), nullable=False, unique=True),
    Column("created", BigInteger, nullable=False),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("data", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
)

policies = Table(
    "policies",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("name", String(63), nullable=False),
    UniqueConstraint("project_id", "name"),
)

policy_versions = Table(
    "policy_versions",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("policy_id", ForeignKey("policies.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("document", ForeignKey("blobs.digest"), nullable=False),
    Column("tensors", ForeignKey("blobs.digest"), nullable=False),
    Column("created", BigInteger, nullable=False),
    UniqueConstraint("policy_id", "number"),
    UniqueConstraint("policy_id", "document"),
)

policy_aliases = Table(
    "policy_aliases",
    metadata,
    Column("policy_id", ForeignKey("policies.id"), primary_key=True),
    Column("name", String(63), primary_key=True),
    Column("version_id", ForeignKey("policy_versions.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("updated", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("project_id", ForeignKey("projects.id"), nullable=False),
    Column("name", String(63), nullable=False),
    Column("version_id", ForeignKey("policy_versions.id"), nullable=False),
    Column("alias", String(63), nullable=False),
    Column("spec", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("ended", BigInteger),
    Column("attempt", Integer, nullable=False, server_default="1"),
    Column("renewed", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("project_id", "name"),
)

# Runs in the order in which they ended: whoever reads on from the last number that it saw misses none.
run_log = Table(
    "run_log",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("run_id", ForeignKey("runs.id"), nullable=False, unique=True),
    # Numbers of rows that were deleted are not given again.
    sqlite_autoincrement=True,
)

decisions = Table(
    "decisions",
    metadata,
    Column("run_id", ForeignKey("runs.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("observation", LargeBinary, nullable=False),
    Column("allowed", Text),
    Column("explore", BigInteger),
    Column("origin", String(16), nullable=False),
    Column("entry", Integer, nullable=False),
    Column("decision", Text, nullable=False),
    Column("probability", Double),
    Column("value", Double),
    Column("issued", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False, server_default="1"),
    # The rows of a run lie together, in order, and are found by one search.
    sqlite_with_rowid=False,
)

feedback = Table(
    "feedback",
    metadata,
    Column("run_id", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("data", Text, nullable=False),
    Column("received", BigInteger, nullable=False),
    ForeignKeyConstraint(["run_id", "seq"], ["decisions.run_id", "decisions.seq"]),
    sqlite_with_rowid=False,
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(200), primary_key=True),
    Column("holder", String(63)),
    Column("fence", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
)

learners = Table(
    "learners",
    metadata,
    Column("policy_id", ForeignKey("policies.id"), primary_key=True),
    Column("position", BigInteger, nullable=False),
    Column("checkpoint", ForeignKey("blobs.digest")),
    Column("updated", BigInteger, nullable=False),
)

tokens = Table(
    "tokens",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("project", String(63)),
    Column("scopes", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger),
    Column("revoked", BigInteger),
)
