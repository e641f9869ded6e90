"""Rows of a slice as a measurement of their own, for masks of whole lines."""

import torch
from torch import Tensor

from rsdmri.physics.fourier import fft1c, ifft1c


def readout_strips(kspace: Tensor, maps: Tensor, starts: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """K-space and coil maps of ``rows`` image rows of each slice, from row ``starts`` of it on.

    A mask of whole lines acts along x alone: with R the choice of rows and F_y the centred orthonormal transform along
    the readout, F_y R F_y^-1 y is the k-space that the same coils and the same mask measure of the rows alone, exactly.
    The rows of an orthonormal transform are orthonormal, so white noise stays white and as strong.

    Args:
        kspace: y, 0 where nothing was acquired, complex ``(slice, coil, y, x)``; masks of points do not fit.
        maps: coil sensitivities of the same shape.
        starts: first row of each slice, int64 ``(slice,)``, at most y - rows.
        rows: y of the result.

    Returns:
        k-space and maps, ``(slice, coil, rows, x)``.
    """
    chosen = (starts[:, None] + torch.arange(rows, device=starts.device))[:, None, :, None]
    hybrid = torch.take_along_dim(ifft1c(kspace, -2), chosen, dim=-2)
    return fft1c(hybrid, -2), torch.take_along_dim(maps, chosen, dim=-2)
