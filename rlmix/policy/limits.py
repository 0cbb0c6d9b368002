"""The limits of a policy: which trainings it may decide for, and what takes its place in others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch

from rlmix.errors import PolicyError, nearest
from rlmix.policy.codec import Catalogue
from rlmix.policy.signals import Context

Facts: TypeAlias = Mapping[str, float]
"""What is known of a training before it begins, in its own units; what is not known is left out."""

CARD_KEY = "limits"
FACTS: Mapping[str, str] = {
    "examples": "training images",
    "epochs": "passes over the training images",
    "batch_size": "images in a step",
    "classes": "classes",
    "side": "pixels along a side of the images",
    "parameters": "parameters of the model",
}
"""What limits can be set on, and what it counts."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the card of a policy says of where it was measured.

    Attributes:
        otherwise: the catalogue entry that is used outside, where the policy would have to guess.
        ranges: lowest and highest value of entries of `FACTS`.
    """

    otherwise: str
    ranges: Mapping[str, tuple[float, float]]

    def broken(self, facts: Facts) -> tuple[str, ...]:
        """Return how a training lies outside, a phrase for each range; none for facts that are not known."""
        return tuple(
            f"{_number(facts[name])} {FACTS[name]} ({_number(low)} to {_number(high)})"
            for name, (low, high) in self.ranges.items()
            if name in facts and not low <= facts[name] <= high
        )

    def to_json(self) -> dict[str, Any]:
        """Return what belongs into a card under `CARD_KEY`."""
        return {"otherwise": self.otherwise, "ranges": {name: list(bounds) for name, bounds in self.ranges.items()}}


def limits_of(card: Mapping[str, Any], catalogue: Catalogue) -> Limits | None:
    """Return the limits that a policy's card sets, or None if it sets none.

    Raises:
        PolicyError: limits of a wrong form, on something unknown, or with an entry that the catalogue does not have.
    """
    if CARD_KEY not in card:
        return None
    given = card[CARD_KEY]
    if not isinstance(given, Mapping) or set(given) != {"otherwise", "ranges"} or not isinstance(given["ranges"], dict):
        raise PolicyError(f"the card's `{CARD_KEY}` must have `otherwise` and `ranges`, got {str(given)[:80]}.")
    if given["otherwise"] not in catalogue.names:
        found = nearest(str(given["otherwise"])[:60], catalogue.names)
        raise PolicyError(f"the card's `{CARD_KEY}` fall back to an entry that the catalogue does not have. {found}")
    ranges = {}
    for name, bounds in given["ranges"].items():
        if name not in FACTS:
            raise PolicyError(f"the card's `{CARD_KEY}` name `{name[:60]}`. {nearest(name[:60], FACTS)}")
        numbers = isinstance(bounds, list) and len(bounds) == 2 and all(type(one) in (int, float) for one in bounds)
        if not numbers or not -math.inf < bounds[0] <= bounds[1] < math.inf:
            raise PolicyError(f"the card's limits of `{name}` must be a lowest and a highest value, got {bounds}.")
        ranges[name] = (float(bounds[0]), float(bounds[1]))
    return Limits(otherwise=given["otherwise"], ranges=ranges)


def facts_of(context: Context) -> Facts:
    """Return what is known of one training, whose context has one row."""
    known = {
        "examples": context.num_examples,
        "epochs": context.total_steps * context.batch_size / context.num_examples,
        "batch_size": context.batch_size,
        "classes": context.num_classes,
        "side": (context.height * context.width).sqrt(),
        "parameters": context.num_params,
    }
    # Read at once: each reading of its own would wait for the device.
    values = zip(known, torch.stack(list(known.values())).flatten().tolist(), strict=True)
    return {name: value for name, value in values if not math.isnan(value)}


def _number(value: float) -> str:
    """Write a number as people do: 10, 0.5, 11,220,132."""
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"
