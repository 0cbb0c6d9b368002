"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

# Names are compared byte by byte on SQLite, so that pages of them have the same order everywhere.
NAME = sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "projects",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", NAME, nullable=False, unique=True),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(64), primary_key=True),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "policies",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("project_id", sa.Integer, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.UniqueConstraint("project_id", "name"),
    )
    op.create_table(
        "policy_versions",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("policy_id", sa.Integer, sa.ForeignKey("policies.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("document", sa.String(64), sa.ForeignKey("blobs.digest"), nullable=False),
        sa.Column("tensors", sa.String(64), sa.ForeignKey("blobs.digest"), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("policy_id", "number"),
        sa.UniqueConstraint("policy_id", "document"),
    )
    op.create_table(
        "policy_aliases",
        sa.Column("policy_id", sa.Integer, sa.ForeignKey("policies.id"), primary_key=True),
        sa.Column("name", NAME, primary_key=True),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("policy_versions.id"), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("updated", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("project_id", sa.Integer, sa.ForeignKey("projects.id"), nullable=False),
        sa.Column("name", NAME, nullable=False),
        sa.Column("version_id", sa.Integer, sa.ForeignKey("policy_versions.id"), nullable=False),
        sa.Column("alias", sa.String(63), nullable=False),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("ended", sa.BigInteger),
        sa.UniqueConstraint("project_id", "name"),
    )
    op.create_table(
        "decisions",
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("step", sa.BigInteger, nullable=False),
        sa.Column("observation", sa.LargeBinary, nullable=False),
        sa.Column("allowed", sa.Text),
        sa.Column("explore", sa.BigInteger),
        sa.Column("origin", sa.String(16), nullable=False),
        sa.Column("entry", sa.Integer, nullable=False),
        sa.Column("decision", sa.Text, nullable=False),
        sa.Column("probability", sa.Double),
        sa.Column("value", sa.Double),
        sa.Column("issued", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "feedback",
        sa.Column("run_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("received", sa.BigInteger, nullable=False),
        sa.ForeignKeyConstraint(["run_id", "seq"], ["decisions.run_id", "decisions.seq"]),
        sqlite_with_rowid=False,
    )
