"""The discriminator: does a measured image come from a scan, or from the generator, measured the same way?

It sees A~^H y~ of scans and A~^H (A~ x_g + n) of generated images x_g, never an image that nobody measured. Where these
have one distribution, so have the images, if the masks determine it (Bora et al. 2018, AmbientGAN). Added to a
distillation it pulls where the teacher is wrong (Zhou et al. 2024, SiDA).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from rsdmri.diffusion.conditions import feature_count, features
from rsdmri.diffusion.unet import Pointwise, draw_weights, padded
from rsdmri.physics.fourier import to_channels


@dataclass(frozen=True)
class View:
    """What a discriminator sees: images A~^H y~ ``(batch, y, x)``, M~ ``(batch, 1 or y, x)``, conditions or None."""

    images: Tensor
    mask: Tensor
    conditions: Tensor | None = None


class Block(nn.Module):
    """x -> skip(x) + conv(silu(conv(silu(x)))), without normalisation; the last convolution starts at zero."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.skip = Pointwise(inputs, outputs) if inputs != outputs else nn.Identity()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output ``(batch, outputs, y, x)``."""
        return self.skip(x) + self.conv_out(nnf.silu(self.conv_in(nnf.silu(x))))


class Discriminator(nn.Module):
    """D(u, M~): a logit per item, positive for scans; built like the backbone's way down, with its widths.

    Channels in: the parts of u over ``sigma_data``, the mask, the conditions, and the position (y, x) in [-1, 1] (Liu
    et al. 2018), for the mean over positions at the end knows none. Items do not meet: there is no batch statistic.

    Args:
        sigma_data: standard deviation of the images per real number.
        parts: real numbers of a pixel.
        channels: width of each level, finest first; each further level halves the resolution.
        blocks: residual blocks per level.
        conditions: which of `rsdmri.diffusion.conditions.NAMES` it takes.
    """

    def __init__(
        self,
        sigma_data: float,
        parts: int = 2,
        channels: tuple[int, ...] = (32, 64, 96),
        blocks: int = 1,
        conditions: tuple[str, ...] = (),
    ):
        super().__init__()
        self.sigma_data, self.conditions, self.stride = sigma_data, conditions, 2 ** (len(channels) - 1)
        self.conv_in = nn.Conv2d(parts + 3 + feature_count(conditions), channels[0], 3, padding=1)
        self.levels, width = nn.ModuleList(), channels[0]
        for level_width in channels:
            self.levels.append(nn.Sequential(*(Block(w, level_width) for w in [width] + [level_width] * (blocks - 1))))
            width = level_width
        self.out = nn.Linear(width, 1)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights that do not start at zero from ``generator``, see `draw_weights`."""
        draw_weights(self, generator)

    def forward(self, view: View) -> Tensor:
        """Return the logits ``(batch,)``."""
        hidden = self.conv_in(padded(self._channels(view), self.stride).contiguous(memory_format=torch.channels_last))
        for index, level in enumerate(self.levels):
            hidden = level(nnf.avg_pool2d(hidden, 2) if index else hidden)
        return self.out(nnf.silu(hidden).mean(dim=(-2, -1)))[:, 0]

    def _channels(self, view: View) -> Tensor:
        images = view.images / self.sigma_data
        channels = to_channels(images) if images.is_complex() else images[:, None]
        count, _, height, width = channels.shape
        y, x = (torch.linspace(-1, 1, n, device=channels.device) for n in (height, width))
        planes = [view.mask.to(channels.dtype)[:, None], y[None, None, :, None], x[None, None, None]]
        if self.conditions:
            known = channels.new_zeros(count, 2) if view.conditions is None else view.conditions
            planes.append(features(known, self.conditions)[:, :, None, None])
        return torch.cat([channels, *(plane.expand(count, -1, height, width) for plane in planes)], dim=1)


@dataclass(frozen=True)
class Game:
    """What a step of both players is made of, each ``(batch,)``.

    Attributes:
        generator: softplus(-D(fake)), to be lowered by the generator.
        discriminator: softplus(-D(real)) + softplus(D(fake)) + R1, to be lowered by the discriminator.
        real: logits D(real).
        fake: logits D(fake).
    """

    generator: Tensor
    discriminator: Tensor
    real: Tensor
    fake: Tensor


def play(discriminator: Discriminator, frozen: Discriminator, real: View, fake: View, r1: float) -> Game:
    """Non-saturating losses of both players (Goodfellow et al. 2014) with `gradient_penalty` on ``real``.

    Gradients of the generator's loss reach ``fake.images`` alone, those of the discriminator's loss its weights alone.

    Args:
        discriminator: D.
        frozen: D with weights that take no gradient.
        real: measured scans.
        fake: generated images, measured.
        r1: weight of the penalty.
    """
    truth, penalty = gradient_penalty(discriminator, real)
    guess = discriminator(View(fake.images.detach(), fake.mask, fake.conditions))
    loss = nnf.softplus(-truth) + nnf.softplus(guess) + r1 * penalty
    return Game(nnf.softplus(-frozen(fake)), loss, truth.detach(), guess.detach())


def gradient_penalty(discriminator: Discriminator, view: View) -> tuple[Tensor, Tensor]:
    """Logits D(u) and R1 = n / 2 |sigma_data dD/du|^2, each ``(batch,)``; n real numbers make an image.

    With n and sigma_data one weight serves all sizes and scales of images. Reference: Mescheder et al. 2018.
    """
    images = view.images.detach().requires_grad_(True)
    logits = discriminator(View(images, view.mask, view.conditions))
    (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    parts = torch.view_as_real(slope) if slope.is_complex() else slope
    power = (discriminator.sigma_data * parts).square().flatten(1)
    return logits, power.shape[1] / 2 * power.sum(dim=1)
