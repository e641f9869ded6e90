import pytest
import torch

from rsdmri.config import load_config
from rsdmri.data.dataset import MaskLaw
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.noise import NoiseEstimate
from rsdmri.physics.prepare import prepare_slice, scale_slice
from rsdmri.runtime import torch_generator
from rsdmri.workflows.plan import open_slices


@pytest.mark.parametrize("width", [32, 67, 320])
@pytest.mark.parametrize("acceleration", [1, 1.5, 2, 4])
@pytest.mark.parametrize("family", ["random", "variable-density", "gaussian"])
def test_independent_lines_can_be_learnt_from(family, acceleration, width):
    MaskLaw(family, acceleration).check(width, 4)


@pytest.mark.parametrize("family", ["equispaced", "equispaced_fraction", "magic", "magic_fraction"])
def test_grids_are_refused_for_training_and_drawn_for_evaluation(family):
    law = MaskLaw(family, 4)
    with pytest.raises(InputError, match=rf"mask family {family}: .*; train with --set acquisition\.mask=random"):
        law.check(128, 4)
    mask = law.draw(128, "file.h5", 0)
    assert 20 < int(mask.sum()) < 50
    assert masks.acs_lines(mask) >= 10


def test_a_drop_among_lines_that_are_always_acquired_is_refused():
    with pytest.raises(InputError, match=r"always acquired.*drop more than"):
        MaskLaw("variable-density", 1.5, further_drop=2).check(128, 4)
    assert MaskLaw("variable-density", 1.5, further_drop=2).drop(128) == 2
    assert MaskLaw(acceleration=4).drop(320) == 16


def test_absent_lines_need_no_probability():
    law = MaskLaw("equispaced_fraction", 4, center_fraction=0.08, further_drop=128)  # nothing but the centre is shown
    never = masks.inclusion("equispaced_fraction", 128, acceleration=4, center_fraction=0.08) == 0
    with pytest.raises(InputError, match=f"{int(never.sum())} of 128 positions are never acquired"):
        law.check(128, 4)
    law.check(128, 4, never)
    with pytest.raises(InputError, match="never acquired"):
        law.check(128, 4, torch.zeros(128, dtype=torch.bool))


def test_grids_are_no_hindrance_where_lines_are_not_learnt_from_others():
    MaskLaw("equispaced_fraction", 4).check(128, 4, ambient=False)
    with pytest.raises(InputError, match=r"leaves 0 centre \(ACS\) lines of 32"):
        MaskLaw("equispaced_fraction", 30).check(32, 4, ambient=False)


@pytest.mark.parametrize("width", [32, 33, 64, 67])
@pytest.mark.parametrize("fraction", [0.125, 0.2])
def test_complete_kspace_gets_the_scale_and_maps_of_undersampled_kspace_with_the_same_centre(width, fraction):
    """Exactly, where no line beside the centre was acquired by chance."""
    complete, quarter = MaskLaw(acceleration=1, center_fraction=fraction), MaskLaw(center_fraction=fraction)
    centre = complete.centre(width)
    drawn = (quarter.draw(width, "a.h5", index) for index in range(1000))
    mask = next(mask for mask in drawn if masks.acs_lines(mask) == centre)
    kspace = torch.randn(3, 20, width, dtype=torch.complex64, generator=torch_generator("kspace", width))
    noise = NoiseEstimate(0.01 * torch.eye(3, dtype=torch.complex128), 0, "known")
    whole = prepare_slice(kspace, complete.draw(width, "a.h5", 0), noise=noise, centre=centre)
    part = prepare_slice(kspace, mask, noise=noise, centre=quarter.centre(width))
    assert whole.scale == part.scale
    assert torch.equal(whole.maps, part.maps)
    assert whole.sigma_y == part.sigma_y
    assert scale_slice(kspace, complete.draw(width, "a.h5", 0), noise=noise, centre=centre)[2] == whole.sigma_y
    free = prepare_slice(kspace, complete.draw(width, "a.h5", 0), noise=noise)
    assert free.scale > 1.2 * whole.scale


def test_the_centre_is_fixed_for_complete_kspace_alone():
    assert MaskLaw(acceleration=1).centre(320) is None
    assert MaskLaw(acceleration=4, center_fraction=0.08).centre(320) is None
    assert MaskLaw(acceleration=1, center_fraction=0.08).centre(320) == 26
    assert MaskLaw(acceleration=1, center_fraction=0.01).centre(32) == 4  # what coil maps need


def test_training_sets_have_the_same_units_at_both_accelerations(simulated, tiny_settings):
    """Up to lines beside the centre that were acquired by chance, and the noise estimated from other samples."""
    settings = [*tiny_settings, "acquisition.center_fraction=0.125"]
    whole, part = (
        open_slices(load_config(None, [*settings, f"acquisition.acceleration={r}"]), simulated) for r in (1, 4)
    )
    sizes = [
        [
            slices[i].scale * slices.noise_of(slices.slices[i].path).covariance.diagonal().real.mean() ** 0.5
            for i in range(len(slices))
        ]
        for slices in (whole, part)
    ]
    ratios = [float(a / b) for a, b in zip(*sizes, strict=True)]
    assert ratios == pytest.approx([1.0] * len(ratios), abs=0.2)
