"""What a manifest says about a file: shape, contrast and whose it is."""

from typing import Any

from rsdmri.data.fastmri import scan_shape
from rsdmri.data.hdf5 import PathLike, open_hdf5

_LONGEST = 200


def brief(path: PathLike) -> dict[str, Any]:
    """``coils``, ``y``, ``x``, ``acquisition`` and ``patient_id`` of a fastMRI-style file, a dictionary of JSON values.

    ``patient_id`` is the attribute as text, empty without one: only its keyed hash may be written anywhere.
    Raises `InputError` where `scan_shape` does.
    """
    shape = scan_shape(path)
    with open_hdf5(path) as file:
        value = file.attrs.get("patient_id")
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return {
        "coils": shape.coils,
        "y": shape.y,
        "x": shape.x,
        "acquisition": shape.acquisition,
        "patient_id": text.strip()[:_LONGEST] if isinstance(text, str) else "",
    }
