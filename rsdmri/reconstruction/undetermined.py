"""Where the acquired samples do not determine an image, so that it shows what the method makes up or leaves out."""

import numpy as np
import torch
from torch import Tensor

from rsdmri.physics.sense import Sense
from rsdmri.physics.solve import conjugate_gradient

RIDGE = 0.01
"""Share of its energy of which the samples must hold more to determine a component of the image."""

_WIDTH = 1.5  # pixels
_DARK = 0.1  # of the brightest pixel: air is no place that shows something
_ITERATIONS, _TOLERANCE = 40, 1e-3


def undetermined_share(operator: Sense, image: Tensor) -> Tensor:
    """Share (..., y, x) in [0, 1] of the magnitude around each pixel that the samples of A do not determine.

        n = r (A^H A + r)^-1 x,    share = sqrt(G |n|^2 / max(G |x|^2, (0.1 max |x|)^2))

    n is what SENSE with a ridge r = `RIDGE` leaves out of the image x given its own samples A x without noise; for
    r -> 0 it is the part of x in the null space of A. G averages over a Gaussian of 1.5 pixels. Gaps between acquired
    lines that coils cannot bridge leave such places, above all where the phase is steep and the signal is therefore not
    in the centre of k-space. A large share is no error yet: it says that only the method vouches for what is seen.
    Draws of a posterior need not show it. Source: Bhadra et al. 2021 (IEEE TMI 40:3249), arXiv 2012.00646.

    Args:
        operator: A.
        image: complex, of its domain: (..., y, x), with sets of maps (..., set, y, x), whose energies are added.
    """
    from scipy.ndimage import gaussian_filter

    axes = 2 if operator.sets is None else 3
    with torch.no_grad():
        left = RIDGE * conjugate_gradient(
            operator.normal, image, shift=RIDGE, iterations=_ITERATIONS, tolerance=_TOLERANCE, axes=axes
        )
    energies = [x.abs().square().double().cpu() for x in (left, image)]
    energies = energies if axes == 2 else [x.sum(-3) for x in energies]
    least = (_DARK**2 * energies[1].amax((-2, -1), keepdim=True)).numpy()
    width = (0,) * (energies[0].ndim - 2) + (_WIDTH, _WIDTH)
    part, whole = (gaussian_filter(x.numpy(), width) for x in energies)
    share = np.zeros_like(part)
    np.divide(part, np.maximum(whole, least), out=share, where=whole > 0)
    return torch.from_numpy(np.sqrt(share).clip(max=1)).to(image.real.dtype)
