import numpy as np
import pytest
import torch
from phantoms import noise, phantom

from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.compression import Compression, geometric_compression, svd_compression
from rsdmri.physics.fourier import fft1c, ifft1c, ifft2c, rss
from rsdmri.runtime import torch_generator

FULL = torch.ones(64, dtype=torch.bool)
LINES = masks.draw_mask("random", 64, acceleration=3, center_fraction=0.25, key=("compression", 0))
POINTS = torch.rand(64, 64, generator=torch_generator("compression points")) < 0.4
WHITE = torch.eye(12, dtype=torch.complex128)
BOTH = pytest.mark.parametrize("compress", [svd_compression, geometric_compression], ids=["svd", "geometric"])


def kspace(level=0.02, coils=12, size=(64, 64), key=0):
    return phantom(coils, size).kspace + level * noise(torch.eye(coils, dtype=torch.complex128), size, key=key)


def energy(x):
    return float(x.abs().double().square().sum())


def test_energies_are_those_of_numpy():
    data = kspace()
    acs = masks.acs_block(LINES)
    samples = data[..., acs[1]].flatten(1).numpy().astype(np.complex128)
    left, singular, _ = np.linalg.svd(samples, full_matrices=False)
    share = np.cumsum(singular**2) / np.sum(singular**2)
    for n in (1, 4, 12):
        found = svd_compression(data, LINES, n_virtual=n)
        assert found.energy == pytest.approx(share[n - 1], rel=1e-9)
        projection = found.matrices.mH @ found.matrices
        np.testing.assert_allclose(projection, left[:, :n] @ left[:, :n].conj().T, atol=1e-8)
    wanted = 0.97
    found = svd_compression(data, LINES, energy=wanted)
    assert found.n_virtual == int(np.argmax(share >= wanted)) + 1
    assert svd_compression(data, LINES, energy=1.0).n_virtual == 12


def test_geometric_energies_are_those_of_numpy_at_every_place():
    data = kspace()
    found = geometric_compression(data, LINES, n_virtual=3, window=1)
    hybrid = ifft1c(data[..., masks.acs_block(LINES)[1]], -2).numpy().astype(np.complex128)
    singular = np.linalg.svd(hybrid.transpose(1, 0, 2), compute_uv=False) ** 2
    best = singular[:, :3].sum() / singular.sum()
    assert best - 1e-3 < found.energy <= best + 1e-9
    compressed = fft_of_acs(found, data)
    assert energy(compressed) / float((np.abs(hybrid) ** 2).sum()) == pytest.approx(found.energy, rel=1e-5)


def fft_of_acs(found, data):
    return found.compress(data)[..., masks.acs_block(LINES)[1]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_geometric_keeps_at_least_as_much(n):
    data = kspace()
    plain, along = (f(data, LINES, n_virtual=n) for f in (svd_compression, geometric_compression))
    assert along.energy >= plain.energy
    whole = [energy(found.compress(data)) / energy(data) for found in (plain, along)]  # not only the calibration
    assert whole[1] > whole[0] - 1e-3


def test_fewer_virtual_coils_keep_the_same_energy():
    data = kspace(level=0.005)
    plain, along = (f(data, LINES, energy=0.99) for f in (svd_compression, geometric_compression))
    assert plain.energy >= 0.99
    assert along.energy >= 0.99
    assert along.n_virtual < plain.n_virtual


@BOTH
def test_the_image_changes_by_the_energy_that_is_lost(compress):
    data = kspace(level=0.0)
    found = compress(data, FULL, n_virtual=5)
    images = ifft2c(data), ifft2c(found.compress(data))
    assert 1 - energy(images[1]) / energy(images[0]) == pytest.approx(1 - found.energy, rel=0.02, abs=1e-6)
    before, after = (rss(image) for image in images)
    assert bool((after <= before + 1e-5).all())  # a projection: no pixel gains
    assert float((before - after).square().sum()) <= (1 - found.energy) * energy(before) * 1.02 + 1e-6


@BOTH
def test_all_coils_kept_is_unitary(compress):
    data = kspace()
    found = compress(data, LINES, n_virtual=12)
    assert found.energy == pytest.approx(1)
    torch.testing.assert_close(rss(ifft2c(found.compress(data))), rss(ifft2c(data)), atol=1e-5, rtol=1e-4)


@BOTH
@pytest.mark.parametrize("size", [(64, 64), (33, 40)], ids=str)
def test_noise_stays_white(compress, size):
    found = compress(kspace(size=size), torch.ones(size[1], dtype=torch.bool), n_virtual=4)
    identity = torch.eye(4, dtype=found.matrices.dtype)
    torch.testing.assert_close(found.matrices @ found.matrices.mH, identity.expand(*found.matrices.shape[:-2], 4, 4))
    draws = torch.stack([found.compress(noise(WHITE, size, key=("white", k))) for k in range(8)]).movedim(1, 0)
    flat = draws.flatten(1).to(torch.complex128)
    error = (4 / flat.shape[1]) ** 0.5
    assert float(torch.linalg.matrix_norm(flat @ flat.mH / flat.shape[1] - identity)) / 2 < 1.6 * error
    for axis in (-1, -2):  # and stays independent between neighbouring samples
        lag = (draws * draws.roll(1, axis).conj()).mean()
        assert float(lag.abs()) < 4 / flat.numel() ** 0.5


def test_matrices_are_smooth_along_the_readout():
    data = kspace()
    aligned = geometric_compression(data, LINES, n_virtual=4).matrices
    steps = torch.linalg.matrix_norm(aligned[1:] - aligned[:-1])
    assert float(steps[10:54].max()) < 0.3  # in the object
    assert float(steps.median()) < 0.15
    hybrid = ifft1c(data[..., masks.acs_block(LINES)[1]], -2).movedim(1, 0).to(torch.complex128)
    raw = torch.linalg.eigh(hybrid @ hybrid.mH)[1].flip(-1)[..., :4].mH
    assert float(torch.linalg.matrix_norm(raw[1:] - raw[:-1]).median()) > 3 * float(steps.median())


@BOTH
def test_order_of_coils_does_not_matter(compress):
    order = torch.randperm(12, generator=torch_generator("order"))
    data = kspace()
    first, second = compress(data, LINES, n_virtual=4), compress(data[order], LINES, n_virtual=4)
    assert second.energy == pytest.approx(first.energy, rel=1e-9)
    torch.testing.assert_close(second.compress(data[order]), first.compress(data), atol=1e-4, rtol=1e-3)


@BOTH
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_does_not_matter(compress, factor):
    data = kspace()
    first, second = compress(data, LINES, energy=0.98), compress(factor * data, LINES, energy=0.98)
    assert second.energy == pytest.approx(first.energy, rel=1e-6)
    torch.testing.assert_close(second.compress(data), first.compress(data), atol=1e-4, rtol=1e-3)


@BOTH
def test_items_of_a_batch_do_not_see_each_other(compress):
    batch = torch.stack([kspace(key=k) * (k + 1) for k in range(3)]).view(3, 1, 12, 64, 64)
    together = compress(batch, LINES, n_virtual=4)
    alone = [compress(item, LINES, n_virtual=4) for item in batch]
    torch.testing.assert_close(together.matrices, torch.stack([one.matrices for one in alone]))
    torch.testing.assert_close(
        together.compress(batch), torch.stack([one.compress(item) for one, item in zip(alone, batch, strict=True)])
    )
    assert together.energy == pytest.approx(min(one.energy for one in alone))
    assert together.compress(batch).shape == (3, 1, 4, 64, 64)


@BOTH
def test_unacquired_samples_are_never_read(compress):
    data = kspace()
    clean, poisoned = (compress(x, LINES, n_virtual=4) for x in (data, torch.where(LINES, data, torch.nan)))
    assert torch.equal(clean.matrices, poisoned.matrices)
    compressed = clean.compress(torch.where(LINES, data, 0))
    assert bool((compressed[..., ~LINES] == 0).all())


@BOTH
def test_without_a_centre_all_acquired_samples_count(compress):
    outer = FULL.clone()
    outer[30:34] = False
    assert compress(kspace(), outer, n_virtual=6).energy > 0.5


def test_points_are_compressed_by_one_matrix_only():
    found = svd_compression(kspace(), POINTS, n_virtual=4)
    assert found.energy > 0.8
    with pytest.raises(InputError, match=r"fully sampled readout.*svd_compression"):
        geometric_compression(kspace(), POINTS, n_virtual=4)
    lines = LINES.expand(64, 64)
    assert torch.equal(
        geometric_compression(kspace(), lines, n_virtual=4).matrices,
        geometric_compression(kspace(), LINES, n_virtual=4).matrices,
    )


@BOTH
def test_an_empty_scan_stays_empty(compress):
    silent = torch.zeros(4, 64, 64, dtype=torch.complex64)
    found = compress(silent, LINES, n_virtual=2)
    assert found.energy == 1
    assert bool((found.compress(silent) == 0).all())


@BOTH
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "n_virtual or energy"),
        ({"n_virtual": 3, "energy": 0.9}, "n_virtual or energy"),
        ({"n_virtual": 13}, "expected 1 to 12"),
        ({"n_virtual": 0}, "expected 1 to 12"),
        ({"energy": 0.0}, "fraction above 0"),
        ({"energy": 1.1}, "fraction above 0"),
        ({"energy": float("nan")}, "fraction above 0"),
    ],
)
def test_settings_out_of_range_are_refused(compress, settings, message):
    with pytest.raises(InputError, match=message):
        compress(kspace(), LINES, **settings)


@BOTH
def test_what_does_not_fit_is_refused(compress):
    data = kspace()
    with pytest.raises(ValueError, match="kspace: expected complex"):
        compress(data.real, LINES, n_virtual=2)
    with pytest.raises(ValueError, match="mask: expected bool"):
        compress(data, LINES[:5], n_virtual=2)
    with pytest.raises(InputError, match="no sample was acquired"):
        compress(data, ~FULL, n_virtual=2)
    with pytest.raises(InputError, match="NaN or infinite"):
        compress(data * torch.nan, LINES, n_virtual=2)
    found = compress(data, LINES, n_virtual=2)
    with pytest.raises(ValueError, match="kspace: expected"):
        found.compress(data[:5])
    with pytest.raises(ValueError, match="batch"):
        compress(data[None], LINES, n_virtual=2).compress(data)


def test_geometric_needs_an_odd_window_and_its_own_readout():
    with pytest.raises(InputError, match="window 4"):
        geometric_compression(kspace(), LINES, n_virtual=2, window=4)
    found = geometric_compression(kspace(), LINES, n_virtual=2)
    with pytest.raises(ValueError, match="expected"):
        found.compress(kspace()[..., :32, :])


def test_a_matrix_by_hand():
    found = Compression(torch.tensor([[1, 1j]]) / 2**0.5, 0.5, along_readout=False)
    data = kspace(coils=2)
    torch.testing.assert_close(found.compress(data)[0], (data[0] + 1j * data[1]) / 2**0.5)
    hybrid = Compression(found.matrices.expand(64, 1, 2), 0.5, along_readout=True)
    torch.testing.assert_close(hybrid.compress(data), found.compress(data), atol=1e-5, rtol=1e-4)
    turned = torch.polar(torch.ones(64), torch.arange(64) / 10)[:, None, None] * found.matrices
    expected = fft1c(ifft1c(found.compress(data), -2) * turned[:, 0, :1] / found.matrices[0, 0], -2)
    torch.testing.assert_close(Compression(turned, 0.5, True).compress(data), expected, atol=1e-5, rtol=1e-4)
