"""The backbone: a compact U-Net in plain torch (DDPM++ lineage).

Residual blocks of two 3x3 convolutions with group normalisation, modulated by the noise level; strided-average
down-sampling, nearest up-sampling, self-attention at the coarsest levels. Any image size: the input is padded inside
with zeros to a multiple of the coarsest stride and the output cropped back. Memory is channels-last throughout.
References: Ho et al. 2020 (DDPM), Song et al. 2021 (DDPM++), Karras et al. 2022 (EDM).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from rsdmri.diffusion.conditions import ConditionEmbedding
from rsdmri.diffusion.dropout import Dropout


def _groups(channels: int) -> int:
    return math.gcd(channels, max(1, channels // 8))


class NoiseEmbedding(nn.Module):
    """Embed c_noise ``(batch,)`` into ``(batch, width)`` by fixed Fourier features and two linear layers."""

    frequencies: Tensor

    def __init__(self, width: int, features: int = 32):
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(64), features // 2)), persistent=False)
        self.first = nn.Linear(features, width)
        self.second = nn.Linear(width, width)

    def forward(self, c_noise: Tensor) -> Tensor:
        """Return the embedding of ``c_noise``."""
        angles = c_noise[:, None] * self.frequencies
        return self.second(nnf.silu(self.first(torch.cat([angles.cos(), angles.sin()], dim=1))))


def silu_of_own(x: Tensor) -> Tensor:
    """silu(x) of a tensor that nobody else needs: in its place where no gradient is asked for, a fifth faster there."""
    return nnf.silu(x, inplace=not torch.is_grad_enabled())


class Pointwise(nn.Linear):
    """A 1x1 convolution, as a matrix product over the last axis of the channels-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, y, x)`` to ``(batch, outputs, y, x)``."""
        return _pointwise(x, self.weight, self.bias)


def _pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return nnf.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x -> skip(x) + conv(silu(modulated norm(conv(silu(norm(x)))))); the last convolution starts at zero.

    The sum is not scaled (DDPM++ divides it by sqrt(2)): pooling, and a skip over the concatenation in every block of
    the way up, keep the size of x within a factor of 2 in the deepest preset with random weights of unit gain.
    """

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float = 0.0):
        super().__init__()
        self.norm_in = nn.GroupNorm(_groups(inputs), inputs)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * outputs)
        self.norm_out = nn.GroupNorm(_groups(outputs), outputs)
        self.dropout = Dropout(dropout)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, embedding: Tensor, coarse: Tensor | None = None) -> Tensor:
        """Return the block's output ``(batch, outputs, y, x)``.

        ``coarse``: the first of the block's input channels at half the resolution of x, the last ones, and meant as
        four alike. Repeating its pixels would be half of the work of the two levels that take most of it.
        """
        if coarse is None:
            hidden, skipped = self.conv_in(silu_of_own(self.norm_in(x))), self.skip(x)
        else:
            hidden, skipped = self._joined(coarse, x)
        scale, shift = self.modulation(nnf.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = silu_of_own(torch.addcmul(shift, self.norm_out(hidden), 1 + scale))
        found: Tensor = self.conv_out(self.dropout(hidden))
        return found + skipped if torch.is_grad_enabled() else found.add_(skipped)

    def _joined(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor]:
        """First convolution and skip of ``cat([repeated(coarse), fine])``, without that where groups allow it."""
        norm, conv, skip, count = self.norm_in, self.conv_in, self.skip, coarse.shape[1]
        size = norm.num_channels // norm.num_groups
        if count % size or not isinstance(skip, Pointwise):
            x = torch.cat([_repeated(coarse), fine], dim=1)
            return conv(silu_of_own(norm(x))), skip(x)
        parts = []
        for part, own in ((coarse, slice(count)), (fine, slice(count, None))):
            normed = nnf.group_norm(part, part.shape[1] // size, norm.weight[own], norm.bias[own], norm.eps)
            parts.append(silu_of_own(normed))
        hidden = nnf.conv_transpose2d(parts[0], _of_repeated(conv.weight[:, :count]), conv.bias, stride=2, padding=1)
        hidden = hidden + nnf.conv2d(parts[1], conv.weight[:, count:], padding=1)
        skipped = _pointwise(fine, skip.weight[:, count:], skip.bias)
        return hidden, skipped + _repeated(_pointwise(coarse, skip.weight[:, :count]))


def _repeated(x: Tensor) -> Tensor:
    """Each pixel of ``x`` four times: nearest up-sampling."""
    return nnf.interpolate(x, scale_factor=2, mode="nearest")


def _of_repeated(weight: Tensor) -> Tensor:
    """Of a 3x3 convolution (outputs, inputs, 3, 3) of `_repeated` x: the transposed one of x, (inputs, outputs, 4, 4).

    With stride 2 and padding 1, exactly: of three neighbours two are copies of one pixel, whose weights add up. It
    takes 4 multiplications in place of 9.
    """
    first, middle, last = weight.unbind(-1)
    along = torch.stack([last, middle + last, first + middle, first], dim=-1)
    first, middle, last = along.unbind(-2)
    both = torch.stack([last, middle + last, first + middle, first], dim=-2)
    return both.transpose(0, 1).contiguous(memory_format=torch.channels_last)


class SelfAttention(nn.Module):
    """Residual self-attention over all positions, a head per 32 channels where that divides; starts as the identity."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // 32))
        self.norm = nn.GroupNorm(_groups(channels), channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.out = Pointwise(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` plus the attended values."""
        batch, channels, height, width = x.shape
        parts = self.qkv(self.norm(x)).reshape(batch, 3, self.heads, channels // self.heads, height * width)
        q, k, v = parts.transpose(-1, -2).unbind(1)
        attended = nnf.scaled_dot_product_attention(q, k, v)
        return x + self.out(attended.transpose(-1, -2).reshape(batch, channels, height, width))


class UNet(nn.Module):
    """Map ``(batch, inputs, y, x)`` and c_noise ``(batch,)`` to ``(batch, outputs, y, x)``, float32.

    Args:
        inputs: channels in: real, imaginary, mask.
        outputs: channels out: real, imaginary.
        channels: width of each level, finest first; each further level halves the resolution.
        blocks: residual blocks per level on the way down, and as many on the way up.
        attention: at how many of the coarsest levels: once in the middle of the coarsest, at the end of the way down
            and of the way up of the others.
        dropout: probability inside the residual blocks.
        conditions: which of `rsdmri.diffusion.conditions.NAMES` the network takes.
    """

    def __init__(
        self,
        inputs: int = 3,
        outputs: int = 2,
        channels: tuple[int, ...] = (32, 64, 96),
        blocks: int = 1,
        attention: int = 1,
        dropout: float = 0.0,
        conditions: tuple[str, ...] = (),
    ):
        super().__init__()
        embedding = 4 * channels[0]
        self.inputs, self.stride = inputs, 2 ** (len(channels) - 1)
        self.embed = NoiseEmbedding(embedding)
        self.condition = ConditionEmbedding(conditions, embedding) if conditions else None
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, embedding, dropout)

        def attend(level: int) -> nn.Module:
            beside = len(channels) - attention <= level < len(channels) - 1
            return SelfAttention(channels[level]) if beside else nn.Identity()

        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [], channels[0]
        for level_width in channels:
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(block(width, level_width))
                width = level_width
                skips.append(width)
            self.down.append(level)
        self.middle = block(width, width)
        self.attention = SelfAttention(width) if attention else nn.Identity()
        for level_width in reversed(channels):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(block(width + skips.pop(), level_width))
                width = level_width
            self.up.append(level)
        self.attend_down = nn.ModuleList(attend(level) for level in range(len(channels)))
        self.attend_up = nn.ModuleList(attend(level) for level in reversed(range(len(channels))))
        self.norm_out = nn.GroupNorm(_groups(width), width)
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        for number, layer in enumerate(module for module in self.modules() if isinstance(module, Dropout)):
            layer.number = number

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights that do not start at zero from ``generator``, see `draw_weights`."""
        draw_weights(self, generator)

    def forward(self, x: Tensor, c_noise: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return the network's output for ``x`` at ``c_noise``, under ``conditions`` ``(batch, 2)`` or unknown ones."""
        height, width = check_image(x, self.inputs)
        embedding = self.embed(c_noise)
        if conditions is not None:
            if self.condition is None:
                raise ValueError("conditions: the network was built without; leave them out")
            embedding = embedding + self.condition(conditions)
        hidden = self.conv_in(padded(x, self.stride).contiguous(memory_format=torch.channels_last))
        skips = []
        for index, level in enumerate(self.down):
            if index:
                hidden = nnf.avg_pool2d(hidden, 2)
            for block in level:  # type: ignore[attr-defined]
                skips.append(hidden := block(hidden, embedding))
            hidden = skips[-1] = self.attend_down[index](hidden)
        hidden = self.attention(self.middle(hidden, embedding))
        for index, level in enumerate(self.up):
            for number, block in enumerate(level):  # type: ignore[arg-type]
                if index and number == 0:
                    hidden = block(skips.pop(), embedding, hidden)
                else:
                    hidden = block(torch.cat([hidden, skips.pop()], dim=1), embedding)
            hidden = self.attend_up[index](hidden)
        return self.conv_out(silu_of_own(self.norm_out(hidden)))[..., :height, :width]


def check_image(x: Tensor, inputs: int) -> tuple[int, int]:
    """Size (y, x) of images ``(batch, inputs, y, x)``; `ValueError` for other shapes and images without pixels."""
    if x.ndim != 4 or x.shape[1] != inputs or 0 in x.shape[-2:]:
        raise ValueError(f"x: expected (batch, {inputs}, y, x) with y and x at least 1, got {tuple(x.shape)}")
    return x.shape[-2], x.shape[-1]


def padded(x: Tensor, stride: int) -> Tensor:
    """``x`` (..., y, x) with zeros below and to the right, so that ``stride`` divides both sides."""
    pad_y, pad_x = (-side % stride for side in x.shape[-2:])
    return nnf.pad(x, (0, pad_x, 0, pad_y)) if pad_y or pad_x else x


@torch.no_grad()
def draw_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights of all convolutions and matrices that are not zero: U[-1, 1] / sqrt(fan in)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and bool(module.weight.any()):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def parameter_count(module: nn.Module) -> int:
    """Number of weights in ``module``."""
    return sum(p.numel() for p in module.parameters())
