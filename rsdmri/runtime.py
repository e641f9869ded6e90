"""Where and how computations run: device, threads, random streams.

The only module that names a device. Randomness always comes from an explicit generator keyed by words and numbers,
so that the same key gives the same stream on every machine and in every process.
"""

import hashlib
import os
from typing import TYPE_CHECKING

from rsdmri.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Spinning OpenMP threads make two threads slower than one on a busy machine; read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def select_device(name: str = "auto") -> "torch.device":
    """Return the device called ``name``; ``auto`` takes CUDA when present, otherwise the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(f"--device {name}: not available here; use auto or cpu") from None
    return device


def prepare_process(threads: int | None = None) -> None:
    """Set numerical defaults of this process: subnormals flushed to zero, optional thread count.

    Zero-initialised layers make subnormal gradients, which slow early training about five times on a CPU.
    """
    import torch

    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)


def seed_of(*key: object) -> int:
    """63-bit seed from the sha256 of ``key`` (Python's ``hash`` differs between processes)."""
    digest = hashlib.sha256("\x1f".join(map(str, key)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def torch_generator(*key: object, device: "torch.device | str | None" = None) -> "torch.Generator":
    """Independent ``torch.Generator`` for ``key``."""
    import torch

    return torch.Generator(device=device or "cpu").manual_seed(seed_of(*key))


def numpy_generator(*key: object) -> "np.random.Generator":
    """Independent ``numpy.random.Generator`` for ``key``."""
    import numpy as np

    return np.random.default_rng(seed_of(*key))
