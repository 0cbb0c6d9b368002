"""Agents that a learned one must beat."""

from __future__ import annotations

from rlmix.agents.baselines.bandits import BanditAgent as BanditAgent
from rlmix.agents.baselines.bandits import Exp3S as Exp3S
from rlmix.agents.baselines.bandits import Thompson as Thompson
from rlmix.agents.baselines.fixed import BestFixedPerBudget as BestFixedPerBudget
from rlmix.agents.baselines.fixed import FixedAgent as FixedAgent
from rlmix.agents.baselines.population import PBTConfig as PBTConfig
from rlmix.agents.baselines.schedules import RandomHold as RandomHold
from rlmix.agents.baselines.schedules import ScheduleAgent as ScheduleAgent

__all__ = [
    "BanditAgent",
    "BestFixedPerBudget",
    "Exp3S",
    "FixedAgent",
    "PBTConfig",
    "RandomHold",
    "ScheduleAgent",
    "Thompson",
]
