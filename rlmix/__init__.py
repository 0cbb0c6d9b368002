"""rlmix: mixing augmentation for image classifiers, and policies that choose it."""

from rlmix import methods as methods
from rlmix import saliency as saliency
from rlmix._apply import apply as apply
from rlmix._mix import mix as mix
from rlmix.errors import RlmixError as RlmixError
from rlmix.loss import mixed_accuracy as mixed_accuracy
from rlmix.loss import mixed_cross_entropy as mixed_cross_entropy
from rlmix.loss import mixed_loss as mixed_loss
from rlmix.loss import soft_cross_entropy as soft_cross_entropy
from rlmix.ops.rng import Streams as Streams
from rlmix.plan import MixPlan as MixPlan
from rlmix.policy.controller import MixController as MixController
from rlmix.policy.decision import Decision as Decision
from rlmix.policy.remote import connect as connect
from rlmix.types import MixedBatch as MixedBatch
from rlmix.types import MixInputs as MixInputs

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "MixController",
    "MixInputs",
    "MixPlan",
    "MixedBatch",
    "RlmixError",
    "Streams",
    "apply",
    "connect",
    "methods",
    "mix",
    "mixed_accuracy",
    "mixed_cross_entropy",
    "mixed_loss",
    "saliency",
    "soft_cross_entropy",
]
