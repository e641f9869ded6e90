"""The proximal distance: how good samples are, measured without a single clean image.

The training set holds measurements y = A x + n alone. A sample x_g is measured as they were, with acquisitions of the
training set and fresh noise, and both are looked at through further masks M~ of one law, as images A~^H y~: equal
distributions of x and x_g give equal distributions of these, and, where masks vary so that all of k-space is seen,
different ones give different ones (AmbientGAN, Bora et al. 2018).

What it cannot see: what no acquisition of the training set sees (with one mask for all scans, whatever a generator
puts on the lines that it skips); detail below the noise; and whether a sample belongs to the maps that it is measured
with. Maps end where their subject's head ends, so measure each sample with the maps that it was generated for, or any
where the generator saw none, and compare with the `floor`, not with zero.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.metrics.comparison import Comparison, compare_features
from rsdmri.metrics.features import Features
from rsdmri.physics.linop import LinearOperator


def measured_again(
    images: Tensor, operator: LinearOperator, sigma_y: Tensor | float, generator: torch.Generator
) -> Tensor:
    """Images of new measurements of samples, ``A~^H (A~ x + sigma_y n)``, to be compared with ``A~^H y`` of real ones.

    Args:
        images: x, (batch, y, x) in the units of the training set.
        operator: batched A~ of the training set: maps with a further mask, one an image.
        sigma_y: noise in each real number of the measurements, (batch,) or one number; 0 where the prior has taken the
            noise for part of the images.
        generator: of the noise.
    """
    measured = operator.forward(images)
    level = torch.as_tensor(sigma_y, dtype=measured.real.dtype, device=measured.device)
    level = level.reshape(-1, *[1] * (measured.ndim - 1))
    return operator.adjoint(measured + level * unit_noise(measured, generator))


def proximal_distance(
    kind: Features,
    generated: Tensor | ArrayLike,
    measured: Tensor | ArrayLike,
    *,
    generator: np.random.Generator,
    repeats: int = 50,
) -> Comparison:
    """All distances between `measured_again` samples and ``A~^H y`` of the training set, by features of magnitudes.

    Both (n, y, x), complex or real; the training images ordered by subject. Its ``frechet`` is what picks a checkpoint,
    the smaller the better, and its ``floor`` what training sets of half the size are apart. Errors as
    `compare_features`.

    Source: the proximal FID of Restoration Score Distillation, arXiv 2505.13377.
    """
    g, m = (kind(np.abs(np.asarray(x))) for x in (generated, measured))
    return compare_features(kind, g, m, generator=generator, repeats=repeats)


def measured_distances(images: Tensor, measured: Tensor, operator: LinearOperator) -> Tensor:
    """How far each image is from each measurement, ``|A_j x_i - y_j| / |y_j|``: (n, batch).

    For `rsdmri.metrics.memorisation` where the training set holds no images. ``images`` (n, y, x); ``measured``, zero
    where nothing was acquired, and ``operator`` of a batch of training items. A copy of the image behind y_j is at
    |n_j| / |y_j|. `InputError` for an item without signal.
    """
    axes = tuple(range(1, measured.ndim))
    power = torch.linalg.vector_norm(measured, dim=axes)
    if not bool((power > 0).all()):
        raise InputError("measured: an item without signal; leave it out")
    found = []
    for image in images:
        residual = operator.forward(image.expand(len(measured), *image.shape)) - measured
        found.append(torch.linalg.vector_norm(residual, dim=axes) / power)
    return torch.stack(found) if found else measured.real.new_empty((0, len(measured)))
