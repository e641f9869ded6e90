import pytest
import torch
from phantoms import phantom, subspace_error

from rsdmri.errors import InputError
from rsdmri.physics.coils import coverage, espirit_maps
from rsdmri.physics.fourier import rss
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
