"""Claims, the log of runs that ended, leases, learners and tokens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make them; runs and decisions that are there are of a first attempt."""
    op.add_column("runs", sa.Column("attempt", sa.Integer, nullable=False, server_default="1"))
    op.add_column("runs", sa.Column("renewed", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE runs SET renewed = created")
    op.add_column("decisions", sa.Column("attempt", sa.Integer, nullable=False, server_default="1"))
    op.create_table(
        "run_log",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("run_id", sa.Integer, sa.ForeignKey("runs.id"), nullable=False, unique=True),
        sqlite_autoincrement=True,
    )
    op.execute("INSERT INTO run_log (run_id) SELECT id FROM runs WHERE state <> 'active' ORDER BY ended, id")
    op.create_table(
        "leases",
        sa.Column("name", sa.String(200), primary_key=True),
        sa.Column("holder", sa.String(63)),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "learners",
        sa.Column("policy_id", sa.Integer, sa.ForeignKey("policies.id"), primary_key=True),
        sa.Column("position", sa.BigInteger, nullable=False),
        sa.Column("checkpoint", sa.String(64), sa.ForeignKey("blobs.digest")),
        sa.Column("updated", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "tokens",
        sa.Column("name", sa.String(63).with_variant(sa.String(63, collation="C"), "postgresql"), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("project", sa.String(63)),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("expires", sa.BigInteger),
        sa.Column("revoked", sa.BigInteger),
    )
