"""Configurations: YAML files, overrides from the command line, and what a training is described by."""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, final

from rlmix.errors import ConfigError, nearest

Config = TypeVar("Config")
Device = Literal["auto", "cpu", "cuda"]
Saliency = Literal["gradient", "bank", "fine_grained"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How one classifier is trained.

    Attributes:
        data: a data set's name, or a folder of images.
        data_dir: where data sets lie that are not part of a package; None asks the environment variable `RLMIX_DATA`.
        image_size: side to which the images of a folder are brought.
        limit: at most this many training and this many test images, in which every class keeps its share; None takes
            all.
        validation: share of the training images that is held out, in [0, 1). A learned policy looks at them; they are
            held out for every other way of mixing too, so that two runs differ in nothing else.
        noise: share of the training images, those held out among them, whose label is replaced by another class, in
            [0, 1). Test labels stay as they are.
        model: a model's name.
        method: the mix method of the whole training, unless there is a policy.
        params: the method's parameters.
        policy: folder of a learned policy, or None.
        saliency: where methods with saliency get their maps from: "gradient" (a pass of its own through the network),
            "bank" (a map remembered for each training image, refreshed by the training's own backward passes) or
            "fine_grained" (a detector that looks at the picture alone).
        refresh_every: steps between two passes of their own that also refresh the bank; 0 makes none.
        epochs: passes over the training images.
        batch_size: images in a step; fewer if there are not so many.
        lr: step size at the beginning; it falls to 0 as a cosine.
        momentum: of SGD (Nesterov), in [0, 1).
        weight_decay: of SGD.
        seed: seed of everything, in [0, 2**63).
        checkpoint_every: steps between two checkpoints; 0 writes one after each epoch.
        device: where to train; "auto" takes a GPU if there is one.
    """

    data: str = "digits"
    data_dir: str | None = None
    image_size: int = 64
    limit: int | None = None
    validation: float = 0.1
    noise: float = 0.0
    model: str = "cnn"
    method: str = "uniform"
    params: Mapping[str, Any] = field(default_factory=dict)
    policy: str | None = None
    saliency: Saliency = "gradient"
    refresh_every: int = 0
    epochs: int = 20
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    seed: int = 0
    checkpoint_every: int = 0
    device: Device = "auto"

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise ConfigError(f"`{name}` must be at least {lowest}, got {value}.")
        if not 0 < self.lr < math.inf:
            raise ConfigError(f"`lr` must be above 0, got {self.lr}.")
        for name in ("validation", "noise", "momentum"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"`{name}` must be below 1, got {getattr(self, name)}.")
        if self.seed >= 2**63:
            raise ConfigError(f"`seed` must be below 2**63, got {self.seed}.")
        if self.refresh_every and self.saliency != "bank":
            raise ConfigError(
                f"`refresh_every` {self.refresh_every} refreshes the bank, but `saliency` is {self.saliency}. Set "
                "saliency=bank, or leave `refresh_every` out."
            )
        if self.policy is not None and self.params:
            raise ConfigError(f"`params` {dict(self.params)} belong to a method, but `policy` is given. Leave one out.")


_LOWEST = {
    "image_size": 1, "limit": 1, "validation": 0, "noise": 0, "epochs": 1, "batch_size": 1, "momentum": 0,
    "weight_decay": 0, "seed": 0, "checkpoint_every": 0, "refresh_every": 0,
}  # fmt: skip


def load_config(
    path: str | os.PathLike[str] | None, model_class: type[Config], overrides: Sequence[str] = ()
) -> Config:
    """Read a YAML file into a typed model.

    Args:
        path: the file, or None for the defaults.
        model_class: a dataclass or a pydantic model.
        overrides: `"key=value"` texts that take precedence, later ones over earlier ones: the value in YAML, keys of
            nested models joined by dots.

    Raises:
        ConfigError: the file is missing or no YAML, a key is unknown (the message names the nearest right one), or a
            value has a wrong type or range.

    Example:
        >>> load_config(None, TrainConfig, ["lr=0.05", "params.alpha=0.2", "method=mixup"]).lr
        0.05
    """
    document = {} if path is None else _read(Path(path))
    for override in overrides:
        _put(document, *_override(override))
    return from_mapping(document, model_class, source="the command line" if path is None else f"`{path}`")


def keys_of(path: str | os.PathLike[str]) -> frozenset[str]:
    """Return the first-level keys of a YAML file, for who must tell one kind of configuration from another.

    Raises:
        ConfigError: the file is missing or no YAML.
    """
    return frozenset(_read(Path(path)))


def from_mapping(document: Mapping[str, Any], model_class: type[Config], *, source: str) -> Config:
    """Check a mapping and make a typed model of it; see `load_config`."""
    from pydantic import TypeAdapter, ValidationError

    _check_keys(document, model_class, source, "")
    try:
        return TypeAdapter(model_class).validate_python(dict(document))
    except ValidationError as error:
        problems = [_problem(cast(Mapping[str, Any], problem)) for problem in error.errors()]
        raise ConfigError(f"{source}: {' '.join(problems)}") from error


def _problem(problem: Mapping[str, Any]) -> str:
    """Return one sentence for one of pydantic's findings."""
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    where = ".".join(str(part) for part in problem["loc"])
    message = str(problem["msg"])
    return f"`{where}`: {message[0].lower()}{message[1:]}, got {problem['input']!r}."


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"`{path}` cannot be read ({getattr(error, 'strerror', None) or error}).") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"`{path}` is not valid YAML: {_one_line(error)}.") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"`{path}` must hold `key: value` lines, got a {type(document).__name__}.")
    return document


def _override(text: str) -> tuple[str, Any]:
    import yaml

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"`{text}` must have the form key=value, such as lr=0.05.")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of `{text}` is not valid YAML: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _put(document: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key, making the mappings on the way."""
    *folders, last = key.split(".")
    for folder in folders:
        inner = document.setdefault(folder, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"`{key}` cannot be set: `{folder}` is {inner!r}, not a group of keys.")
        document = inner
    document[last] = value


def _check_keys(document: Any, annotation: Any, source: str, prefix: str) -> None:
    """Refuse unknown keys, in nested models too, naming the nearest right one."""
    known = _fields(annotation)
    if known is None:
        items = document if isinstance(document, list) else [document]
        for item in items:
            for inner in typing.get_args(annotation):
                _check_keys(item, inner, source, prefix)
    elif isinstance(document, Mapping):
        for key, value in document.items():
            if key not in known:
                raise ConfigError(f"{source}: there is no key `{prefix}{key}`. {nearest(str(key), known)}")
            _check_keys(value, known[key], source, f"{prefix}{key}.")


def _fields(model_class: Any) -> dict[str, Any] | None:
    """Return the names and types of a dataclass's or pydantic model's fields, or None for any other type."""
    if typing.get_origin(model_class) is not None:
        return None
    if dataclasses.is_dataclass(model_class):
        hints = typing.get_type_hints(model_class)
        return {item.name: hints[item.name] for item in dataclasses.fields(model_class) if item.init}
    fields = getattr(model_class, "model_fields", None)
    return None if fields is None else {name: info.annotation for name, info in fields.items()}
