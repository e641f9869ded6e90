"""ISMRMRD files with known content, written with the ismrmrd package."""

import numpy as np
import pytest

ismrmrd = pytest.importorskip("ismrmrd", reason="the ismrmrd package writes the files of these tests")

AXES = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1)}


def line(samples, ky=0, *, flags=(), center=None, coordinates=(), **fields):
    """One readout of ``samples`` (coil, n); flags by the name of ismrmrd's constant."""
    one = ismrmrd.Acquisition.from_array(np.ascontiguousarray(samples, np.complex64))
    one.center_sample = samples.shape[1] // 2 if center is None else center
    one.idx.kspace_encode_step_1 = ky
    for name in flags:
        one.setFlag(getattr(ismrmrd, f"ACQ_{name}"))
    for name, value in dict(coordinates).items():
        getattr(one, name)[:] = value
    for name, value in fields.items():
        if name in ("kspace_encode_step_2", "slice", "contrast", "repetition", "set", "phase", "average", "segment"):
            setattr(one.idx, name, value)
        else:
            setattr(one, name, value)
    return one


def lines(kspace, columns=None, offset=0, **fields):
    """Readouts of ``kspace`` (coil, y, x), one a column; ``kspace_encode_step_1`` is the column less ``offset``."""
    columns = range(kspace.shape[-1]) if columns is None else columns
    return [line(kspace[:, :, column], column - offset, **fields) for column in columns]


def header(matrix, recon=None, fov=None, *, center=None, maximum=None, minimum=0, partitions=None, extra="", **more):
    """XML of one Cartesian encoding; fields of view of 2 x 3 x 4 mm voxels unless given."""
    recon = recon or matrix
    fov = fov or tuple(n * side for n, side in zip(recon, (2.0, 3.0, 4.0), strict=True))
    whole = more.get("encoded_fov") or tuple(f * n / m for f, n, m in zip(fov, matrix, recon, strict=True))
    center = matrix[1] // 2 if center is None else center
    maximum = matrix[1] - 1 if maximum is None else maximum

    def space(name, size, extent):
        sizes = "".join(f"<{a}>{n}</{a}>" for a, n in zip("xyz", size, strict=True))
        sides = "".join(f"<{a}>{n}</{a}>" for a, n in zip("xyz", extent, strict=True))
        return f"<{name}><matrixSize>{sizes}</matrixSize><fieldOfView_mm>{sides}</fieldOfView_mm></{name}>"

    def limits(step, low, high, middle):
        name = f"kspace_encoding_step_{step}"
        return f"<{name}><minimum>{low}</minimum><maximum>{high}</maximum><center>{middle}</center></{name}>"

    ends = limits(1, minimum, maximum, center)
    if matrix[2] > 1:
        ends += limits(2, *(partitions or (0, matrix[2] - 1, matrix[2] // 2)))
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">'
        f"{more.get('before', '')}"
        "<experimentalConditions><H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions>"
        f"<encoding>{space('encodedSpace', matrix, whole)}{space('reconSpace', recon, fov)}"
        f"<encodingLimits>{ends}</encodingLimits><trajectory>{more.get('trajectory', 'cartesian')}</trajectory>"
        f"</encoding>{extra}</ismrmrdHeader>"
    )


def write(path, text, readouts):
    with ismrmrd.Dataset(str(path), "dataset", mode="w") as file:
        if text is not None:
            file.write_xml_header(text)
        for one in readouts:
            file.append_acquisition(one)
    return path
