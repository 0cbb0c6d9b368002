"""Agents that choose how to mix, the baselines they must beat, and their paired evaluation.

An agent sees a training only through the observations of `rlmix.envs` and answers with entries of a catalogue.
"""

from __future__ import annotations

if __name__ == "agents":
    raise ImportError("`import agents` would load a second copy of every class. Write `import rlmix.agents` instead.")

from rlmix.agents.agent import AbstractAgent as AbstractAgent
from rlmix.agents.agent import Feedback as Feedback
from rlmix.agents.agent import LearnedAgent as LearnedAgent
from rlmix.agents.baselines.bandits import BanditAgent as BanditAgent
from rlmix.agents.baselines.bandits import Exp3S as Exp3S
from rlmix.agents.baselines.bandits import Thompson as Thompson
from rlmix.agents.baselines.bandits import learn_online as learn_online
from rlmix.agents.baselines.evolution import ESConfig as ESConfig
from rlmix.agents.baselines.evolution import train_es as train_es
from rlmix.agents.baselines.fixed import BestFixedPerBudget as BestFixedPerBudget
from rlmix.agents.baselines.fixed import FixedAgent as FixedAgent
from rlmix.agents.baselines.fixed import uniform_entry as uniform_entry
from rlmix.agents.baselines.population import PBTConfig as PBTConfig
from rlmix.agents.baselines.population import search_schedule as search_schedule
from rlmix.agents.baselines.schedules import RandomHold as RandomHold
from rlmix.agents.baselines.schedules import ScheduleAgent as ScheduleAgent
from rlmix.agents.baselines.schedules import mix_then_none as mix_then_none
from rlmix.agents.baselines.schedules import plain_entries as plain_entries
from rlmix.agents.baselines.schedules import warm_up as warm_up
from rlmix.agents.comparison import compare as compare
from rlmix.agents.evaluate import evaluate as evaluate
from rlmix.agents.ppo import PPOConfig as PPOConfig
from rlmix.agents.ppo import train_ppo as train_ppo
from rlmix.agents.qrdqn import QRDQNConfig as QRDQNConfig
from rlmix.agents.qrdqn import train_qrdqn as train_qrdqn
from rlmix.agents.report import Report as Report
from rlmix.agents.report import best_fixed as best_fixed
from rlmix.agents.report import best_fixed_per_budget as best_fixed_per_budget
from rlmix.agents.rl_mix import RLMixConfig as RLMixConfig
from rlmix.agents.rl_mix import RLMixResult as RLMixResult
from rlmix.agents.rl_mix import train_rlmix as train_rlmix

__all__ = [
    "AbstractAgent",
    "BanditAgent",
    "BestFixedPerBudget",
    "ESConfig",
    "Exp3S",
    "Feedback",
    "FixedAgent",
    "LearnedAgent",
    "PBTConfig",
    "PPOConfig",
    "QRDQNConfig",
    "RLMixConfig",
    "RLMixResult",
    "RandomHold",
    "Report",
    "ScheduleAgent",
    "Thompson",
    "best_fixed",
    "best_fixed_per_budget",
    "compare",
    "evaluate",
    "learn_online",
    "mix_then_none",
    "plain_entries",
    "search_schedule",
    "train_es",
    "train_ppo",
    "train_qrdqn",
    "train_rlmix",
    "uniform_entry",
    "warm_up",
]
