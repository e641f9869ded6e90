"""The process that parses untrusted files: a request on standard input, plain arrays on standard output.

``python -m rsdmri.data.child`` is started by `rsdmri.data.sandbox` and by nothing else. The request is JSON; the answer
is 8 bytes with the length of a JSON head, the head, and the bytes of the arrays that it lists. No object is passed.
"""

import json
import os
import struct
import sys
from collections.abc import Callable
from typing import Any

from rsdmri.data.confine import leave_network, limit_resources, read_only
from rsdmri.errors import InputError
from rsdmri.privacy import SECRET_VARIABLE


def reader(name: str) -> Callable[..., Any]:
    """The function that reads files of the kind ``name``: called with a path, gives a `Scan`, an array or a dict.

    The only place that says what parses a user's files. Raises `ValueError` for any other name.
    """
    match name:
        case "scan":
            from rsdmri.data.formats import read_any

            return read_any
        case "maps":
            from rsdmri.data.maps import read_maps

            return read_maps
        case "brief":
            from rsdmri.data.brief import brief

            return brief
        case "schema":
            from rsdmri.data.schema import examine

            return examine
    raise ValueError(f"no reader is called {name!r}")


def main() -> None:
    """Answer one request."""
    request = json.loads(sys.stdin.buffer.read())
    answer = _keep_output_clean()
    os.environ[SECRET_VARIABLE] = "of the child"  # the parent names the scan: the user's secret stays there
    limit_resources(request["memory"], request["cpu_seconds"])
    leave_network()
    arrays: dict[str, Any] = {}
    try:
        read = reader(request["reader"])
        read_only(request["paths"])
        options = {key: tuple(value) if isinstance(value, list) else value for key, value in request["options"].items()}
        head, arrays = _packed(read(request["path"], **options))
    except InputError as error:
        head = {"refused": str(error)}
    except MemoryError:
        head = {"failed": "MemoryError"}
    except Exception as error:  # whatever a damaged file provokes: the parent says it in one line
        head = {"failed": type(error).__name__}
    head["arrays"] = [[key, str(array.dtype), list(array.shape)] for key, array in arrays.items()]
    text = json.dumps(head, default=lambda number: number.item()).encode()  # NumPy's numbers
    with os.fdopen(answer, "wb", buffering=0) as stream:
        _write_all(stream, struct.pack("<Q", len(text)) + text)
        for array in arrays.values():
            _write_all(stream, memoryview(array).cast("B"))


def _keep_output_clean() -> int:
    """A descriptor of the standard output; what libraries print goes nowhere, it could hold personal data."""
    answer = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return answer


def _packed(result: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and C-ordered arrays of what a reader returned."""
    import numpy as np

    from rsdmri.data.scan import Scan
    from rsdmri.data.scan_parts import scan_to_parts

    if isinstance(result, Scan):
        arrays, meta = scan_to_parts(result)
        return {"kind": "scan", "meta": meta}, {key: np.ascontiguousarray(array) for key, array in arrays.items()}
    if isinstance(result, np.ndarray):
        return {"kind": "array", "meta": {}}, {"array": np.ascontiguousarray(result)}
    return {"kind": "facts", "meta": result}, {}


def _write_all(stream: Any, data: Any) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]


if __name__ == "__main__":
    main()
