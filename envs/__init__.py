"""Training with mixed images as a reinforcement learning problem: instances, the pool, and environments over it.

Importing this package registers `rlmix/MixTraining-v0`; `gymnasium.make("rlmix.envs:rlmix/MixTraining-v0")` imports it.
`rlmix/RLMix-v0` is the published agent of R-Mix, for comparison.
"""

from __future__ import annotations

if __name__ == "envs":
    raise ImportError("`import envs` would load a second copy of every class. Write `import rlmix.envs` instead.")

import gymnasium

from rlmix.envs.instances import Instance as Instance
from rlmix.envs.instances import InstanceSet as InstanceSet
from rlmix.envs.instances import Recipe as Recipe
from rlmix.envs.instances import digits_set as digits_set
from rlmix.envs.instances import instance_set as instance_set
from rlmix.envs.instances import load_recipe as load_recipe
from rlmix.envs.mix_training import MixTrainingEnv as MixTrainingEnv
from rlmix.envs.pool import Pool as Pool
from rlmix.envs.rl_mix import RLMixEnv as RLMixEnv
from rlmix.envs.sb3 import MixVecEnv as MixVecEnv
from rlmix.envs.vector import MixVectorEnv as MixVectorEnv
from rlmix.policy.signals import names as observation_names

__all__ = [
    "Instance",
    "InstanceSet",
    "MixTrainingEnv",
    "MixVecEnv",
    "MixVectorEnv",
    "Pool",
    "RLMixEnv",
    "Recipe",
    "digits_set",
    "instance_set",
    "load_recipe",
    "observation_names",
]

gymnasium.register(
    id="rlmix/MixTraining-v0",
    entry_point="rlmix.envs.mix_training:MixTrainingEnv",
    vector_entry_point="rlmix.envs.vector:MixVectorEnv",
)
gymnasium.register(id="rlmix/RLMix-v0", entry_point="rlmix.envs.rl_mix:RLMixEnv")
