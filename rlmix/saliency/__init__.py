"""Saliency providers: each gives one map an image, float32 [B, h, w], not below 0, at a resolution of its own."""

from rlmix.saliency._cam import cam as cam
from rlmix.saliency._eight_bit import to_uint8 as to_uint8
from rlmix.saliency._fine_grained import fine_grained as fine_grained
from rlmix.saliency._spectral_residual import spectral_residual as spectral_residual
from rlmix.saliency.bank import SaliencyBank as SaliencyBank
from rlmix.saliency.detector import Detector as Detector
from rlmix.saliency.feature_map import feature_map as feature_map
from rlmix.saliency.input_gradient import input_gradient as input_gradient

__all__ = [
    "Detector",
    "SaliencyBank",
    "cam",
    "feature_map",
    "fine_grained",
    "input_gradient",
    "spectral_residual",
    "to_uint8",
]
