"""The backbone: a compact U-Net in plain torch (DDPM++ lineage).

Residual blocks of two 3x3 convolutions with group normalisation, modulated by the noise level; strided-average
down-sampling, nearest up-sampling, one self-attention block at the coarsest level. Any image size: the input is padded
inside to a multiple of the coarsest stride and the output cropped back.
References: Ho et al. 2020 (DDPM), Song et al. 2021 (DDPM++), Karras et al. 2022 (EDM).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

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


class Pointwise(nn.Linear):
    """A 1x1 convolution, as a matrix product over the last axis of the channels-last layout."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, y, x)`` to ``(batch, outputs, y, x)``."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x -> skip(x) + conv(silu(modulated norm(conv(silu(norm(x)))))); the last convolution starts at zero."""

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

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return the block's output ``(batch, outputs, y, x)``."""
        hidden = self.conv_in(nnf.silu(self.norm_in(x)))
        scale, shift = self.modulation(nnf.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        hidden = nnf.silu(torch.addcmul(shift, self.norm_out(hidden), 1 + scale))
        return self.skip(x) + self.conv_out(self.dropout(hidden))


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
        blocks: residual blocks per level on the way down (one more on the way up).
        attention: self-attention at the coarsest level.
        dropout: probability inside the residual blocks.
    """

    def __init__(
        self,
        inputs: int = 3,
        outputs: int = 2,
        channels: tuple[int, ...] = (32, 64, 96),
        blocks: int = 1,
        attention: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        embedding = 4 * channels[0]
        self.stride = 2 ** (len(channels) - 1)
        self.embed = NoiseEmbedding(embedding)
        self.conv_in = nn.Conv2d(inputs, channels[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, width = [], channels[0]
        for level_width in channels:
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(ResidualBlock(width, level_width, embedding, dropout))
                width = level_width
                skips.append(width)
            self.down.append(level)
        self.middle = ResidualBlock(width, width, embedding, dropout)
        self.attention = SelfAttention(width) if attention else nn.Identity()
        for level_width in reversed(channels):
            level = nn.ModuleList()
            for _ in range(blocks):
                level.append(ResidualBlock(width + skips.pop(), level_width, embedding, dropout))
                width = level_width
            self.up.append(level)
        self.norm_out = nn.GroupNorm(_groups(width), width)
        self.conv_out = nn.Conv2d(width, outputs, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        for number, layer in enumerate(module for module in self.modules() if isinstance(module, Dropout)):
            layer.number = number

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights that do not start at zero from ``generator``: U[-1, 1] / sqrt(fan in)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear) and bool(module.weight.any()):
                bound = module.weight[0].numel() ** -0.5
                for parameter in module.parameters():
                    nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Return the network's output for ``x`` at ``c_noise``."""
        height, width = x.shape[-2:]
        pad_y, pad_x = -height % self.stride, -width % self.stride
        if pad_y or pad_x:
            x = nnf.pad(x, (0, pad_x, 0, pad_y))
        embedding = self.embed(c_noise)
        hidden = self.conv_in(x.contiguous(memory_format=torch.channels_last))
        skips = []
        for index, level in enumerate(self.down):
            if index:
                hidden = nnf.avg_pool2d(hidden, 2)
            for block in level:  # type: ignore[attr-defined]
                hidden = block(hidden, embedding)
                skips.append(hidden)
        hidden = self.attention(self.middle(hidden, embedding))
        for index, level in enumerate(self.up):
            if index:
                hidden = nnf.interpolate(hidden, scale_factor=2, mode="nearest")
            for block in level:  # type: ignore[attr-defined]
                hidden = block(torch.cat([hidden, skips.pop()], dim=1), embedding)
        return self.conv_out(nnf.silu(self.norm_out(hidden)))[..., :height, :width]


def parameter_count(module: nn.Module) -> int:
    """Number of weights in ``module``."""
    return sum(p.numel() for p in module.parameters())
