import dataclasses
import math

import pytest
import torch
from phantoms import phantom, subspace_error

from rsdmri.errors import InputError
from rsdmri.physics.coils import coverage, espirit_maps
from rsdmri.physics.fourier import center_crop, fft2c, ifft2c, rss
from rsdmri.runtime import torch_generator


def centre(n, size=64):
    start = (size - n + 1) // 2
    return slice(None), slice(start, start + n)


def noisy(head, level, key=0):
    generator = torch_generator("coil noise", key)
    return head.kspace + level * torch.randn(head.kspace.shape, dtype=torch.complex64, generator=generator)


@pytest.mark.parametrize(("lines", "most"), [(24, 0.01), (16, 0.01), (12, 0.02), (8, 0.03), (6, 0.05)])
def test_known_maps_are_found(lines, most):
    head = phantom()
    maps = espirit_maps(noisy(head, 0.02), centre(lines), noise_std=0.02)
    found = head.inside & (rss(maps) > 0)
    assert float(found.sum()) >= 0.97 * float(head.inside.sum())
    assert subspace_error(maps, head.maps, found) < most


@pytest.mark.parametrize("size", [(64, 64), (57, 49), (40, 66)], ids=str)
def test_maps_have_unit_length_in_the_object_and_vanish_elsewhere(size):
    head = phantom(5, size)
    maps = espirit_maps(head.kspace, centre(16, size[1]))
    assert maps.shape == head.kspace.shape
    assert maps.dtype == torch.complex64
    length = rss(maps)
    kept = length > 0
    torch.testing.assert_close(length[kept], torch.ones_like(length[kept]))
    assert subspace_error(maps, head.maps, head.inside & kept) < 0.02
    assert coverage(maps) == pytest.approx(float(kept.double().mean()))
    assert 0.3 < coverage(maps) < 0.95


def test_same_as_sigpy_on_the_same_data():
    from sigpy.mri.app import EspiritCalib

    head = phantom(6, (48, 48))
    kspace = noisy(head, 0.01)
    expected = torch.from_numpy(
        EspiritCalib(kspace.numpy(), calib_width=16, crop=0.9, max_iter=30, show_pbar=False).run()
    )
    maps = espirit_maps(kspace, (slice(16, 32), slice(16, 32)))
    both = head.inside & (rss(maps) > 0) & (rss(expected) > 0)
    assert float(both.sum()) > 0.95 * float(head.inside.sum())
    assert subspace_error(maps, expected, both) < 0.02
    theirs = subspace_error(expected, head.maps, both)
    assert subspace_error(maps, head.maps, both) < 1.2 * theirs + 1e-3


def test_only_the_acs_is_read_and_at_most_its_centre():
    head = phantom(4)
    acs = centre(12)
    kspace = torch.full_like(head.kspace, torch.nan)
    kspace[..., 20:44, acs[1]] = head.kspace[..., 20:44, acs[1]]
    assert torch.equal(espirit_maps(kspace, acs), espirit_maps(head.kspace, acs))


def test_maps_are_deterministic_and_phases_follow_one_virtual_coil():
    head = phantom(4)
    maps = espirit_maps(head.kspace, centre(16))
    assert torch.equal(maps, espirit_maps(head.kspace, centre(16)))
    turned = espirit_maps(head.kspace * torch.polar(torch.tensor(1.0), torch.tensor(2.1)), centre(16))
    torch.testing.assert_close(turned, maps, atol=2e-4, rtol=0)
    kept = rss(maps) > 0
    smooth = (maps[:, 1:] * maps[:, :-1].conj()).sum(0)[kept[1:] & kept[:-1]]
    assert float(smooth.real.min()) > 0.8  # neighbouring pixels agree, phase included


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_maps_do_not_depend_on_the_scale(factor):
    head = phantom(4)
    maps = espirit_maps(head.kspace, centre(16))
    torch.testing.assert_close(espirit_maps(head.kspace * factor, centre(16)), maps, atol=2e-4, rtol=0)


def test_order_of_coils_does_not_matter():
    head = phantom(5)
    order = torch.tensor([3, 0, 4, 2, 1])
    maps = espirit_maps(head.kspace, centre(16))
    permuted = espirit_maps(head.kspace[order], centre(16))
    kept = (rss(maps) > 0) & (rss(permuted) > 0)
    assert subspace_error(permuted, maps[order], kept) < 1e-3


def test_batch_items_are_the_same_alone():
    kspace = torch.stack([phantom(4, seed=seed).kspace for seed in range(2)])
    batch = espirit_maps(kspace, centre(12))
    for item, maps in zip(kspace, batch, strict=True):
        assert torch.equal(espirit_maps(item, centre(12)), maps)


def test_double_precision():
    head = phantom(4)
    single, double = (espirit_maps(head.kspace.to(dtype), centre(16)) for dtype in (torch.complex64, torch.complex128))
    kept = (rss(single) > 0) & (rss(double) > 0)
    assert subspace_error(single.to(torch.complex128), double, kept) < 2e-3


def test_one_coil_and_empty_data():
    assert torch.equal(espirit_maps(phantom(1).kspace, centre(2)), torch.ones(1, 64, 64, dtype=torch.complex64))
    silent = espirit_maps(torch.zeros(3, 32, 32, dtype=torch.complex64), centre(8, 32))
    assert bool((silent == 0).all())


def test_a_dead_coil_gets_a_zero_map():
    head = phantom(5)
    kspace = head.kspace.clone()
    kspace[3] = 0
    maps = espirit_maps(kspace, centre(12))
    assert bool(torch.isfinite(maps.abs()).all())
    assert float(maps[3].abs().max()) < 1e-3


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_a_small_acs_is_refused_with_its_size_and_the_cure(lines):
    with pytest.raises(InputError, match=rf"ACS of {lines} phase-encode lines: .*at least 4.*center fraction"):
        espirit_maps(phantom(3).kspace, centre(lines))


def test_what_is_no_kspace_is_refused():
    with pytest.raises(ValueError, match="kspace"):
        espirit_maps(torch.zeros(3, 8, 8), centre(8, 8))
    with pytest.raises(InputError, match="NaN"):
        espirit_maps(torch.full((3, 8, 8), torch.nan, dtype=torch.complex64), centre(8, 8))


def textbook(block, size, kernel, threshold):
    """Eigenvalues and eigenvectors of every pixel by the definition: kernels zero-padded and transformed, then eigh."""
    n_coils = block.shape[0]
    patches = block.unfold(1, kernel, 1).unfold(2, kernel, 1).permute(1, 2, 0, 3, 4).reshape(-1, n_coils * kernel**2)
    _, values, rows = torch.linalg.svd(patches, full_matrices=False)
    kernels = rows[values > threshold * values[0]].reshape(-1, n_coils, kernel, kernel)
    images = torch.fft.fftshift(torch.fft.ifft2(kernels, s=size), dim=(-2, -1)) * math.prod(size)
    vectors = images.permute(2, 3, 1, 0)
    value, vector = torch.linalg.eigh(vectors @ vectors.mH / kernel**2)
    return value.flip(-1), vector.flip(-1)


def test_two_sets_are_the_leading_eigenvectors_of_the_definition():
    kspace = noisy(folded(), 0.01).to(torch.complex128)
    acs = (slice(16, 32), slice(12, 28))
    block = kspace[:, acs[0], acs[1]]
    value, vector = textbook(block, (48, 40), 5, 0.03)
    maps = espirit_maps(kspace, acs, sets=2, kernel=5, threshold=0.03, crop=0.7)
    second = value[..., 1] > 0.7
    assert 0.02 < float(second.double().mean()) < 0.5
    agree = (rss(maps[1]) > 0) == second
    assert float(agree.double().mean()) > 0.995  # but for eigenvalues at the edge
    inside = (rss(maps[1]) > 0) & second
    plane = vector[..., :2]
    for found in maps:
        found = found.movedim(0, -1)[inside]
        outside = found - (plane[inside] @ (plane[inside].mH @ found[..., None]))[..., 0]
        assert float(torch.linalg.vector_norm(outside, dim=-1).median()) < 1e-3
    across = (maps[0].conj() * maps[1]).sum(0)[inside]
    assert float(across.abs().max()) < 1e-6


def folded():
    """A head that is wider than the field of view: its sides lie on one another."""
    head = phantom(6, (48, 80))
    head_image = ifft2c(head.kspace)
    image = head_image[..., 20:60].clone()
    image[..., 20:] += head_image[..., :20]
    image[..., :20] += head_image[..., 60:]
    return dataclasses.replace(head, kspace=fft2c(image))


def unexplained(maps, kspace):
    """Energy of the coil images outside the span of the maps, relative."""
    images = ifft2c(kspace)
    image = (maps.conj() * images).sum(-3)
    left = images - (maps * image.unsqueeze(-3)).sum(0)
    return float(left.abs().square().sum() / images.abs().square().sum())


def test_a_second_set_explains_what_lies_on_one_another():
    wide = folded()
    acs = (slice(12, 36), slice(8, 32))
    one = espirit_maps(wide.kspace, acs, sets=1)
    two = espirit_maps(wide.kspace, acs, sets=2)
    assert one.shape == (1, 6, 48, 40)
    assert two.shape == (2, 6, 48, 40)
    assert unexplained(two, wide.kspace) < 0.1 * unexplained(one, wide.kspace)
    assert unexplained(two, wide.kspace) < 0.003


def test_a_second_set_is_empty_where_the_first_says_all():
    head = phantom()
    two = espirit_maps(noisy(head, 0.02), centre(24), sets=2, noise_std=0.02)
    assert float((rss(two[1])[head.inside] > 0).double().mean()) < 0.01
    assert subspace_error(two[0], head.maps, head.inside & (rss(two[0]) > 0)) < 0.01


def test_soft_maps_fall_off_smoothly_and_have_the_same_direction():
    head = phantom()
    hard = espirit_maps(head.kspace, centre(24), crop=0.9)
    soft = espirit_maps(head.kspace, centre(24), crop=0.9, soft=True)
    length = rss(soft)
    between = (length > 0.01) & (length < 0.99)
    assert 0.01 < float(between.double().mean()) < 0.3
    assert float(length.max()) <= 1 + 1e-5
    kept = (rss(hard) > 0) & (length > 0)
    assert subspace_error(soft, hard, kept) < 1e-3
    assert float(length[rss(hard) > 0].min()) >= 0.5  # half at the crop
    assert float(length[rss(hard) == 0].max()) <= 0.5


def test_explicit_settings_are_taken_exactly():
    head = phantom()
    sizes = [coverage(espirit_maps(head.kspace, centre(24), crop=crop)) for crop in (0.5, 0.8, 0.95, 0.999)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 4
    kernels = [espirit_maps(head.kspace, centre(24), kernel=kernel) for kernel in (4, 6, 8)]
    assert not torch.equal(kernels[0], kernels[1])
    for maps in kernels:
        assert subspace_error(maps, head.maps, head.inside & (rss(maps) > 0)) < 0.02
    strict = espirit_maps(head.kspace, centre(24), threshold=0.3, crop=0.5)
    assert subspace_error(strict, head.maps, head.inside & (rss(strict) > 0)) > 0.01  # too few kernels


def test_a_separate_calibration_scan_gives_maps_of_the_scans_size():
    head = phantom(6, (64, 58))
    small = center_crop(head.kspace, (24, 20)) * 3.0
    maps = espirit_maps(small, (slice(None), slice(None)), shape=(64, 58))
    assert maps.shape == head.kspace.shape
    assert subspace_error(maps, head.maps, head.inside & (rss(maps) > 0)) < 0.01
    own = espirit_maps(head.kspace, (slice(20, 44), slice(19, 39)))
    torch.testing.assert_close(maps, own, rtol=0, atol=2e-4)
    with pytest.raises(ValueError, match="do not hold the ACS of 20"):
        espirit_maps(small, (slice(None), slice(None)), shape=(64, 12))


@pytest.mark.parametrize(("kernel", "lines"), [(6, 8), (1, 24), (13, 24)])
def test_a_kernel_that_the_acs_cannot_hold_is_refused(kernel, lines):
    with pytest.raises(
        InputError, match=rf"too small for a kernel of {kernel}; use a kernel of 2 to {lines // 2} or a"
    ):
        espirit_maps(phantom(3).kspace, centre(lines), kernel=kernel)


def test_sets_of_one_coil_and_what_is_no_number_of_sets():
    assert espirit_maps(phantom(1).kspace, centre(4), sets=2).shape == (2, 1, 64, 64)
    with pytest.raises(ValueError, match="sets: expected 1 or 2, got 3"):
        espirit_maps(phantom(3).kspace, centre(8), sets=3)
