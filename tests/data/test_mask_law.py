import pytest
import torch

from rsdmri.data.dataset import MaskLaw
from rsdmri.errors import InputError
from rsdmri.physics import masks


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
