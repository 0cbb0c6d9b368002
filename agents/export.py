"""From stable-baselines3's policy to the one that is deployed: plain weights, without the entries that never varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from rlmix.agents.callbacks import Ranges
from rlmix.policy.artifact import LearnedPolicy
from rlmix.policy.codec import AbstractCodec, Catalogue, codec_of
from rlmix.policy.network import PolicyNetwork

Layers: TypeAlias = tuple[tuple[Tensor, Tensor], ...]


def export(
    policy: ActorCriticPolicy,
    *,
    ranges: Ranges,
    names: Sequence[str],
    catalogue: Catalogue | AbstractCodec,
    horizon: int,
    card: Mapping[str, Any],
) -> LearnedPolicy:
    """Return the policy that answers as `policy` does on every observation inside `ranges`.

    An entry that was the same in all observations of the training is left out: nothing was learned about it, and its
    untrained weights would otherwise act on whatever it shows elsewhere. Its constant goes into the first biases.

    Args:
        policy: a trained `MlpPolicy` or `HybridPolicy` with Tanh units.
        ranges: lowest and highest value of each entry in training.
        names: names of the entries.
        catalogue: what the actions mean: a catalogue, or another codec.
        horizon: decisions in a training.
        card: where the policy comes from.
    """
    extractor = policy.mlp_extractor
    return policy_of(
        layers_of(extractor.policy_net, policy.action_net),
        layers_of(extractor.value_net, policy.value_net),
        ranges=ranges,
        names=names,
        catalogue=catalogue,
        horizon=horizon,
        card=card,
    )


def policy_of(
    actor: Layers,
    critic: Layers | None,
    *,
    ranges: Ranges,
    names: Sequence[str],
    catalogue: Catalogue | AbstractCodec,
    horizon: int,
    card: Mapping[str, Any],
) -> LearnedPolicy:
    """Return the policy of networks that read all entries; see `export`, as for all others.

    Args:
        actor: weight and bias of its linear layers, the head last, with Tanh between them.
        critic: its layers, or None.
        ranges: lowest and highest value of each entry in training.
        names: names of the entries.
        catalogue: what the actions mean: a catalogue, or another codec.
        horizon: decisions in a training.
        card: where the policy comes from.
    """
    codec = codec_of(catalogue)
    varied = ranges.low < ranges.high
    # With every entry constant the first is kept, since a network needs an input.
    varied[0] |= not bool(varied.any())
    network = PolicyNetwork(
        actor=_without(actor, varied, ranges.low),
        critic=None if critic is None else _without(critic, varied, ranges.low),
    )
    return LearnedPolicy(
        network=network,
        observation_names=tuple(name for name, kept in zip(names, varied.tolist(), strict=True) if kept),
        low=ranges.low[varied],
        high=ranges.high[varied],
        catalogue=codec.catalogue,
        horizon=horizon,
        card=dict(card),
        codec=None if codec.kind == "discrete" else codec,
    )


def layers_of(hidden: nn.Module, head: nn.Module) -> Layers:
    """Return copies of weight and bias of every linear layer, the head last."""
    linear = [module for module in (*hidden.children(), head) if isinstance(module, nn.Linear)]
    return tuple((layer.weight.detach().clone(), layer.bias.detach().clone()) for layer in linear)


def _without(layers: Layers, kept: Tensor, constants: Tensor) -> Layers:
    """Drop the inputs that are not kept and add what they contribute to the first bias."""
    (weight, bias), *rest = layers
    folded = bias.double() + weight[:, ~kept].double() @ constants[~kept].double()
    return ((weight[:, kept].contiguous(), folded.to(bias.dtype)), *rest)
