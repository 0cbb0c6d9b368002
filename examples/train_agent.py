"""Train an agent, and compare its policy with random choice on instances that it has not seen.

    python examples/train_agent.py --out runs/example

The defaults are small and learn little; `rlmix demo` is the same at a useful size, with all baselines and a report.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from rich.console import Console

from rlmix.agents import FixedAgent, LearnedAgent, PPOConfig, evaluate, train_ppo, uniform_entry
from rlmix.envs import digits_set, observation_names
from rlmix.policy.codec import catalogue


def main() -> None:
    """Train, evaluate, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--timesteps", type=int, default=1024, help="decisions to learn from")
    parser.add_argument("--actors", type=int, default=32, help="classifiers that are trained side by side")
    parser.add_argument("--instances", type=int, default=24, help="trainings to evaluate on")
    parser.add_argument("--out", default="runs/example")
    arguments = parser.parse_args()
    # The classifiers are so small that sharing their work out costs more than the work.
    torch.set_num_threads(1)

    actions = catalogue("cheap")
    wave = arguments.actors * digits_set("train").horizon
    policy = train_ppo(
        PPOConfig(
            catalogue="cheap",
            timesteps=arguments.timesteps,
            actors=arguments.actors,
            batch_size=min(128, wave),
            out=arguments.out,
        ),
        instances=digits_set("train", 2 * arguments.instances),
        validation=digits_set("validation", arguments.instances),
    )

    report = evaluate(
        {
            "learned": LearnedAgent(policy, observation_names(actions)),
            "none": FixedAgent("none", actions),
            "uniform": FixedAgent(uniform_entry(actions), actions),
        },
        digits_set("heldout", arguments.instances),
        catalogue=actions,
    )
    Console().print(report.table(to="uniform"))
    print(f"The policy is in {Path(arguments.out) / 'policy'}.")
    print(f"See its training with: tensorboard --logdir {arguments.out}")


if __name__ == "__main__":
    main()
