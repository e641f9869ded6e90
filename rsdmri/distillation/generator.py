"""The one-step generator: one network evaluation turns noise into an image."""

import torch
from torch import Tensor, nn

from rsdmri.diffusion.denoiser import Denoiser, given
from rsdmri.physics.sense import Sampling, Sense

SIGMA_INIT = 2.5


class Generator(nn.Module):
    """G(z) = D_theta(A~^H A~ z, M~, s_init), z = s_init e: a denoiser evaluated once at a fixed noise level.

    Args:
        denoiser: the network, warm-started from the teacher.
        sigma_init: the level s_init.
    """

    def __init__(self, denoiser: Denoiser, sigma_init: float = SIGMA_INIT):
        super().__init__()
        self.denoiser = denoiser
        self.sigma_init = sigma_init

    def forward(self, noise: Tensor, operator: Sense | Sampling, conditions: Tensor | None = None) -> Tensor:
        """Turn standard complex noise ``(batch, y, x)`` into images ``(batch, y, x)`` of scans of ``conditions``."""
        sigma = torch.full((noise.shape[0],), self.sigma_init, device=noise.device)
        return given(self.denoiser, conditions)(operator.normal(self.sigma_init * noise), operator, sigma)
