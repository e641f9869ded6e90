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
        mask_free: show the network every line (M~ = 1) whatever the mask: nothing of the acquisition but its coils.
    """

    def __init__(self, denoiser: Denoiser, sigma_init: float = SIGMA_INIT, mask_free: bool = False):
        super().__init__()
        self.denoiser = denoiser
        self.sigma_init = sigma_init
        self.mask_free = mask_free

    def forward(
        self,
        noise: Tensor,
        operator: Sense | Sampling,
        coil_noise: Tensor | None = None,
        conditions: Tensor | None = None,
    ) -> Tensor:
        """Turn standard noise ``(batch, y, x)`` into images ``(batch, y, x)`` of scans of ``conditions``.

        ``coil_noise`` is the part of k-space noise that no image has (`Acquisitions.draw_coil_noise`); with every line
        shown there is none.
        """
        sigma = torch.full((noise.shape[0],), self.sigma_init, dtype=noise.real.dtype, device=noise.device)
        if self.mask_free:
            operator, coil_noise = operator.with_mask(torch.ones_like(operator.mask)), None
        u = operator.normal(self.sigma_init * noise)
        if coil_noise is not None:
            u = u + self.sigma_init * coil_noise
        return given(self.denoiser, conditions)(u, operator, sigma)
