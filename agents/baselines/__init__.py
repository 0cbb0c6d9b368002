"""Agents that a learned one must beat."""

from __future__ import annotations

from rlmix.agents.baselines.fixed import BestFixedPerBudget as BestFixedPerBudget
from rlmix.agents.baselines.fixed import FixedAgent as FixedAgent

__all__ = ["BestFixedPerBudget", "FixedAgent"]
