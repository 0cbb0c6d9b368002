"""What all trainings of agents have in common: the folder of a run, what identifies it, and its policy's card."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from rlmix._files import load_tree, writable_folder, write_text
from rlmix.agents.checkpoint import check_identity
from rlmix.envs.instances import InstanceSet
from rlmix.errors import CheckpointError, ConfigError, OutputError
from rlmix.monitor.board import Board
from rlmix.monitor.provenance import versions
from rlmix.policy import signals
from rlmix.policy.codec import AbstractCodec, Catalogue

CHECKPOINT = "checkpoint.safetensors"
CONFIG = "config.yaml"
POLICY = "policy"

# Where the run's files lie, and among how many processes it is divided, says nothing about its policy.
PLACES = frozenset({"out", "data_dir", "processes"})


def check_settings(config: Any, lowest: Mapping[str, int]) -> None:
    """Check what the configurations of all algorithms have in common.

    Args:
        config: a configuration.
        lowest: the lowest value of whole numbers, by name.

    Raises:
        ConfigError: a value out of its range.
    """
    for name, least in lowest.items():
        if getattr(config, name) < least:
            raise ConfigError(f"`{name}` must be at least {least}, got {getattr(config, name)}.")
    if not 0 <= config.seed < 2**32:
        raise ConfigError(f"`seed` must be in [0, 2**32), got {config.seed}.")
    if not 0 < config.learning_rate < math.inf:
        raise ConfigError(f"`learning_rate` must be above 0, got {config.learning_rate}.")
    if not config.hidden or min(config.hidden) < 1:
        raise ConfigError(f"`hidden` must hold widths of at least 1, got {list(config.hidden)}.")


def settings_of(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON and YAML hold it."""
    return {**asdict(config), "hidden": list(config.hidden)}


def note_settings(board: Board, settings: Mapping[str, Any], statistics: Mapping[str, float]) -> None:
    """Write the settings and what came of them into TensorBoard's table of runs."""
    flat = {**settings, "hidden": " ".join(map(str, settings["hidden"]))}
    board.hyperparameters(flat, {f"final/{name}": value for name, value in statistics.items()})


def identity_of(
    settings: Mapping[str, Any], free: Collection[str], training: InstanceSet, actions: Catalogue | AbstractCodec
) -> dict[str, Any]:
    """Return what decides the course of a run, by name.

    Args:
        settings: the run's configuration, as JSON can hold it.
        free: names of settings that may change between an interruption and the resumed run.
        training: the training instances.
        actions: what actions mean.
    """
    values = {name: value for name, value in settings.items() if name not in free}
    digests = {"instances": training.digest, "catalogue": actions.digest}
    return {**values, "observation": signals.OBSERVATION, **digests}


def open_run(
    out: str, settings: Mapping[str, Any], identity: Mapping[str, Any], *, schema: str, resume: bool
) -> dict[str, Any]:
    """Return the checkpoint in `out` that the run goes on from; for a new run, an empty tree.

    A new run's configuration is written beside it.

    Args:
        out: folder of the run.
        settings: the run's configuration, as YAML can hold it.
        identity: what the run is started with, by name; a resumed run's must be the same.
        schema: kind of the checkpoint.
        resume: whether to go on.

    Raises:
        CheckpointError: there is no checkpoint to resume, or it belongs to another run.
        OutputError: the folder cannot be written, or holds a run that is not to be resumed.
    """
    folder = writable_folder(out)
    path = folder / CHECKPOINT
    if not resume:
        if path.exists():
            raise OutputError(f"`{folder}` already holds a run. Go on with it by --resume, or give another --out.")
        write_text(folder / CONFIG, yaml.safe_dump(dict(settings), sort_keys=False))
        return {}
    tree = load_tree(path)
    if not isinstance(tree, dict) or tree.get("schema") != schema:
        raise CheckpointError(f"`{path}` is no checkpoint of such a training ({schema}). Give the folder of one.")
    check_identity(path, tree["identity"], identity)
    return tree


def checkpoint_path(out: str) -> Path:
    """Return where the run in `out` keeps its checkpoint."""
    return Path(out) / CHECKPOINT


def card_of(
    algorithm: str,
    settings: Mapping[str, Any],
    training: InstanceSet,
    timesteps: int,
    statistics: Mapping[str, float],
) -> dict[str, Any]:
    """Return where a policy comes from; it says the same for the same run at any place and time.

    Args:
        algorithm: what it was trained by.
        settings: the run's configuration.
        training: the training instances.
        timesteps: decisions that it learned from.
        statistics: the last evaluation, by tag.
    """
    values = {name: value for name, value in settings.items() if name not in PLACES | {"timesteps"}}
    return {
        "algorithm": algorithm,
        "instances": {"name": training.name, "digest": training.digest, "count": len(training)},
        "timesteps": timesteps,
        "seed": settings["seed"],
        "config": values,
        "versions": versions(),
        "statistics": dict(statistics),
    }
