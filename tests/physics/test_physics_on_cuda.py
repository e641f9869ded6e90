import pytest
import torch
from phantoms import phantom

from rsdmri.physics import masks, sense
from rsdmri.physics.coils import espirit_maps
from rsdmri.physics.compression import geometric_compression, svd_compression
from rsdmri.physics.map_quality import map_quality
from rsdmri.physics.noise import estimate_covariance, noise_level
from rsdmri.physics.noise_corners import covariance_from_corners
from rsdmri.physics.prepare import prepare_slice
from rsdmri.physics.solve import conjugate_gradient, largest_eigenvalue
from rsdmri.physics.volume import SenseVolume
from rsdmri.runtime import select_device, torch_generator

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


def on_device(x):
    return x.to(select_device("cuda"))


@pytest.mark.parametrize("points", [False, True])
def test_operators_and_solver_agree_with_the_cpu(points):
    generator = torch_generator("cuda", points)
    maps = torch.randn(3, 4, 33, 40, dtype=torch.complex128, generator=generator)
    mask = torch.rand((3, 33, 40) if points else (3, 1, 40), generator=generator) < 0.5
    x = torch.randn(3, 33, 40, dtype=torch.complex128, generator=generator)
    here, there = sense(maps, mask), sense(on_device(maps), on_device(mask))
    for name in ("forward", "normal"):
        torch.testing.assert_close(getattr(there, name)(on_device(x)).cpu(), getattr(here, name)(x))
    solution = conjugate_gradient(there.normal, on_device(x), shift=0.1, iterations=40)
    torch.testing.assert_close(solution.cpu(), conjugate_gradient(here.normal, x, shift=0.1, iterations=40))
    shape, double = (3, 33, 40), torch.complex128
    value = largest_eigenvalue(there.normal, shape, dtype=double, device=select_device("cuda"))
    torch.testing.assert_close(value.cpu(), largest_eigenvalue(here.normal, shape, dtype=double))


def test_map_sets_and_volumes_agree_with_the_cpu():
    generator = torch_generator("cuda sets")
    maps = torch.randn(2, 4, 33, 40, dtype=torch.complex128, generator=generator)
    mask = torch.rand(33, 40, generator=generator) < 0.5
    x = torch.randn(2, 33, 40, dtype=torch.complex128, generator=generator)
    here, there = sense(maps, mask, sets=True), sense(on_device(maps), on_device(mask), sets=True)
    volume, on_cuda = SenseVolume(maps.movedim(0, 1), mask), SenseVolume(on_device(maps.movedim(0, 1)), on_device(mask))
    for name in ("forward", "normal"):
        torch.testing.assert_close(getattr(there, name)(on_device(x)).cpu(), getattr(here, name)(x))
        torch.testing.assert_close(getattr(on_cuda, name)(on_device(x)).cpu(), getattr(volume, name)(x))


def test_two_sets_of_maps_agree_with_the_cpu():
    head = phantom(6)
    acs = (slice(20, 44), slice(20, 44))
    here = espirit_maps(head.kspace, acs, sets=2, soft=True)
    there = espirit_maps(on_device(head.kspace), acs, sets=2, soft=True).cpu()
    torch.testing.assert_close(there[0][:, head.inside], here[0][:, head.inside], atol=5e-3, rtol=0)


def test_masks_do_not_depend_on_the_device():
    mask = torch.rand(4, 1, 64, generator=torch_generator("cuda mask")) < 0.5
    here = masks.further_mask(mask, 5, acs=8, generator=torch_generator(1))
    there = masks.further_mask(on_device(mask), 5, acs=8, generator=torch_generator(1))
    assert torch.equal(here, there.cpu())
    assert masks.acs_block(on_device(mask)) == masks.acs_block(mask)


def test_preparation_agrees_with_the_cpu():
    generator = torch_generator("cuda preparation")
    kspace = phantom(6).kspace + 0.05 * torch.randn(6, 64, 64, dtype=torch.complex64, generator=generator)
    mask = masks.draw_mask("random", 64, acceleration=3, center_fraction=0.2, key=("cuda", 0))
    noise = estimate_covariance(kspace[None], mask)
    again = estimate_covariance(on_device(kspace)[None], on_device(mask))
    torch.testing.assert_close(again.covariance, noise.covariance, rtol=1e-4, atol=1e-7)
    here = prepare_slice(kspace, mask, noise=noise)
    there = prepare_slice(on_device(kspace), on_device(mask), noise=noise)
    assert there.kspace.device == there.maps.device == on_device(mask).device
    assert there.scale == pytest.approx(here.scale, rel=1e-4)
    both = (here.maps.abs().sum(0) > 0) & (there.maps.cpu().abs().sum(0) > 0)
    assert float(both.double().mean()) > 0.99 * float((here.maps.abs().sum(0) > 0).double().mean())
    torch.testing.assert_close(there.maps.cpu()[:, both], here.maps[:, both], atol=5e-3, rtol=0)
    assert espirit_maps(on_device(kspace), masks.acs_block(mask)).device == there.kspace.device


def test_compression_map_quality_and_noise_level_agree_with_the_cpu():
    generator = torch_generator("cuda compression")
    kspace = phantom(6).kspace + 0.05 * torch.randn(6, 64, 64, dtype=torch.complex64, generator=generator)
    mask = masks.draw_mask("random", 64, acceleration=3, center_fraction=0.2, key=("cuda", 0))
    for compress in (svd_compression, geometric_compression):
        here, there = (compress(f(kspace), f(mask), n_virtual=3) for f in (lambda x: x, on_device))
        assert there.energy == pytest.approx(here.energy, rel=1e-5)
        torch.testing.assert_close(there.compress(on_device(kspace)).cpu(), here.compress(kspace), atol=1e-3, rtol=1e-3)
    maps, acs = phantom(6).maps, masks.acs_block(mask)
    here, there = (map_quality(f(maps), f(kspace), acs, sigma_y=0.05) for f in (lambda x: x, on_device))
    assert there.verdict == here.verdict
    level = noise_level(on_device(kspace)[None], on_device(mask)).level
    assert level == pytest.approx(noise_level(kspace[None], mask).level, rel=1e-4)
    corners = covariance_from_corners(on_device(kspace)).covariance
    torch.testing.assert_close(corners, covariance_from_corners(kspace).covariance, rtol=1e-4, atol=1e-7)
