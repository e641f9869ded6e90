"""Backbones that a denoiser can be built on: this package's own U-Net and those of other libraries.

All of them map ``(batch, inputs, y, x)``, c_noise ``(batch,)`` and, where asked for, conditions ``(batch, 2)`` to
``(batch, outputs, y, x)``, and draw their weights from a generator by ``initialise``.

Presets (``network.preset``) with the peak memory of training steps, that of the imports taken off, on one CPU thread in
float32 with 8 coils (benchmarks/backbone.py):

| preset | channels | blocks | attention | parameters | for | measured at | teacher | prior |
|---|---|---|---|---|---|---|---|---|
| tiny | 16, 48, 96 | 1 | coarsest level | 0.8 M | the demo | 48 x 48, batch 16 | 0.21 GB | 0.62 GB |
| small | 32, 64, 96, 128 | 1 | coarsest level | 2.0 M | the defaults | 128 x 128, batch 8 | 0.97 GB | 2.87 GB |
| base | 64, 128, 256, 320, 352 | 2 | two levels | 35.6 M | 320 x 320 | 320 x 320, batch 1 | 2.93 GB | 8.89 GB |

Explicit settings go before those of the preset.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from rsdmri.config import Config, NetworkConfig
from rsdmri.diffusion.conditions import feature_count, features
from rsdmri.diffusion.schedule import SIGMA_MAX, SIGMA_MIN
from rsdmri.diffusion.unet import UNet, check_image, draw_weights, padded
from rsdmri.errors import InputError

_TIMESTEPS = 1000.0  # what their embeddings are made for


def build_backbone(config: Config) -> "UNet | Adapted":
    """The backbone of a configuration, for complex images or magnitudes, its weights still to be drawn.

    Errors:
        InputError: its library is not installed, or it cannot do what is asked.
    """
    network = config.network
    parts = 2 if config.corruption.kind == "fourier" else 1  # complex images or magnitudes
    inputs = parts + 1 + feature_count(network.conditions)
    match network.backbone:
        case "diffusers":
            other = _diffusers(inputs, parts, network)
        case "monai":
            other = _monai(inputs, parts, network)
        case _:
            names = ("channels", "blocks", "attention", "dropout", "conditions")
            return UNet(parts + 1, parts, **{name: getattr(network, name) for name in names})
    return Adapted(other, parts + 1, 2 ** (len(network.channels) - 1), network.conditions)


class Adapted(nn.Module):
    """Another library's U-Net behind this package's interface.

    c_noise becomes the timestep, 0 at the least and 1000 at the largest level of `karras_sigma`; conditions become
    further input channels, each constant over the image; images are padded inside to what the network can halve.

    Args:
        network: called with ``(batch, inputs + features of the conditions, y, x)`` and timesteps ``(batch,)``.
        inputs: channels in.
        stride: divides the sides of what the network is given.
        conditions: which of `rsdmri.diffusion.conditions.NAMES` it takes.
    """

    def __init__(self, network: nn.Module, inputs: int, stride: int, conditions: tuple[str, ...] = ()):
        super().__init__()
        self.network, self.inputs, self.stride, self.conditions = network, inputs, stride, conditions

    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights from ``generator``, those that start at zero excepted; see `draw_weights`."""
        draw_weights(self.network, generator)

    def forward(self, x: Tensor, c_noise: Tensor, conditions: Tensor | None = None) -> Tensor:
        """Return the network's output for ``x`` at ``c_noise``, under ``conditions`` ``(batch, 2)`` or unknown ones."""
        height, width = check_image(x, self.inputs)
        if self.conditions:
            known = x.new_zeros(len(x), 2) if conditions is None else conditions
            planes = features(known, self.conditions).to(x.dtype)
            x = torch.cat([x, planes[:, :, None, None].expand(-1, -1, height, width)], dim=1)
        elif conditions is not None:
            raise ValueError("conditions: the network was built without; leave them out")
        x = padded(x, self.stride).contiguous(memory_format=torch.channels_last)
        found = self.network(x, timestep(c_noise))
        return (found if isinstance(found, Tensor) else found[0])[..., :height, :width]


def timestep(c_noise: Tensor) -> Tensor:
    """t = 1000 (c - c_min) / (c_max - c_min) with c = ln(sigma) / 4 over the levels that are sampled."""
    low, high = math.log(SIGMA_MIN) / 4, math.log(SIGMA_MAX) / 4
    return _TIMESTEPS * (c_noise - low) / (high - low)


def _diffusers(inputs: int, outputs: int, network: NetworkConfig) -> nn.Module:
    """diffusers' UNet2DModel; its last convolution starts at zero."""
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise _missing("diffusers", error) from None
    levels, attended = len(network.channels), _attended(network)
    model: Any = UNet2DModel(
        in_channels=inputs,
        out_channels=outputs,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        block_out_channels=network.channels,
        layers_per_block=network.blocks,
        dropout=network.dropout,
        add_attention=network.attention > 0,
        attention_head_dim=math.gcd(32, *network.channels[max(0, levels - max(1, network.attention)) :]),
        norm_num_groups=_groups(network),
    )
    nn.init.zeros_(model.conv_out.weight)
    nn.init.zeros_(model.conv_out.bias)
    return model


def _monai(inputs: int, outputs: int, network: NetworkConfig) -> nn.Module:
    """MONAI's DiffusionModelUNet, which begins with zeros in its last convolution."""
    if network.dropout or not network.attention:
        raise InputError(
            "network.backbone monai has no dropout and always attention at the coarsest level; "
            "set network.dropout=0 and network.attention=1 or more"
        )
    try:
        from monai.networks.nets import DiffusionModelUNet

        return DiffusionModelUNet(
            spatial_dims=2,
            in_channels=inputs,
            out_channels=outputs,
            num_res_blocks=network.blocks,
            channels=network.channels,
            attention_levels=_attended(network),
            norm_num_groups=_groups(network),
            num_head_channels=[math.gcd(32, channels) for channels in network.channels],
            use_flash_attention=True,
        )
    except ImportError as error:  # its own imports happen when they are used
        raise _missing("monai", error) from None


def _attended(network: NetworkConfig) -> tuple[bool, ...]:
    """Which levels have attention beside that in the middle, as in `UNet`."""
    levels = len(network.channels)
    return tuple(levels - network.attention <= level < levels - 1 for level in range(levels))


def _groups(network: NetworkConfig) -> int:
    """Groups of a normalisation that divide all widths, of 8 channels at the narrowest."""
    return max(1, min(32, math.gcd(*network.channels) // 8))


def _missing(library: str, error: ImportError) -> InputError:
    reason = " ".join(str(error).split())[:120]
    cure = f"python -m pip install 'rsdmri[{library}]'"
    return InputError(f"network.backbone {library}: {library} cannot be imported ({reason}); {cure}")
