"""The networks of Friesen & Domingos, "Deep Learning as a Mixed Convex-Combinatorial Optimization Problem", ICLR 2018.

Layers, sizes and settings are those of the released code, github.com/afriesen/ftprop. Every weight is a real number.

A network has two forms with the same state, outputs and gradients. Packed: a batch norm, a 2 × 2 maximum and σ are one
layer, and a layer whose input is ±1 keeps it as bits. Plain: each is a layer of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from ...kernels import hard_threshold
from ..arguments import check_size
from .batch_norm import BatchNormThreshold
from .hard_threshold import HardThreshold
from .options import ThresholdOptions
from .packed import PackedConv2d, PackedLinear
from .quantized_relu import QuantizedReLU

_ACTIVATIONS = ("sign", "step", "quantized_relu", "relu", "saturated_relu")

# ------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class TrainingSettings:
    """How the source trains a network.

    Attributes:
        optimizer: "Adam" or "SGD", of torch.optim; with learning rate lr, and SGD's momentum.
        weight_decay: L2, by activation; the source has none for activations that are not in it.
        milestones: before these epochs, counted from 0, the learning rate is divided by 10.
    """

    optimizer: Literal["Adam", "SGD"]
    lr: float
    batch_size: int
    weight_decay: Mapping[str, float]
    epochs: int
    milestones: tuple[int, ...]
    momentum: float = 0.0


_SMALL: dict[str, float] = dict.fromkeys(_ACTIVATIONS, 0.0005)
FTPROP_SETTINGS: Mapping[str, TrainingSettings] = {
    "convnet4": TrainingSettings("Adam", 2.5e-4, 64, _SMALL, 300, (200, 250)),
    "convnet8": TrainingSettings("Adam", 1e-3, 64, _SMALL, 300, (200, 250)),
    "alexnet": TrainingSettings("Adam", 1e-4, 128, {"sign": 5e-6, "quantized_relu": 5e-5, "relu": 5e-4}, 80, (56, 64)),
    "resnet18": TrainingSettings(
        "SGD", 0.1, 256, {"sign": 5e-7, "quantized_relu": 1e-5, "relu": 1e-4}, 90, (30, 60), momentum=0.9
    ),
}

# ------------------------------------------------------------------------------------------------ layers


class _SaturatedReLU(ThresholdOptions, nn.Module):
    """clamp(z, 0, 1), of which 1 bit an element is kept."""

    def __init__(self, pool: int | None) -> None:
        super().__init__()
        self._keep_options("saturated_relu", None, None, True, "auto", pool)

    def forward(self, z: Tensor) -> Tensor:
        return hard_threshold(z, **self._options())

    def extra_repr(self) -> str:
        return self._shown_options()


class _ClampedReLU(nn.Module):
    """The same, made of torch's operators."""

    def forward(self, z: Tensor) -> Tensor:
        return z.relu().clamp(max=1)


class _EvenSizes(nn.Module):
    """Leaves out a last odd row and column, as MaxPool2d(2) does."""

    def forward(self, z: Tensor) -> Tensor:
        return z[..., : z.shape[-2] // 2 * 2, : z.shape[-1] // 2 * 2]


@dataclass(frozen=True)
class _Style:
    """How the layers of a network are made; `name` is the network's, for errors."""

    name: str
    activation: str
    steps: int | None
    rule: str | None
    weighted: bool
    save: str
    packed: bool

    def __post_init__(self) -> None:
        if self.activation not in _ACTIVATIONS:
            names = ", ".join(map(repr, _ACTIVATIONS))
            raise ValueError(f"{self.name}: activation is {self.activation!r}; expected one of {names}")
        if not isinstance(self.packed, bool):
            raise TypeError(f"{self.name}: packed is {self.packed!r}; expected True or False")
        usual = {"steps": None}
        if self.activation in ("relu", "saturated_relu"):
            usual |= {"rule": None, "weighted": True, "save": "auto"}
        elif self.activation == "quantized_relu":
            usual = {}
        for option, value in usual.items():
            if getattr(self, option) != value:
                raise ValueError(
                    f"{self.name}: activation is {self.activation!r}, with {option} {getattr(self, option)!r}; "
                    f"expected {value!r}: this activation has no such option"
                )

    @property
    def fuses(self) -> bool:
        """Whether a batch norm and a 2 × 2 maximum are done in σ."""
        return self.packed and self.activation != "relu"

    @property
    def packs(self) -> bool:
        """Whether outputs of σ are kept as bits."""
        return self.packed and self.activation == "sign"

    def sigma(self, pool: int | None = None) -> nn.Module:
        if self.activation == "relu":
            return nn.ReLU()
        if self.activation == "saturated_relu":
            return _SaturatedReLU(pool) if self.packed else _ClampedReLU()
        if self.activation == "quantized_relu":
            return QuantizedReLU(self.steps or 0, self.rule, self.weighted, self.save, pool)
        return HardThreshold(self.activation, self.rule, self.weighted, self.save, pool)

    def norm_and_sigma(self, features: int, eps: float, pool: int | None = None) -> nn.Module:
        is_staircase = self.activation == "quantized_relu"
        return BatchNormThreshold(
            features,
            eps,
            kind="staircase" if is_staircase else self.activation,
            steps=self.steps if is_staircase else None,
            rule=self.rule,
            weighted=self.weighted,
            save=self.save,
            pool=pool,
        )

    def conv(self, C: int, O: int, size: int, *, of_signs: bool = True, **options: Any) -> nn.Conv2d:
        return (PackedConv2d if of_signs and self.packs else nn.Conv2d)(C, O, size, **options)

    def linear(self, I: int, O: int, **options: Any) -> nn.Linear:
        return (PackedLinear if self.packs else nn.Linear)(I, O, **options)


class _Chain:
    """Layers one after the other, the i-th named conv<i> or fc<i>, bn<i>, pool<i>, sigma<i>."""

    def __init__(self, style: _Style) -> None:
        self.style, self.layers = style, OrderedDict[str, nn.Module]()

    def hidden(
        self, layer: nn.Conv2d | nn.Linear, *, eps: float | None = None, pool: tuple[int, int, int] | None = None,
        is_odd: bool = False,
    ) -> None:  # fmt: skip
        """Adds a layer, its batch norm if eps is given, the maximum over (size, stride, padding) of `pool`, and σ.

        is_odd: the size of what is pooled is odd.
        """
        i = self._add(layer)
        of_two = 2 if pool == (2, 2, 0) and self.style.fuses else None
        if of_two and is_odd:
            self.layers[f"even{i}"] = _EvenSizes()
        features = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
        if eps is not None and self.style.fuses and (of_two or not pool):
            self.layers[f"bn{i}"] = self.style.norm_and_sigma(features, eps, of_two)
            return
        if eps is not None:
            norm = nn.BatchNorm2d if isinstance(layer, nn.Conv2d) else nn.BatchNorm1d
            self.layers[f"bn{i}"] = norm(features, eps)
        if pool and not of_two:
            self.layers[f"pool{i}"] = nn.MaxPool2d(*pool)
        self.layers[f"sigma{i}"] = self.style.sigma(of_two)

    def other(self, name: str, layer: nn.Module) -> None:
        self.layers[name] = layer

    def ending(self, layer: nn.Linear) -> nn.Sequential:
        self._add(layer)
        return nn.Sequential(self.layers)

    def _add(self, layer: nn.Module) -> int:
        i = 1 + sum(name.startswith(("conv", "fc")) for name in self.layers)
        self.layers[f"{'conv' if isinstance(layer, nn.Conv2d) else 'fc'}{i}"] = layer
        return i


# ------------------------------------------------------------------------------------------------ networks


def convnet4(
    activation: str = "sign",
    *,
    steps: int | None = None,
    rule: str | None = None,
    weighted: bool = True,
    save: str = "auto",
    classes: int = 10,
    packed: bool = True,
) -> nn.Sequential:
    """ConvNet4 for CIFAR-10: 4,259,274 parameters, without batch norm.

    5 × 5 convolutions to 32 and to 64 channels, each with a 2 × 2 maximum and σ; a layer of 1024 units, σ; the classes.

    Args:
        activation: σ: "sign", "step", "quantized_relu", "relu" or "saturated_relu".
        steps: n of a quantized ReLU; None is 3.
        rule: the rule of hard_threshold by which targets are propagated; None is "soft_hinge". ReLUs have none.
        weighted, save: as in HardThreshold. Where σ is fused with a batch norm, its input is kept whatever `save` says,
            and the gradient is exact.
        classes: the number of outputs.
        packed: False makes the plain form: layers of torch.nn and σ, one after the other. States of the two forms load
            into each other.

    Shapes:
        x [N, 3, 32, 32] → logits [N, classes].

    Raises:
        TypeError, ValueError: an option is of another type, unknown, or does not fit the others.
    """
    style = _Style("convnet4", activation, _steps(activation, steps, 3), rule, weighted, save, packed)
    check_size("convnet4", "classes", classes)
    chain, pool = _Chain(style), (2, 2, 0)
    chain.hidden(style.conv(3, 32, 5, padding=3, of_signs=False), pool=pool)
    chain.hidden(style.conv(32, 64, 5, padding=2), pool=pool, is_odd=True)
    chain.other("flatten", nn.Flatten())
    chain.hidden(style.linear(64 * 8 * 8, 1024))
    return chain.ending(style.linear(1024, classes))


def convnet8(
    activation: str = "sign",
    *,
    steps: int | None = None,
    rule: str | None = None,
    weighted: bool = True,
    save: str = "auto",
    classes: int = 10,
    packed: bool = True,
) -> nn.Sequential:
    """ConvNet8 for CIFAR-10: 1,492,554 parameters, with batch norm and dropout of channels.

    A 5 × 5 convolution to 48 channels, a 2 × 2 maximum and σ; 3 × 3 convolutions to 64, 64, 128, 128 and 128 channels,
    each with a batch norm and σ, the second with a 2 × 2 maximum between them; half of the channels are dropped; a
    4 × 4 convolution to 512, batch norm, σ; the classes. Arguments, shapes and errors are those of `convnet4`.
    """
    style = _Style("convnet8", activation, _steps(activation, steps, 3), rule, weighted, save, packed)
    check_size("convnet8", "classes", classes)
    chain, pool, eps = _Chain(style), (2, 2, 0), 1e-4
    chain.hidden(style.conv(3, 48, 5, padding=2, of_signs=False), pool=pool)
    chain.hidden(style.conv(48, 64, 3, padding=1, bias=False), eps=eps)
    chain.hidden(style.conv(64, 64, 3, padding=1, bias=False), eps=eps, pool=pool)
    chain.hidden(style.conv(64, 128, 3, bias=False), eps=eps)
    chain.hidden(style.conv(128, 128, 3, padding=1, bias=False), eps=eps)
    chain.hidden(style.conv(128, 128, 3, bias=False), eps=eps)
    chain.other("dropout", nn.Dropout2d(0.5))
    # what was dropped is 0, and the rest ±2
    chain.hidden(style.conv(128, 512, 4, bias=False, of_signs=False), eps=eps)
    chain.other("flatten", nn.Flatten())
    return chain.ending(style.linear(512, classes))


def alexnet(
    activation: str = "sign",
    *,
    steps: int | None = None,
    rule: str | None = None,
    weighted: bool = True,
    save: str = "auto",
    classes: int = 1000,
    packed: bool = True,
) -> nn.Sequential:
    """AlexNet for ImageNet, as DoReFa-Net has it: 62,394,344 parameters.

    Five convolutions and two layers of 4096 units, all without bias; behind the first convolution each has a batch
    norm, and the second, third and fifth a 3 × 3 maximum of stride 2. Arguments and errors are those of `convnet4`.

    Shapes:
        x [N, 3, 224, 224] → logits [N, classes].
    """
    style = _Style("alexnet", activation, _steps(activation, steps, 3), rule, weighted, save, packed)
    check_size("alexnet", "classes", classes)
    chain, eps = _Chain(style), 1e-4
    chain.hidden(style.conv(3, 96, 12, stride=4, bias=False, of_signs=False))
    chain.hidden(style.conv(96, 256, 5, padding=2, bias=False), eps=eps, pool=(3, 2, 1))
    chain.hidden(style.conv(256, 384, 3, padding=1, bias=False), eps=eps, pool=(3, 2, 0))
    chain.hidden(style.conv(384, 384, 3, padding=1, bias=False), eps=eps)
    chain.hidden(style.conv(384, 256, 3, padding=1, bias=False), eps=eps, pool=(3, 2, 0))
    chain.other("flatten", nn.Flatten())
    chain.hidden(style.linear(256 * 6 * 6, 4096, bias=False), eps=eps)
    chain.hidden(style.linear(4096, 4096, bias=False), eps=eps)
    return chain.ending(style.linear(4096, classes))


class _BasicBlock(nn.Module):
    """σ(batch norm, 3 × 3 convolution, σ, batch norm, 3 × 3 convolution, of x, plus x), with torchvision's names."""

    def __init__(self, style: _Style, C: int, O: int, stride: int) -> None:
        super().__init__()
        self.conv1 = style.conv(C, O, 3, stride=stride, padding=1, bias=False)
        self.bn1, self.sigma1 = _norm_and_sigma(style, O)
        self.conv2 = style.conv(O, O, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(O)
        self.downsample = None
        if stride != 1 or C != O:
            self.downsample = nn.Sequential(style.conv(C, O, 1, stride=stride, bias=False), nn.BatchNorm2d(O))
        self.sigma2 = style.sigma()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.sigma1(self.bn1(self.conv1(x)))))
        return self.sigma2(y + (x if self.downsample is None else self.downsample(x)))


class _ResNet(nn.Module):
    """A residual network of basic blocks, with torchvision's names."""

    def __init__(self, style: _Style, blocks: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.conv1 = style.conv(3, 64, 7, stride=2, padding=3, bias=False, of_signs=False)
        self.bn1, self.sigma1 = _norm_and_sigma(style, 64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        C, groups = 64, []
        for i, count in enumerate(blocks):
            O = 64 << i
            sizes = [(C, 1 if i == 0 else 2), *[(O, 1)] * (count - 1)]
            groups.append(nn.Sequential(*(_BasicBlock(style, width, O, stride) for width, stride in sizes)))
            C = O
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(C, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                k, _ = module.kernel_size
                nn.init.normal_(module.weight, 0.0, math.sqrt(2 / (k * k * module.out_channels)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.sigma1(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.flatten(self.avgpool(x)))


def _norm_and_sigma(style: _Style, features: int) -> tuple[nn.Module, nn.Module]:
    if style.fuses:
        return style.norm_and_sigma(features, 1e-5), nn.Identity()
    return nn.BatchNorm2d(features), style.sigma()


def resnet18(
    activation: str = "sign",
    *,
    steps: int | None = None,
    rule: str | None = None,
    weighted: bool = True,
    save: str = "auto",
    classes: int = 1000,
    packed: bool = True,
) -> nn.Module:
    """ResNet-18 for ImageNet with σ for every ReLU, so that what blocks add to is quantised: 11,689,512 parameters.

    Parameters have torchvision's names. Convolutions start from N(0, 2 / (k² O)). Arguments and errors are those of
    `convnet4`, but None is 5 steps.

    Shapes:
        x [N, 3, H, W], 224 × 224 in the source → logits [N, classes].
    """
    style = _Style("resnet18", activation, _steps(activation, steps, 5), rule, weighted, save, packed)
    check_size("resnet18", "classes", classes)
    return _ResNet(style, (2, 2, 2, 2), classes)


def _steps(activation: str, steps: int | None, usual: int) -> int | None:
    return usual if steps is None and activation == "quantized_relu" else steps
