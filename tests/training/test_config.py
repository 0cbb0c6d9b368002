"""Configurations from YAML and from overrides."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel

from rlmix.errors import ConfigError
from rlmix.training.config import TrainConfig, load_config


@dataclass(frozen=True, kw_only=True)
class Inner:
    """A nested part."""

    size: int = 1


class Model(BaseModel):
    """A pydantic model, for those who prefer one."""

    width: int = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    """What holds parts."""

    inner: Inner = field(default_factory=Inner)
    several: list[Inner] | None = None
    model: Model = field(default_factory=Model)
    path: str = ""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_a_file_the_defaults_stand() -> None:
    """No configuration is a configuration."""
    assert load_config(None, TrainConfig) == TrainConfig()


def test_overrides_take_precedence_over_the_file(tmp_path: Path) -> None:
    """The last word is the command line's, and of two the later one's."""
    path = write(tmp_path, "lr: 0.5\nepochs: 7\nmethod: mixup\nparams: {alpha: 1.0}\n")
    config = load_config(path, TrainConfig, ["lr=0.25", "params.alpha=0.2", "lr=1e-3"])
    assert config == TrainConfig(lr=1e-3, epochs=7, method="mixup", params={"alpha": 0.2})


def test_an_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    """YAML reads nothing as None."""
    assert load_config(write(tmp_path, "# nothing\n"), Outer) == Outer()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epoch=3", r"no key `epoch`. Did you mean `epochs`\?"),
        ("lr=fast", r"`lr`: input should be a valid number, unable to parse string as a number, got 'fast'"),
        ("epochs=1.5", r"`epochs`: input should be a valid integer.* got 1.5"),
        ("epochs=0", r"`epochs` must be at least 1, got 0"),
        ("lr=0", r"`lr` must be above 0, got 0.0"),
        ("lr=.nan", r"`lr` must be above 0, got nan"),
        ("weight_decay=.inf", r"`weight_decay` must be at least 0, got inf"),
        ("validation=1", r"`validation` must be below 1, got 1.0"),
        ("noise=1", r"`noise` must be below 1, got 1.0"),
        ("noise=-0.1", r"`noise` must be at least 0, got -0.1"),
        ("seed=9223372036854775808", r"`seed` must be below"),
        ("device=tpu", r"`device`: input should be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        ("params=3", r"`params`: input should be .*, got 3"),
        ("lr", r"`lr` must have the form key=value"),
        ("=3", r"`=3` must have the form key=value"),
        ("lr=[1", r"the value of `lr=\[1` is not valid YAML"),
        ("lr.start=3", r"cannot be set: `lr` is 0.1"),
    ],
)
def test_a_wrong_value_is_one_readable_sentence(override: str, message: str, tmp_path: Path) -> None:
    """A traceback through a validator tells a user nothing."""
    path = write(tmp_path, "lr: 0.1\n")
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(path, TrainConfig, [override])
    assert "\n" not in str(raised.value)


def test_a_method_s_parameters_beside_a_policy_are_refused() -> None:
    """They would be ignored in silence."""
    with pytest.raises(ConfigError, match="belong to a method, but `policy` is given"):
        load_config(None, TrainConfig, ["policy=somewhere", "params.alpha=1"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.sise=1", r"no key `inner.sise`. Did you mean `size`\?"),
        ("several=[{size: 1}, {sise: 2}]", r"no key `several.sise`. Did you mean `size`\?"),
        ("model.widht=1", r"no key `model.widht`. Did you mean `width`\?"),
        ("inner.size=x", r"`inner.size`: input should be a valid integer"),
        ("model.width=x", r"`model.width`: input should be a valid integer"),
    ],
)
def test_nested_parts_are_checked_too(override: str, message: str) -> None:
    """A misspelt key deep inside would silently leave a default in force."""
    with pytest.raises(ConfigError, match=message):
        load_config(None, Outer, [override])


def test_what_refreshes_a_bank_needs_one() -> None:
    """The passes would be paid for and never used."""
    with pytest.raises(ConfigError, match="`refresh_every` 4 refreshes the bank, but `saliency` is gradient. Set"):
        load_config(None, TrainConfig, ["refresh_every=4"])
    assert load_config(None, TrainConfig, ["refresh_every=4", "saliency=bank"]).refresh_every == 4
    with pytest.raises(ConfigError, match="`saliency`: input should be 'gradient', 'bank' or 'fine_grained', got 'x'"):
        load_config(None, TrainConfig, ["saliency=x"])


def test_nested_parts_become_what_they_are_typed_as() -> None:
    """Dataclasses and pydantic models alike."""
    config = load_config(None, Outer, ["inner.size=4", "several=[{size: 2}]", "model.width=5", 'path="123"'])
    assert config == Outer(inner=Inner(size=4), several=[Inner(size=2)], model=Model(width=5), path="123")


@pytest.mark.parametrize(
    ("text", "message"), [("- 1\n", "must hold `key: value` lines, got a list"), ("lr: [", "is not valid YAML")]
)
def test_a_file_of_another_form_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """What is wrong is the file, so the message names it."""
    with pytest.raises(ConfigError, match=message) as raised:
        load_config(write(tmp_path, text), TrainConfig)
    assert "config.yaml" in str(raised.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The path that was looked at stands in the message."""
    with pytest.raises(ConfigError, match=r"absent.yaml` cannot be read \(No such file"):
        load_config(tmp_path / "absent.yaml", TrainConfig)


def test_the_configurations_of_the_project_are_valid(project: Path) -> None:
    """An example that no longer loads is worse than none."""
    paths = sorted((project / "configs" / "trainings").glob("*.yaml"))
    assert paths
    for path in paths:
        load_config(path, TrainConfig)
