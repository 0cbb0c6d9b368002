"""Saliency providers: each gives one map an image, float32 [B, h, w], not below 0, at a resolution of its own."""

from rlmix.saliency.feature_map import feature_map as feature_map
from rlmix.saliency.input_gradient import input_gradient as input_gradient

__all__ = ["feature_map", "input_gradient"]
