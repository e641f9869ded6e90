import re
from dataclasses import replace

import pytest
import torch
from phantoms import noise, phantom

from rsdmri.physics.coils import espirit_maps
from rsdmri.physics.fourier import fft2c
from rsdmri.physics.map_quality import map_quality
from rsdmri.runtime import torch_generator

WHITE = torch.eye(8, dtype=torch.complex128)
LEVEL = 0.02


def centre(n, size=64):
    start = (size - n + 1) // 2
    return slice(None), slice(start, start + n)


def data(level=LEVEL, size=(64, 64), key=0):
    return phantom(8, size).kspace + level * noise(WHITE, size, key=key)


def judged(maps, lines=16, level=LEVEL):
    return map_quality(maps, data(level), centre(lines), sigma_y=level)


def espirit(lines=16, level=LEVEL):
    return espirit_maps(data(level), centre(lines), noise_std=level)


@pytest.mark.parametrize("lines", [6, 8, 12, 16, 24, 64])
@pytest.mark.parametrize("level", [0.0, 0.02, 0.1])
def test_maps_of_the_scan_itself_are_good(lines, level):
    quality = judged(espirit(lines, level), lines, level)
    assert quality.grade == "good", quality
    assert quality.verdict.startswith("good: the maps cover the object")
    assert quality.missing == quality.holes == 0
    assert quality.unit_error[1] <= quality.unit_error[0] < 1e-5
    assert quality.acs == min(lines, 64)


@pytest.mark.parametrize("size", [(57, 49), (40, 66)], ids=str)
def test_odd_and_uneven_sizes(size):
    kspace, acs = data(size=size), centre(16, size[1])
    assert map_quality(espirit_maps(kspace, acs, noise_std=LEVEL), kspace, acs, sigma_y=LEVEL).grade == "good"


@pytest.mark.parametrize("lines", [16, 24, 64])
def test_true_maps_leave_what_noise_alone_leaves(lines):
    """Noise with much of the energy: the count of its energy must be right, not only small."""
    quality = judged(phantom(8).maps, lines, level=0.1)
    assert quality.residual_noise == pytest.approx(1, abs=0.06)
    assert quality.coverage == 1


def swapped(maps):
    return maps[[1, 0, *range(2, 8)]]


def hole(maps, side=6):
    maps = maps.clone()
    maps[:, 30 : 30 + side, 30 : 30 + side] = 0
    return maps


def other_object(maps):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    disc = (y / 0.4).square() + ((x - 0.2) / 0.4).square() < 1
    kspace = fft2c(phantom(8).maps * disc) + LEVEL * noise(WHITE, (64, 64), key=3)
    return espirit_maps(kspace, centre(16), noise_std=LEVEL)


DAMAGE = {
    "two coils swapped": (swapped, "bad", "coil order"),
    "coils reversed": (lambda maps: maps.flip(0), "bad", "coil order"),
    "mirrored": (lambda maps: maps.flip(-1), "bad", "orientation"),
    "conjugate": (lambda maps: maps.conj().resolve_conj(), "bad", "orientation"),
    "another object": (other_object, "bad", r"% of the object has no map \(\d holes"),
    "hole of 6 pixels": (
        hole,
        "suspicious",
        r"1\.9 % of the object has no map \(1 holes\); enlarge the ACS or lower crop",
    ),
    "hole of 3 pixels": (lambda maps: hole(maps, 3), "suspicious", r"0\.5 % of the object has no map"),
    "shifted by 2": (lambda maps: maps.roll(2, -1), "suspicious", "shifted"),
    "shifted by 4": (lambda maps: maps.roll(4, -1), "suspicious", "shifted"),
    "shifted by 12": (lambda maps: maps.roll(12, -1), "bad", "unexplained"),
    "not normalised": (lambda maps: 1.1 * maps, "suspicious", "normalise"),
    "nothing": (torch.zeros_like, "bad", "100.0 % of the object has no map"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_caught(name):
    damage, grade, words = DAMAGE[name]
    quality = judged(damage(espirit()))
    assert quality.grade == grade, quality
    assert re.search(words, quality.verdict), quality.verdict


def test_rough_maps_are_caught():
    maps = espirit()
    support = (maps != 0).any(0)
    turned = maps + 0.05 * noise(WHITE, (64, 64), key="rough") * support
    quality = judged(turned / torch.linalg.vector_norm(turned, dim=0).clamp(min=1e-9))
    assert quality.roughness > 3 * judged(maps).roughness
    assert quality.grade != "good"


@pytest.mark.parametrize("width", [48, 40, 32])
def test_an_object_larger_than_the_field_of_view_needs_two_sets(width):
    head = phantom(8)
    images, sources = head.maps * head.image, [torch.zeros(8, 64, width, dtype=torch.complex64) for _ in range(2)]
    folded = torch.zeros(8, 64, width, dtype=torch.complex64)
    for column in range(64):
        place = (column - (64 - width) // 2) % width
        folded[..., place] += images[..., column]
        inside = 0 <= column - (64 - width) // 2 < width
        sources[0 if inside else 1][..., place] = head.maps[..., column]
    kspace, acs = fft2c(folded) + LEVEL * noise(WHITE, (64, width), key=4), centre(24, width)
    single = map_quality(espirit_maps(kspace, acs, noise_std=LEVEL), kspace, acs, sigma_y=LEVEL)
    assert single.grade == "suspicious", single
    assert "larger than the field of view" in single.verdict
    # sources[1] jumps where the far sides meet: what counts is that two sets explain what one cannot
    double = map_quality(torch.stack(sources), kspace, acs, sigma_y=LEVEL)
    assert double.residual < 0.5 * single.residual


def test_a_second_set_that_adds_nothing_changes_nothing():
    maps = espirit()
    one, two = judged(maps), judged(torch.stack([maps, 2j * maps]))
    assert two.residual == pytest.approx(one.residual, abs=1e-7)
    assert two.residual_noise == pytest.approx(one.residual_noise, rel=1e-4)
    empty = judged(torch.stack([maps, torch.zeros_like(maps)]))
    assert empty == one


def test_holes_are_counted():
    maps = espirit()
    for y, x in ((20, 30), (30, 20), (40, 40)):
        maps[:, y : y + 4, x : x + 4] = 0
    quality = judged(maps)
    assert quality.holes == 3
    assert quality.missing == pytest.approx(48 / quality.object)
    assert quality.coverage == pytest.approx(float((maps != 0).any(0).double().mean()))


def test_figures_by_hand():
    """One bright pixel's worth of two coils at full sampling, without noise: the residual is a sine squared."""
    image = torch.ones(2, 16, 16, dtype=torch.complex64)
    maps = torch.zeros_like(image)
    maps[0] = 1
    quality = map_quality(maps, fft2c(image), (slice(None), slice(None)))
    assert quality.residual == pytest.approx(0.5, abs=1e-6)
    assert (quality.inconsistent, quality.coverage, quality.object) == (1, 1, 256)
    assert quality.residual_noise is None
    assert quality.roughness == 0
    assert map_quality(image / 2**0.5, fft2c(image), (slice(None), slice(None))).residual < 1e-6


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_scale_does_not_matter(factor):
    maps = espirit()
    first = judged(maps)
    second = map_quality(maps, factor * data(), centre(16), sigma_y=factor * LEVEL)
    third = map_quality(factor * maps, data(), centre(16), sigma_y=LEVEL)
    for other in (second, third):
        for name in ("residual", "truncation", "residual_noise", "roughness", "coverage", "missing"):
            assert getattr(other, name) == pytest.approx(getattr(first, name), rel=1e-3, abs=1e-6)
    assert second.verdict == first.verdict


def test_order_of_coils_does_not_matter():
    order = torch.randperm(8, generator=torch_generator("quality order"))
    maps = espirit()
    first, second = judged(maps), map_quality(maps[order], data()[order], centre(16), sigma_y=LEVEL)
    assert second.residual == pytest.approx(first.residual, abs=1e-7)
    assert second.verdict == first.verdict


def test_only_the_acs_is_read():
    kspace, acs = data(), centre(16)
    poisoned = torch.full_like(kspace, torch.nan)
    poisoned[..., acs[1]] = kspace[..., acs[1]]
    maps = espirit()
    assert map_quality(maps, poisoned, acs, sigma_y=LEVEL) == map_quality(maps, kspace, acs, sigma_y=LEVEL)


def test_an_empty_slice_cannot_be_judged():
    quality = map_quality(espirit(), torch.zeros(8, 64, 64, dtype=torch.complex64), centre(16), sigma_y=LEVEL)
    assert quality.grade == "suspicious"
    assert "cannot be judged" in quality.verdict
    assert replace(quality, object=100).grade == "good"


def test_what_does_not_fit_is_refused():
    kspace, maps = data(), espirit()
    for wrong in (maps[:4], maps[0], maps.real, maps[None, None]):
        with pytest.raises(ValueError, match="maps: expected complex"):
            map_quality(wrong, kspace, centre(16))
    with pytest.raises(ValueError, match="is empty"):
        map_quality(maps, kspace, (slice(None), slice(5, 5)))
