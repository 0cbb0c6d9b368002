"""The pre-activation residual net of 18 layers, with the stem that small images need."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn
from torch.nn import functional

STAGES = 4
BLOCKS = 2


@final
class PreActBlock(nn.Module):
    """Norm, ReLU, 3x3 convolution, twice; what goes around it is neither normalised nor rectified.

    Source: He, Zhang, Ren, Sun 2016, https://arxiv.org/abs/1603.05027, Figure 1 (b) and Eq. (5). Where the shape
    changes, a 1x1 convolution of the first activation goes around, as in the authors' code.

    Args:
        fan_in: channels that come in.
        fan_out: channels that go out.
        stride: of the first convolution, 1 or 2.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(fan_in)
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        changes = stride > 1 or fan_in != fan_out
        self.shortcut = nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False) if changes else None

    def forward(self, images: Tensor) -> Tensor:
        """Return [B, fan_out, H / stride, W / stride]."""
        active = functional.relu(self.norm1(images))
        around: Tensor = images if self.shortcut is None else self.shortcut(active)
        inner: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(active))))
        return around + inner


def preactresnet18(first: int, channels: int, height: int, width: int, num_classes: int) -> nn.Module:
    """Return PreActResNet-18 for images of 8 to 64 pixels: [B, C, H, W] -> [B, num_classes].

    A 3x3 convolution, four stages of two blocks with `first`, 2, 4 and 8 times `first` channels, norm and ReLU, and a
    mean over the pixels. `preactresnet18` has the widths 64, 128, 256 and 512 (11,218,340 parameters with three
    channels and 100 classes), `preactresnet18-narrow` 8, 16, 32 and 64 (182,028), for a CPU.

    Source: He, Zhang, Ren, Sun 2016, https://arxiv.org/abs/1603.05027, whose blocks stand here in the arrangement of
    ResNet-18 (https://arxiv.org/abs/1512.03385, Table 1), as is usual where mix methods are compared on CIFAR.

    Args:
        first: channels of the first stage.
        channels: of the images.
        height: of the images.
        width: of the images.
        num_classes: C.
    """
    layers: list[nn.Module] = [nn.Conv2d(channels, first, 3, padding=1, bias=False)]
    fan_in = first
    for stage in range(STAGES):
        fan_out = first * 2**stage
        for block in range(BLOCKS):
            layers.append(PreActBlock(fan_in, fan_out, 2 if stage > 0 and block == 0 else 1))
            fan_in = fan_out
    head = (nn.BatchNorm2d(fan_in), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(fan_in, num_classes))
    return nn.Sequential(*layers, *head)
