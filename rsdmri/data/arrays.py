"""K-space from the arrays of NumPy (.npy, .npz), MATLAB (5 to 7.3) and plain HDF5 files.

Such files do not say what their axes are. They are named by the user, in the order of the program that wrote the file
("y x coil slice"), or guessed, and a guess is a warning of the scan: of the orders (slice, coil, y, x) and
(y, x, coil, slice), the one with the larger image; where they are equal, the second for MATLAB, the first for others.
"""

from collections.abc import Sequence

import numpy as np

from rsdmri.data.array_files import Variable, open_arrays
from rsdmri.data.hdf5 import PathLike, clean
from rsdmri.data.kspace import cartesian_scan, check_sizes, volume_slices
from rsdmri.data.plain_files import file_errors
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.files import safe_stem

AXES = ("y", "x", "z", "coil", "slice", "frame")
_FIRST = {3: ("coil", "y", "x"), 4: ("slice", "coil", "y", "x"), 5: ("frame", "slice", "coil", "y", "x")}
_LAST = {3: ("y", "x", "coil"), 4: ("y", "x", "coil", "slice"), 5: ("y", "x", "coil", "slice", "frame")}


def read_arrays(
    path: PathLike, *, variable: str | None = None, axes: str | None = None, frame: int | None = None
) -> Scan:
    """Read k-space from an array of a NumPy, MATLAB or HDF5 file.

    Args:
        path: the file; its content says what it is.
        variable: name of the array; None takes the only complex one of 3 to 5 axes.
        axes: names of its axes, of `AXES`, in the order of the program that wrote it; z is the second phase encode of
            a volume. None guesses.
        frame: which time frame, echo or repetition of the axis ``frame``, from 0; None takes the first, with a warning.

    Raises:
        InputError: a damaged or hostile file, no such array, axes that do not fit, implausible sizes, NaN or infinite
            samples, nothing acquired.
    """
    with file_errors(path) as where, open_arrays(path) as found:
        chosen = _choose(where, found, variable)
        names = _named_axes(where, chosen, axes) if axes is not None else _guessed_axes(where, chosen)
        return read_variable(where, chosen, names, frame, name=safe_stem(path), guessed=axes is None)


def read_variable(
    where: str,
    variable: Variable,
    names: Sequence[str],
    frame: int | None,
    *,
    name: str,
    guessed: bool = False,
    notes: tuple[str, ...] = (),
) -> Scan:
    """The scan ``name`` in an array of an open file whose axes are ``names``."""
    sizes = dict(zip(names, variable.shape, strict=True))
    if "slice" in sizes and "z" in sizes:
        raise InputError(f"{where}: axes 'slice' and 'z' exclude each other; z is the partition of a volume")
    try:
        check_sizes(where, sizes.get("slice", sizes.get("z", 1)), sizes.get("coil", 1), sizes["y"], sizes["x"])
    except InputError as error:
        raise InputError(f"{error}{'; its axes were guessed, name them with --axes' if guessed else ''}") from None
    selection: list[int | slice] = [slice(None)] * len(names)
    if "frame" in sizes:
        selection[names.index("frame")], told = chosen_frame(where, sizes["frame"], frame)
        notes += told
    elif frame is not None:
        raise InputError(f"{where}: --frame {frame}: '{clean(variable.name, 30)}' has no axis of frames; leave it out")
    left = [one for one in names if one != "frame"]
    values = np.asarray(variable.read(tuple(selection)))
    order = ["coil", "y", "z", "x"] if "z" in left else ["slice", "coil", "y", "x"]
    values = values.transpose([left.index(one) for one in order if one in left])
    values = np.expand_dims(values, [k for k, one in enumerate(order) if one not in left])
    if guessed and _rows_are_skipped(values):
        values = values.swapaxes(-1, -2)
        swap = {"y": "x", "x": "y"}
        names = [swap.get(one, one) for one in names]
    if guessed:
        words = f"{' '.join(names)} of '{clean(variable.name, 30)}' {variable.shape}"
        notes = (f"axes guessed: {words}; if they are others, name them with --axes", *notes)
    if "z" in left:
        values, note = volume_slices(values)
        notes += (note,)
    return cartesian_scan(where, name, values, warnings=notes)


def chosen_frame(where: str, count: int, frame: int | None, what: str = "frame") -> tuple[int, tuple[str, ...]]:
    """Which of ``count`` frames to read, and a warning that names the rest where none was asked for."""
    if frame is not None and not 0 <= frame < count:
        raise InputError(f"{where}: --frame {frame}: expected {what} 0 to {count - 1}")
    if frame is None and count > 1:
        return 0, (f"{what} 0 of {count} read; the others with --frame 1 to {count - 1}",)
    return frame or 0, ()


def _choose(where: str, found: Sequence[Variable], name: str | None) -> Variable:
    """The array called ``name``, or the only complex one of 3 to 5 axes."""
    listed = "; ".join(map(str, found[:8])) + ("; ..." if len(found) > 8 else "") if found else "no arrays"
    if name is not None:
        chosen = next((one for one in found if one.name == name), None)
        if chosen is None:
            raise InputError(f"{where}: no array '{clean(name, 30)}'; it holds {listed}")
        if not chosen.is_complex:
            raise InputError(f"{where}: {chosen} is not complex; store k-space as complex64")
        return chosen
    fitting = [one for one in found if one.is_complex and len(one.shape) in _FIRST]
    if len(fitting) > 1:
        raise InputError(f"{where}: several arrays could be k-space; say which one with --variable NAME: {listed}")
    if not fitting:
        raise InputError(
            f"{where}: no complex array of 3 to 5 axes; it holds {listed}; for others say --variable, --axes"
        )
    return fitting[0]


def _named_axes(where: str, variable: Variable, axes: str) -> list[str]:
    names = axes.replace(",", " ").split()
    odd = [name for name in names if name not in AXES]
    if odd:
        raise InputError(f"--axes: unknown axis '{clean(odd[0], 30)}'; name them of {', '.join(AXES)}")
    if len(set(names)) != len(names) or not {"y", "x"} <= set(names):
        raise InputError(f"--axes {clean(axes)}: name each axis once, y and x among them")
    if len(names) != len(variable.shape):
        raise InputError(f"{where}: --axes names {len(names)} axes, {variable} has {len(variable.shape)}")
    return names


def _guessed_axes(where: str, variable: Variable) -> list[str]:
    """Axes in the order with the larger image."""
    shape = variable.shape
    if len(shape) not in _FIRST:
        raise InputError(f"{where}: {variable} has {len(shape)} axes; name them with --axes, such as 'y x coil slice'")
    front, back = shape[0] * shape[1], shape[-2] * shape[-1]
    first = back >= front if not variable.matlab else back > front
    return list((_FIRST if first else _LAST)[len(shape)])


@np.errstate(invalid="ignore")  # signalling NaN are compared
def _rows_are_skipped(values: np.ndarray) -> bool:
    """Whether whole lines along x are empty between others while no line along y is: y is the phase encode then."""
    acquired = (values != 0).any((0, 1))
    rows, columns = acquired.any(1), acquired.any(0)
    inner = np.flatnonzero(rows)
    return bool(columns.all() and inner.size and np.ptp(inner) + 1 > inner.size)
