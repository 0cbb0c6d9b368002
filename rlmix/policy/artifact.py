"""Learned policies, and the directory that one is kept in: tensors in safetensors, everything else in JSON.

Loading reads two files of bounded size, checks all that they say against each other, and runs no code of theirs. The
checksum finds damage, not forgery: it stands beside what it checks.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from rlmix._files import sha256_of, writable_folder, write_bytes, write_text
from rlmix.errors import PolicyError, RlmixError, nearest
from rlmix.ops import rng
from rlmix.policy._reader import Reader
from rlmix.policy.codec import AbstractCodec, Catalogue, DiscreteCodec, drawn
from rlmix.policy.decision import Decision
from rlmix.policy.limits import limits_of
from rlmix.policy.network import Layers, PolicyNetwork, sizes
from rlmix.policy.parametric import codec_from_json
from rlmix.policy.signals import OBSERVATION

SCHEMA = "rlmix.policy/1"
"""Of policies that choose from a catalogue."""
SCHEMA_ACTIONS = "rlmix.policy/2"
"""Of policies with other actions: `actions` stands in the place of `catalogue`."""
DEFAULT = "default"
"""Name of the policy that comes with this package."""
DOCUMENT = "policy.json"
TENSORS = "policy.safetensors"

_SHIPPED = Path(__file__).parent / "shipped"
# What exploration draws its random numbers for.
_EXPLORATION = 100
# Far above any policy, far below what exhausts a machine.
_DOCUMENT_BYTES = 4 * 2**20
_TENSOR_BYTES = 256 * 2**20


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedPolicy:
    """A network, the observation entries that it reads and what its outputs mean.

    Args:
        network: actor and critic.
        observation_names: names of the entries that it reads, in its order.
        low: float32 [D], the lowest value of each entry in training; observations are clipped to it.
        high: float32 [D], the highest.
        catalogue: what its choices mean.
        horizon: decisions in a training.
        card: where the policy comes from; anything that JSON can hold.
        codec: what its actions mean, if they set parameters too; its catalogue must be `catalogue`. None: an action is
            a position in the catalogue.

    Raises:
        PolicyError: the parts do not fit each other.
    """

    network: PolicyNetwork
    observation_names: tuple[str, ...]
    low: Tensor
    high: Tensor
    catalogue: Catalogue
    horizon: int
    card: Mapping[str, Any]
    codec: AbstractCodec | None = None

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        object.__setattr__(self, "observation_names", tuple(self.observation_names))
        object.__setattr__(self, "low", self.low.detach().float().cpu())
        object.__setattr__(self, "high", self.high.detach().float().cpu())
        names, size = self.observation_names, len(self.observation_names)
        if len(set(names)) != size:
            raise PolicyError("`observation_names` has a name twice.")
        if self.actions.catalogue != self.catalogue:
            raise PolicyError("`codec` has another catalogue. Give catalogue=codec.catalogue.")
        if (self.network.inputs, self.network.outputs) != (size, self.actions.outputs):
            wanted = f"{len(self.catalogue)} catalogue entries"
            if self.codec is not None:
                wanted = f"{self.actions.kind} actions of {self.actions.outputs} outputs"
            raise PolicyError(
                f"the network leads from {self.network.inputs} to {self.network.outputs} numbers; the policy has "
                f"{size} observation entries and {wanted}."
            )
        if self.low.shape != (size,) or self.high.shape != (size,):
            given = f"{list(self.low.shape)} and {list(self.high.shape)}"
            raise PolicyError(f"`low` and `high` must have the shape [{size}], got {given}.")
        for name, low, high in zip(names, self.low.tolist(), self.high.tolist(), strict=True):
            if not -math.inf < low <= high < math.inf:
                raise PolicyError(f"the range of `{name}` must be finite and ascending, got {low} to {high}.")
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, int) or self.horizon < 1:
            raise PolicyError(f"`horizon` must be a whole number of at least 1, got {self.horizon!r}.")

    @property
    def actions(self) -> AbstractCodec:
        """What its actions mean."""
        return DiscreteCodec(self.catalogue) if self.codec is None else self.codec

    def columns(self, names: Sequence[str]) -> Tensor:
        """Return where the policy's entries stand in an observation with these names, int64 [D].

        Raises:
            PolicyError: the policy reads an entry that is not among them.
        """
        place = {name: column for column, name in enumerate(names)}
        for name in self.observation_names:
            if name not in place:
                raise PolicyError(f"the policy reads `{name}`, which is not observed here. {nearest(name, place)}")
        return torch.tensor([place[name] for name in self.observation_names], dtype=torch.int64)

    def act(self, observations: Tensor, mask: Tensor | None = None, explore: rng.Streams | None = None) -> Tensor:
        """Return the actions, [N, *shape] of the codec: of a catalogue, the chosen entries, int64 [N].

        Args:
            observations: float32 [N, D] on the CPU, the policy's entries in its order; clipped to the training range.
            mask: bool [N, E], True where an entry may be chosen (one at least in each row); None allows all.
            explore: one key for each row draws from the policy's distribution; None takes the most probable entry, and
                the mean (or most probable level) of its parameters.
        """
        outputs = self._outputs(observations)
        return self.actions.complete(outputs, _chosen(self._masked(outputs, mask), explore), explore)

    def entries(self, observations: Tensor, mask: Tensor | None = None, explore: rng.Streams | None = None) -> Tensor:
        """Return the entries that the actions of `act` choose, int64 [N]."""
        return _chosen(self._masked(self._outputs(observations), mask), explore)

    def answer(
        self, observation: Tensor, mask: Tensor | None = None, explore: rng.Streams | None = None
    ) -> tuple[int, float]:
        """Return the entry for one observation [D] that `act` chooses for a batch of it, and how probable it was."""
        # A draw must be that of a batch to the last bit; what is most probable has no use for the batch's overhead.
        outputs = self._outputs(observation if explore is None else observation.unsqueeze(0))
        logits = self._masked(outputs, mask)
        entry = int(_chosen(logits, explore))
        return entry, logits.softmax(-1).flatten().tolist()[entry]

    def choose(self, observation: Tensor, mask: Tensor | None = None) -> int:
        """Return the most probable entry for one observation [D]."""
        return self.answer(observation, mask)[0]

    def decision(self, entry: int, observation: Tensor, explore: rng.Streams | None = None) -> Decision:
        """Return the Decision that choosing `entry` means for one observation [D].

        Args:
            entry: position in the catalogue.
            observation: float32 [D], as in `act`.
            explore: one key draws the entry's parameters as `act` does; None takes their most typical values.
        """
        if self.codec is None:
            return self.catalogue.decisions[entry]
        outputs = self._outputs(observation).unsqueeze(0)
        return self.codec.decode(self.codec.complete(outputs, torch.tensor([entry]), explore)[0].tolist())

    def probabilities(self, observations: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return how probable each entry is, float32 [N, E]; of masked ones 0."""
        return self._masked(self._outputs(observations), mask).softmax(-1)

    def _outputs(self, observations: Tensor) -> Tensor:
        return self.network.logits(torch.clamp(observations, self.low, self.high))

    def _masked(self, outputs: Tensor, mask: Tensor | None) -> Tensor:
        """Return the entries' logits, of forbidden ones minus infinity."""
        logits = outputs if self.codec is None else outputs[..., : len(self.catalogue)]
        return logits if mask is None else logits.masked_fill(~mask, -math.inf)


def _chosen(logits: Tensor, explore: rng.Streams | None) -> Tensor:
    return logits.argmax(-1) if explore is None else drawn(logits, explore, _EXPLORATION)


def save(path: str | os.PathLike[str], policy: LearnedPolicy) -> None:
    """Write a policy directory.

    Each file is replaced at once, tensors first: a kill in between leaves a directory that `load` refuses.

    Raises:
        OutputError: `path` cannot be written.
        PolicyError: the card holds what JSON cannot.
    """
    from safetensors.torch import save as to_bytes

    folder = writable_folder(path)
    tensors = to_bytes(_tensors("actor", policy.network.actor) | _tensors("critic", policy.network.critic or ()))
    try:
        text = json.dumps(_document(policy, sha256_of(tensors)), indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise PolicyError(f"`card` must hold what JSON can ({error}).") from error
    write_bytes(folder / TENSORS, tensors)
    write_text(folder / DOCUMENT, text)


def folder_of(path: str | os.PathLike[str]) -> Path:
    """Return the directory that `load` reads: `path`, or that of the policy of this package for "default"."""
    return _SHIPPED if os.fspath(path) == DEFAULT else Path(path)


def load(path: str | os.PathLike[str]) -> LearnedPolicy:
    """Read a policy directory; nothing is unpickled and no code is run.

    Args:
        path: the directory, or "default" for the policy of this package.

    Raises:
        PolicyError: a file is missing, damaged or of another kind, the files contradict each other, or the catalogue
            names a method or parameter that this version does not have.
    """
    folder = folder_of(path)
    document = Reader(folder / DOCUMENT, _parse(folder / DOCUMENT))
    try:
        return _policy(document, folder)
    except RlmixError as error:
        if any(str(folder / file) in str(error) for file in (DOCUMENT, TENSORS)):
            raise
        raise PolicyError(f"`{folder / DOCUMENT}`: {error}") from error


def _document(policy: LearnedPolicy, digest: str) -> dict[str, Any]:
    ranges = zip(policy.observation_names, policy.low.tolist(), policy.high.tolist(), strict=True)
    critic = policy.network.critic
    if policy.codec is None:
        catalogue = {"digest": policy.catalogue.digest, "entries": policy.catalogue.to_json()}
        schema, meaning = SCHEMA, {"catalogue": catalogue}
    else:
        schema, meaning = SCHEMA_ACTIONS, {"actions": policy.codec.to_json()}
    return {
        "schema": schema,
        "versions": {"rlmix": importlib.metadata.version("rlmix"), "torch": str(torch.__version__)},
        "horizon": policy.horizon,
        "observation": {
            "name": OBSERVATION,
            "entries": [{"name": name, "low": low, "high": high} for name, low, high in ranges],
        },
        **meaning,
        "architecture": {
            "activation": "tanh",
            "actor": list(sizes(policy.network.actor)),
            "critic": None if critic is None else list(sizes(critic)),
        },
        "tensors": {"file": TENSORS, "sha256": digest},
        "card": dict(policy.card),
    }


def _tensors(name: str, layers: Layers) -> dict[str, Tensor]:
    named = ((f"{name}.{number}", pair) for number, pair in enumerate(layers))
    return {
        f"{prefix}.{kind}": tensor.detach().cpu().contiguous()
        for prefix, pair in named
        for kind, tensor in zip(("weight", "bias"), pair, strict=True)
    }


def _bytes(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise PolicyError(
            f"`{path}` cannot be read ({error.strerror or error}). A policy is a directory that holds {DOCUMENT} and "
            f"{TENSORS}."
        ) from error
    if len(data) > limit:
        raise PolicyError(f"`{path}` is larger than {limit // 2**20} MiB, which no policy is.")
    return data


def _parse(path: Path) -> Any:
    try:
        return json.loads(_bytes(path, _DOCUMENT_BYTES).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PolicyError):
            raise
        raise PolicyError(f"`{path}` is no valid JSON ({error}). Save the policy again.") from error


def _policy(document: Reader, folder: Path) -> LearnedPolicy:
    schema = document.value.get("schema") if isinstance(document.value, dict) else SCHEMA
    if schema not in (SCHEMA, SCHEMA_ACTIONS):
        raise PolicyError(
            f"`{document.file}` has the schema `{str(schema)[:60]}`, expected `{SCHEMA}` or `{SCHEMA_ACTIONS}`. Is it "
            "a policy of this version of rlmix?"
        )
    meaning = "catalogue" if schema == SCHEMA else "actions"
    _, versions, horizon, observation, meant, architecture, tensors, card = document.fields(
        "schema", "versions", "horizon", "observation", meaning, "architecture", "tensors", "card"
    )
    versions.fields("rlmix", "torch")
    kind, entries = observation.fields("name", "entries")
    kind.text(OBSERVATION)
    named = [entry.fields("name", "low", "high") for entry in entries.items()]
    if not isinstance(card.value, dict):
        raise card.fail("an object")
    codec = None if schema == SCHEMA else codec_from_json(meant.value)
    policy = LearnedPolicy(
        network=_network(architecture, tensors, folder),
        observation_names=tuple(name.text() for name, _, _ in named),
        low=torch.tensor([low.number() for _, low, _ in named]),
        high=torch.tensor([high.number() for _, _, high in named]),
        catalogue=_catalogue(meant) if codec is None else codec.catalogue,
        horizon=horizon.whole(1, 2**31),
        card=card.value,
        codec=codec,
    )
    limits_of(policy.card, policy.catalogue)
    return policy


def _catalogue(document: Reader) -> Catalogue:
    digest, entries = document.fields("digest", "entries")
    for entry in entries.items():
        name, decision = entry.fields("name", "decision")
        try:
            # One by one, so that the message names the entry.
            Catalogue.from_json([{"name": name.text(), "decision": decision.value}])
        except RlmixError as error:
            raise PolicyError(
                f"`{entry.file}`: the catalogue entry `{name.text()[:60]}` cannot be used: {error}"
            ) from error
    catalogue = Catalogue.from_json(entries.value)
    if catalogue.digest != digest.value:
        raise PolicyError(f"`{document.file}`: the catalogue is not the one that `catalogue.digest` belongs to.")
    return catalogue


def _network(architecture: Reader, tensors: Reader, folder: Path) -> PolicyNetwork:
    activation, actor, critic = architecture.fields("activation", "actor", "critic")
    activation.text("tanh")
    expected = {"actor": _widths(actor)}
    if critic.value is not None:
        expected["critic"] = _widths(critic)
    file, digest = tensors.fields("file", "sha256")
    file.text(TENSORS)
    found = _read_tensors(folder / TENSORS, digest.text())
    shapes = {
        f"{part}.{number}.{kind}": shape
        for part, widths in expected.items()
        for number, (one, two) in enumerate(itertools.pairwise(widths))
        for kind, shape in (("weight", (two, one)), ("bias", (two,)))
    }
    if set(found) != set(shapes):
        odd = sorted(set(found) ^ set(shapes))[0]
        problem = "is missing" if odd in shapes else "is unknown"
        raise PolicyError(f"`{folder / TENSORS}`: the tensor `{odd[:60]}` {problem}; `{DOCUMENT}` expects others.")
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            given = list(found[name].shape)
            raise PolicyError(f"`{folder / TENSORS}`: the tensor `{name}` must be {list(shape)}, got {given}.")
    layers: dict[str, Layers] = {
        part: tuple((found[f"{part}.{n}.weight"], found[f"{part}.{n}.bias"]) for n in range(len(widths) - 1))
        for part, widths in expected.items()
    }
    return PolicyNetwork(actor=layers["actor"], critic=layers.get("critic"))


def _widths(reader: Reader) -> tuple[int, ...]:
    widths = tuple(item.whole(1, 2**16) for item in reader.items())
    if len(widths) < 2:
        raise reader.fail("a list of the lengths of input, hidden layers and output")
    return widths


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as from_bytes

    data = _bytes(path, _TENSOR_BYTES)
    if sha256_of(data) != digest:
        raise PolicyError(
            f"`{path}` has the SHA-256 {sha256_of(data)[:12]}..., `{DOCUMENT}` expects {digest[:12]}.... The file is "
            "damaged or of another policy; save or copy the policy again."
        )
    try:
        return from_bytes(data)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise PolicyError(f"`{path}` is no safetensors file ({error}). Other formats are not read.") from error
