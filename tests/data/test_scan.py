"""The scan record checks shapes and types and nothing else."""

import numpy as np
import pytest

from rsdmri.data.scan import Geometry, Scan


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


def geometry(**replace):
    given = {
        "spacing_mm": (1.0, 2.0),
        "thickness_mm": 5.0,
        "y_direction": (0.0, 1.0, 0.0),
        "x_direction": (1.0, 0.0, 0.0),
        "centres": ((0.0, 0.0, 0.0), (0.0, 0.0, 6.0)),
    }
    return Geometry(**(given | replace))


def test_geometry_of_every_slice():
    assert Scan(**arguments(geometry=geometry())).geometry.slice_direction == (0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="geometry: 1 slice centres for 2 slices"):
        Scan(**arguments(geometry=geometry(centres=((0.0, 0.0, 0.0),))))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("spacing_mm", (0.0, 1.0), "positive millimetres"),
        ("thickness_mm", float("nan"), "positive millimetres"),
        ("y_direction", (1.0, 0.0, 0.0), "orthonormal"),
        ("x_direction", (2.0, 0.0, 0.0), "orthonormal"),
        ("centres", (), "finite position"),
        ("centres", ((0.0, 0.0, float("inf")),), "finite position"),
    ],
)
def test_geometry_that_cannot_be_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        geometry(**{field: value})
