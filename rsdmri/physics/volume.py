"""3-D Cartesian acquisition: readout y fully sampled, partitions z and phase encodes x undersampled.

A Fourier transform along the readout leaves one independent 2-D problem for each of its positions,
F_y^H A = M F_zx S position by position, so a volume is a batch of "slices" (z, x): `decoupled` k-space goes through
`espirit_maps`, `sense` and every solver as it is. `SenseVolume` is the operator on the k-space of the scanner.
"""

import torch
from torch import Tensor

from rsdmri.physics.fourier import fft1c, ifft1c
from rsdmri.physics.linop import LinearOperator, check_shape
from rsdmri.physics.sense import Sense

_READOUT = -3


def decoupled(kspace: Tensor) -> Tensor:
    """K-space [..., coil, y, z, x] as a batch of 2-D problems [..., y, coil, z, x]: transformed along the readout y."""
    return ifft1c(kspace, _READOUT).movedim(_READOUT, _READOUT - 1)


class SenseVolume(LinearOperator):
    """A x = M F (s_c x) of volumes, [..., y, z, x] to [..., coil, y, z, x]; leading axes are time frames.

    Args:
        maps: (coil, y, z, x) complex.
        mask: bool (z, x) points or (x,) lines, the same at every readout position y.

    Its normal is that of the 2-D problems: no transform along the readout. Raises ``ValueError`` where they do not fit.
    """

    def __init__(self, maps: Tensor, mask: Tensor) -> None:
        if maps.ndim != 4:
            raise ValueError(f"maps: expected (coil, y, z, x), got shape {list(maps.shape)}")
        self._slices = Sense(maps.movedim(1, 0), mask)
        self.maps, self.mask = maps.detach(), self._slices.mask
        self.domain_shape, self.range_shape = tuple(maps.shape[1:]), tuple(maps.shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return A x."""
        check_shape(x, self.domain_shape)
        volumes = [fft1c(self._slices.forward(one).movedim(0, 1), 1) for one in x.reshape(-1, *self.domain_shape)]
        return torch.stack(volumes).view(*x.shape[: x.ndim - 3], *self.range_shape)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^H y; only acquired samples of ``y`` are read."""
        check_shape(y, self.range_shape)
        acquired = torch.where(self.mask, y, 0)
        frames = acquired.reshape(-1, *self.range_shape)
        volumes = [self._slices.adjoint(decoupled(one)) for one in frames]
        return torch.stack(volumes).view(*y.shape[: y.ndim - 4], *self.domain_shape)

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x."""
        check_shape(x, self.domain_shape)
        volumes = [self._slices.normal(one) for one in x.reshape(-1, *self.domain_shape)]
        return torch.stack(volumes).view(x.shape)
