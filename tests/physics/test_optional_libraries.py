"""What needs a library that is not installed says so in one line."""

import sys

import pytest
import torch

from rsdmri.errors import InputError
from rsdmri.physics.adapters import to_deepinv, to_mrpro
from rsdmri.physics.linop import Identity
from rsdmri.physics.noncartesian import density_compensation, noncartesian_sense

MAPS, TRAJECTORY = torch.ones(3, 6, 8, dtype=torch.complex64), torch.zeros(9, 2)


@pytest.mark.parametrize(
    ("library", "extra", "use"),
    [
        ("finufft", "noncartesian", lambda: noncartesian_sense(MAPS, TRAJECTORY)),
        ("finufft", "noncartesian", lambda: density_compensation(TRAJECTORY, (6, 8))),
        ("deepinv.physics", "deepinv", lambda: to_deepinv(Identity((6, 8)))),
        ("mrpro.operators", "mrpro", lambda: to_mrpro(Identity((6, 8)), coils=False)),
    ],
)
def test_a_missing_library_is_one_line_with_the_cure(monkeypatch, library, extra, use):
    for name in (library, library.partition(".")[0]):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=rf"cannot be imported .*python -m pip install 'rsdmri\[{extra}\]'") as caught:
        use()
    assert "\n" not in str(caught.value)
