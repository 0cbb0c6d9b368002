"""Agents that choose how to mix, the baselines they must beat, and their paired evaluation.

An agent sees a training only through the observations of `rlmix.envs` and answers with entries of a catalogue.
"""

from __future__ import annotations

if __name__ == "agents":
    raise ImportError("`import agents` would load a second copy of every class. Write `import rlmix.agents` instead.")

from rlmix.agents.agent import AbstractAgent as AbstractAgent
from rlmix.agents.agent import Feedback as Feedback
from rlmix.agents.agent import LearnedAgent as LearnedAgent
from rlmix.agents.baselines.fixed import BestFixedPerBudget as BestFixedPerBudget
from rlmix.agents.baselines.fixed import FixedAgent as FixedAgent
from rlmix.agents.baselines.fixed import uniform_entry as uniform_entry
from rlmix.agents.comparison import compare as compare
from rlmix.agents.evaluate import evaluate as evaluate
from rlmix.agents.ppo import PPOConfig as PPOConfig
from rlmix.agents.ppo import train_ppo as train_ppo
from rlmix.agents.report import Report as Report
from rlmix.agents.report import best_fixed as best_fixed
from rlmix.agents.report import best_fixed_per_budget as best_fixed_per_budget

__all__ = [
    "AbstractAgent",
    "BestFixedPerBudget",
    "Feedback",
    "FixedAgent",
    "LearnedAgent",
    "PPOConfig",
    "Report",
    "best_fixed",
    "best_fixed_per_budget",
    "compare",
    "evaluate",
    "train_ppo",
    "uniform_entry",
]
