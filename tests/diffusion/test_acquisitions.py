"""Noise of k-space in the samplers: exact in law for maps of unit norm, whatever lies outside the object."""

import numpy as np
import pytest
import torch
from references import random_maps, sense_matrix
from torch import Tensor

from rsdmri.diffusion import acquisitions
from rsdmri.diffusion.acquisitions import Acquisitions
from rsdmri.diffusion.batch import shown_noise
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.physics.sense import Sampling, Sense
from rsdmri.runtime import numpy_generator, torch_generator


def bank(coils: int, height: int, width: int, *, points: bool = False, coil_noise: bool = True) -> Acquisitions:
    """One acquisition in double precision, with pixels that no coil sees."""
    rng = numpy_generator("bank", coils, height, width)
    maps = random_maps(rng, coils, height, width)
    maps[:, rng.uniform(size=(height, width)) < 0.3] = 0
    mask = rng.uniform(size=(height if points else 1, width)) < 0.6
    mask[..., width // 2], mask[..., 0] = True, False
    return Acquisitions(torch.as_tensor(maps)[None], torch.as_tensor(mask)[None], coil_noise=coil_noise)


def columns(apply, shape: tuple[int, ...]) -> np.ndarray:
    """Dense matrix of a linear ``apply`` on tensors of ``shape`` (1, ...)."""
    basis = torch.eye(int(np.prod(shape)), dtype=torch.complex128).reshape(-1, *shape)
    return torch.stack([apply(e).reshape(-1) for e in basis], dim=1).numpy()


def coil_noise_matrix(acquisition: Acquisitions, operator: Sense, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Matrix of n -> A~^H M~ n', as `draw_coil_noise` computes it from the n that it draws."""

    def of(noise: Tensor) -> Tensor:
        monkeypatch.setattr(acquisitions, "unit_noise", lambda like, generator: noise)
        return acquisition.draw_coil_noise(operator, torch_generator("unused"))

    return columns(of, tuple(operator.maps.shape))


@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize(("coils", "height", "width"), [(1, 4, 5), (2, 3, 4), (3, 5, 4)])
def test_noise_of_kspace_is_split_exactly(coils, height, width, points, monkeypatch):
    """u = A~^H A~ (x + s e) + s A~^H M~ n' has the covariance of A~^H (A~ x + s n): B B + K K^H = A~^H A~ = B."""
    acquisition = bank(coils, height, width, points=points)
    operator = acquisition.draw(1, torch_generator("draw"))
    matrix = sense_matrix(acquisition.maps[0].numpy(), acquisition.mask[0].numpy())
    normal = matrix.conj().T @ matrix
    extra = coil_noise_matrix(acquisition, operator, monkeypatch)
    np.testing.assert_allclose(normal @ normal + extra @ extra.conj().T, normal, atol=1e-12)
    assert np.abs(extra).max() > 0.1 or coils == 1
    without = normal @ normal - normal
    assert np.abs(without).max() > 0.05 or coils == 1  # image noise alone is another law


def test_maps_without_unit_norm_would_not_do(monkeypatch):
    acquisition = bank(2, 3, 4)
    acquisition = Acquisitions(1.2 * acquisition.maps, acquisition.mask, coil_noise=True)
    operator = acquisition.draw(1, torch_generator("draw"))
    matrix = sense_matrix(acquisition.maps[0].numpy(), acquisition.mask[0].numpy())
    normal = matrix.conj().T @ matrix
    extra = coil_noise_matrix(acquisition, operator, monkeypatch)
    assert np.abs(normal @ normal + extra @ extra.conj().T - normal).max() > 0.1


def test_noise_of_training_and_of_sampling_have_one_law():
    """Their second moments agree, drawn at random by the functions that training and sampling use."""
    one, count = bank(2, 3, 4), 20_000
    acquisition = Acquisitions(one.maps, one.mask, coil_noise=True)
    operator = acquisition.draw(count, torch_generator("draw"))
    generator = torch_generator("noise")
    image = unit_noise(torch.empty(operator.domain_shape, dtype=torch.complex128), generator)
    sampled = operator.normal(image) + acquisition.draw_coil_noise(operator, generator)
    trained = shown_noise(operator, unit_noise(operator.maps, generator))
    found, expected = (
        (u.reshape(count, -1).mT @ u.reshape(count, -1).conj() / (2 * count)).numpy() for u in (sampled, trained)
    )
    np.testing.assert_allclose(found, expected, atol=6 / count**0.5)


def test_priors_of_image_noise_draw_none():
    acquisition = bank(2, 3, 4, coil_noise=False)
    assert acquisition.draw_coil_noise(acquisition.draw(2, torch_generator("draw")), torch_generator("n")) is None
    pixels = Acquisitions(None, torch.ones(3, 4, 5, dtype=torch.bool), keep=0.5, real=True, coil_noise=True)
    operator = pixels.draw(2, torch_generator("draw"))
    assert isinstance(operator, Sampling)
    assert pixels.draw_coil_noise(operator, torch_generator("n")) is None
    assert pixels.draw_noise(operator, torch_generator("n")).dtype == torch.float32
    assert 0 < float(operator.mask.float().mean()) < 1
