"""The scan record checks shapes and types and nothing else."""

import numpy as np
import pytest

from rsdmri.data.scan import Scan


def arguments(**replace):
    shape = (2, 3, 4, 5)
    given = {
        "name": "scan",
        "kspace": np.zeros(shape, np.complex64),
        "mask": np.ones((1, 5), bool),
        "absent": np.zeros(5, bool),
        "crop": (4, 4),
        "prospective": False,
    }
    return given | replace


def test_a_full_record():
    scan = Scan(
        **arguments(
            mask=np.ones((4, 5), bool),
            maps=np.zeros((2, 3, 4, 5), np.complex64),
            noise_cov=np.eye(3, dtype=np.complex128),
            target=np.zeros((2, 7, 7), np.float32),
            prospective=True,
        )
    )
    assert repr(scan) == "Scan('scan', 2 slices, 3 coils, 4x5, undersampled)"
    with pytest.raises(AttributeError):
        scan.name = "other"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kspace", np.zeros((3, 4, 5), np.complex64)),
        ("kspace", np.zeros((2, 0, 4, 5), np.complex64)),
        ("kspace", np.zeros((2, 3, 4, 5), np.complex128)),
        ("mask", np.ones(5, bool)),
        ("mask", np.ones((1, 4), bool)),
        ("mask", np.ones((1, 5), np.uint8)),
        ("absent", np.zeros(4, bool)),
        ("maps", np.zeros((3, 4, 5), np.complex64)),
        ("noise_cov", np.eye(2, dtype=np.complex128)),
        ("target", np.zeros((1, 4, 4), np.float32)),
        ("target", np.zeros((2, 4, 4), np.float64)),
        ("crop", (5, 5)),
        ("crop", (0, 4)),
    ],
)
def test_disagreeing_shapes_and_types_are_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: "):
        Scan(**arguments(**{field: value}))
