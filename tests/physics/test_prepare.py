import numpy as np
import pytest
import torch
from phantoms import correlated, noise, phantom, subspace_error

from rsdmri.errors import InputError
from rsdmri.physics import masks, sense
from rsdmri.physics.fourier import fft2c, ifft2c, rss
from rsdmri.physics.noise import NoiseEstimate, estimate_covariance, whiten, whitening_matrix
from rsdmri.physics.prepare import prepare_slice
from rsdmri.physics.solve import conjugate_gradient

MASK = masks.draw_mask("random", 64, acceleration=3, center_fraction=0.2, key=("prepare", 0))
FULL = torch.ones(64, dtype=torch.bool)
MIXING = correlated(6)
KNOWN = NoiseEstimate(0.05**2 * MIXING @ MIXING.mH, 1000, "known")


def noisy_kspace():
    return phantom(6).kspace + 0.05 * noise(MIXING, (64, 64))


def same(first, second):
    tensors = ("kspace", "mask", "maps", "intensity")
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors) and (
        first.scale, first.sigma_y) == (second.scale, second.sigma_y)  # fmt: skip


def test_scale_is_the_99th_percentile_of_the_whitened_acs_image():
    kspace = noisy_kspace()
    prepared = prepare_slice(kspace, MASK, noise=KNOWN)
    block = torch.zeros_like(kspace)
    acs = masks.acs_block(MASK)[1]
    block[..., acs] = whiten(kspace, whitening_matrix(KNOWN.covariance))[..., acs]
    expected = np.percentile(rss(ifft2c(block)).numpy(), 99)
    assert prepared.scale == pytest.approx(expected, rel=0.01)
    assert prepared.sigma_y == pytest.approx(1 / prepared.scale)
    assert prepared.mask.shape == (1, 64)
    assert bool((prepared.kspace[..., ~MASK] == 0).all())


def test_intensity_brings_the_image_back_to_the_units_of_the_file():
    """Noise-free and fully sampled: |x| * intensity is the root-sum-of-squares image, exactly, whitening included."""
    head = phantom(6)
    prepared = prepare_slice(head.kspace, FULL, noise=KNOWN, maps=head.maps)
    image = sense(prepared.maps, prepared.mask).adjoint(prepared.kspace)
    torch.testing.assert_close(image.abs() * prepared.intensity, head.image.abs(), atol=2e-6, rtol=1e-4)


def test_estimated_maps_come_close_to_that():
    head = phantom(6)
    kspace = noisy_kspace()
    prepared = prepare_slice(kspace, FULL, noise=estimate_covariance(kspace[None], FULL))
    image = sense(prepared.maps, prepared.mask).adjoint(prepared.kspace).abs() * prepared.intensity
    error = (image - head.image.abs())[head.inside].norm() / head.image[head.inside].norm()
    assert float(error) < 0.05


def test_the_phase_of_a_dim_place_is_its_own_and_not_that_of_a_brighter_one_far_away():
    """8 centre lines: the side lobes of a bright bar are as bright as a dim one whose phase is a quarter turn away."""
    image = torch.zeros(1, 64, 64, dtype=torch.complex64)
    image[:, 8:56, 8:16], image[:, 8:56, 30:56] = 1, 0.08j
    mask = masks.draw_mask("random", 64, acceleration=4, center_fraction=0.125, key=("dim", 0))
    prepared = prepare_slice(fft2c(image), mask, noise=None, maps=torch.ones_like(image))
    dim = prepared.maps[0, 12:52, 34:52]
    assert float((dim.angle() - torch.pi / 2).abs().max()) < 0.25
    ringing = ifft2c(fft2c(image) * torch.zeros(64).index_fill(0, torch.arange(28, 36), 1))[0, 12:52, 34:52]
    assert float((ringing.angle() - torch.pi / 2).abs().max()) > 1


def test_residual_noise_has_the_standard_deviation_sigma_y():
    head = phantom(6)
    prepared = prepare_slice(noisy_kspace(), MASK, noise=KNOWN, maps=head.maps)
    operator = sense(prepared.maps, prepared.mask)
    clean = prepare_slice(head.kspace, MASK, noise=KNOWN, maps=head.maps)
    truth = (prepared.kspace * prepared.scale - clean.kspace * clean.scale) / prepared.scale
    assert float(truth[..., MASK].abs().square().mean().sqrt()) == pytest.approx(prepared.sigma_y, rel=0.03)
    image = conjugate_gradient(operator.normal, operator.adjoint(prepared.kspace), shift=1e-3, iterations=50)
    residual = (operator.forward(image) - prepared.kspace)[..., MASK]
    assert float(residual.abs().square().mean().sqrt()) < 1.1 * prepared.sigma_y


@pytest.mark.parametrize("mask", [MASK, FULL.expand(64, 64).clone().index_fill(1, torch.arange(4), False)])
def test_unacquired_samples_are_never_read(mask):
    kspace = noisy_kspace()
    clean = prepare_slice(kspace, mask, noise=KNOWN)
    poisoned = torch.where(mask, kspace, torch.nan)
    before = poisoned.clone()
    assert same(prepare_slice(poisoned, mask, noise=KNOWN), clean)
    assert torch.equal(poisoned.isnan(), before.isnan())
    assert same(prepare_slice(torch.where(mask, kspace, 1e30), mask, noise=KNOWN), clean)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_broken_acquired_samples_are_counted_and_refused(value):
    kspace = noisy_kspace()
    kspace[2, 5, 31] = value
    kspace[3, 6, 32] = value
    with pytest.raises(InputError, match="2 acquired samples are NaN or infinite"):
        prepare_slice(kspace, MASK, noise=KNOWN)


@pytest.mark.parametrize("factor", [1e-6, 1e-3, 1e3, 1e6])
def test_units_of_the_file_do_not_matter(factor):
    kspace = noisy_kspace()
    first = prepare_slice(kspace, MASK, noise=estimate_covariance(kspace[None], MASK))
    kspace = kspace * factor
    scaled = prepare_slice(kspace, MASK, noise=estimate_covariance(kspace[None], MASK))
    assert scaled.scale == pytest.approx(first.scale, rel=1e-4)
    torch.testing.assert_close(scaled.kspace, first.kspace, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(scaled.maps, first.maps, atol=2e-3, rtol=0)
    torch.testing.assert_close(scaled.intensity, first.intensity * factor, rtol=2e-3, atol=0)
    unwhitened = [prepare_slice(k, MASK, noise=None) for k in (kspace / factor, kspace)]
    assert unwhitened[1].scale == pytest.approx(unwhitened[0].scale * factor, rel=1e-4)
    torch.testing.assert_close(unwhitened[1].kspace, unwhitened[0].kspace, atol=1e-4, rtol=1e-3)


def test_order_of_coils_does_not_matter():
    order = torch.tensor([3, 0, 5, 4, 2, 1])
    kspace = noisy_kspace()
    first = prepare_slice(kspace, MASK, noise=KNOWN)
    permuted = NoiseEstimate(KNOWN.covariance[order][:, order], KNOWN.samples, KNOWN.source)
    second = prepare_slice(kspace[order], MASK, noise=permuted)
    assert second.scale == pytest.approx(first.scale, rel=1e-5)
    torch.testing.assert_close(second.kspace, first.kspace[order], atol=1e-4, rtol=1e-4)
    kept = (rss(first.maps) > 0) & (rss(second.maps) > 0)
    assert subspace_error(second.maps, first.maps[order], kept) < 2e-3
    torch.testing.assert_close(second.intensity[kept], first.intensity[kept], rtol=1e-3, atol=0)


def test_given_maps_are_whitened_and_normalised():
    head = phantom(6)
    maps = 3 * head.maps
    maps[:, :10] = 0
    prepared = prepare_slice(head.kspace, FULL, noise=KNOWN, maps=maps)
    length = rss(prepared.maps)
    torch.testing.assert_close(length[10:], torch.ones(54, 64))
    assert bool((length[:10] == 0).all())
    expected = whiten(head.maps.to(torch.complex128), whitening_matrix(KNOWN.covariance)).to(torch.complex64)
    assert subspace_error(prepared.maps[:, 10:], expected[:, 10:] / rss(expected)[10:], torch.tensor(True)) < 1e-3


def test_without_a_noise_estimate_nothing_is_mixed():
    head = phantom(6)
    prepared = prepare_slice(head.kspace, FULL, noise=None)
    assert prepared.sigma_y == 0
    torch.testing.assert_close(prepared.kspace * prepared.scale, head.kspace)


def test_an_empty_slice_keeps_scale_one():
    prepared = prepare_slice(torch.zeros(6, 64, 64, dtype=torch.complex64), MASK, noise=KNOWN)
    assert prepared.scale == 1
    assert bool((prepared.kspace == 0).all())
    assert bool((prepared.intensity == 0).all())


def test_one_coil():
    head = phantom(1)
    prepared = prepare_slice(head.kspace, FULL, noise=NoiseEstimate(torch.full((1, 1), 0.04), 10, "known"))
    image = sense(prepared.maps, prepared.mask).adjoint(prepared.kspace)
    torch.testing.assert_close(image.abs() * prepared.intensity, head.image.abs(), atol=1e-6, rtol=1e-4)


def test_numpy_arrays_read_only_ones_too():
    kspace = noisy_kspace()
    array, mask = kspace.numpy().copy(), MASK.numpy().copy()
    array.setflags(write=False)
    mask.setflags(write=False)
    assert same(prepare_slice(array, mask, noise=KNOWN), prepare_slice(kspace, MASK, noise=KNOWN))


@pytest.mark.parametrize(
    ("kspace", "mask", "maps", "message"),
    [
        (torch.zeros(64, 64, dtype=torch.complex64), MASK, None, "kspace: expected complex"),
        (torch.zeros(6, 64, 64), MASK, None, "kspace: expected complex"),
        (torch.zeros(0, 64, 64, dtype=torch.complex64), MASK, None, "is empty"),
        (phantom(6).kspace, MASK[:9], None, "mask: expected bool"),
        (phantom(6).kspace, MASK.float(), None, "mask: expected bool"),
        (phantom(6).kspace, ~FULL, None, "centre of k-space was not acquired"),
        (phantom(6).kspace, FULL, phantom(5).maps, "maps: expected complex"),
        (phantom(6).kspace, FULL, phantom(6).maps * torch.nan, "maps: hold NaN"),
    ],
)
def test_what_does_not_fit_is_refused(kspace, mask, maps, message):
    with pytest.raises(InputError, match=message):
        prepare_slice(kspace, mask, noise=None, maps=maps)
