"""What a PPO run must remember between two waves to go on bit for bit: plain numbers and tensors, no pickle.

Checkpoints are taken between waves only, where no classifier is under way: the environment's state is then a
function of the seed and the wave number.
"""

from __future__ import annotations

import collections
import contextlib
import random  # noqa: TID251  (its state is only kept and given back)
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from rlmix.errors import CheckpointError

Algorithm: TypeAlias = OnPolicyAlgorithm | OffPolicyAlgorithm

SCHEMA = "rlmix.ppo-checkpoint/1"


@contextlib.contextmanager
def borrowed_randomness() -> Iterator[None]:
    """Give the caller of Python's, NumPy's and torch's global random state that state back at the end.

    stable-baselines3 seeds and uses all three.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  (what is to be kept)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def capture(model: Algorithm) -> dict[str, Any]:
    """Return networks, optimiser, random states and counters of `model` as a tree for `rlmix._files.save_tree`."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002  (stable-baselines3 shuffles with it)
    optimizer = model.policy.optimizer.state_dict()
    return {
        "schema": SCHEMA,
        "policy": dict(model.policy.state_dict()),
        "optimizer": {
            "state": {str(index): dict(state) for index, state in optimizer["state"].items()},
            "groups": optimizer["param_groups"],
        },
        "torch_random": torch.get_rng_state(),
        "numpy_random": {
            "words": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "position": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "timesteps": model.num_timesteps,
        "updates": model._n_updates,
        "episodes": [[float(episode["r"]), int(episode["l"])] for episode in model.ep_info_buffer or ()],
        "successes": [bool(success) for success in model.ep_success_buffer or ()],
    }


def restore(model: Algorithm, tree: Mapping[str, Any]) -> None:
    """Put back what `capture` took, except the random states (`restore_randomness`).

    Raises:
        CheckpointError: the tree is no checkpoint of such a model.
    """
    try:
        model.policy.load_state_dict(tree["policy"])
        model.policy.optimizer.load_state_dict(
            {
                "state": {int(index): state for index, state in tree["optimizer"]["state"].items()},
                "param_groups": tree["optimizer"]["groups"],
            }
        )
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"The checkpoint does not fit this agent: {error}") from error
    model.num_timesteps = tree["timesteps"]
    model._n_updates = tree["updates"]
    size = model._stats_window_size
    model.ep_info_buffer = collections.deque(({"r": value, "l": length} for value, length in tree["episodes"]), size)
    model.ep_success_buffer = collections.deque(tree["successes"], size)


def restore_randomness(tree: Mapping[str, Any]) -> None:
    """Set torch's and NumPy's global random state to those of the checkpoint."""
    torch.set_rng_state(tree["torch_random"])
    saved = tree["numpy_random"]
    words = saved["words"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        ("MT19937", words, saved["position"], saved["has_gauss"], saved["gauss"])
    )


def check_identity(path: object, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was started with something else.

    Args:
        path: where the checkpoint lies, for the message.
        saved: what the checkpoint was made with, by name.
        current: what is asked for now, by name.

    Raises:
        CheckpointError: they differ; the message names each difference.
    """
    names = [name for name in dict.fromkeys([*saved, *current]) if saved.get(name) != current.get(name)]
    if names:
        changes = "; ".join(f"`{name}` was {saved.get(name)!r} and is now {current.get(name)!r}" for name in names)
        raise CheckpointError(
            f"`{path}` belongs to another run: {changes}. Resume with what it was started with, or train into "
            "another folder."
        )
