"""Where and how computations run: processes, device, threads, random streams.

The only module that names a device. Randomness always comes from an explicit generator keyed by words and numbers,
so that the same key gives the same stream on every machine and in every process.
"""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rsdmri.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch

# Read when torch is first imported. OpenMP threads that spin while they wait make two threads slower than one on a busy
# machine; threads that sleep at once lose two fifths of a reconstruction to waking. So they spin for some microseconds.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "passive"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def process_rank() -> int:
    """Number of this process among those that torchrun started, from 0; 0 without torchrun."""
    return _from_torchrun("RANK", 0)


def process_count() -> int:
    """How many processes torchrun started, on all nodes; 1 without torchrun."""
    return _from_torchrun("WORLD_SIZE", 1)


def available_cores() -> int:
    """Cores for this process: those it may run on, divided among the processes that torchrun started on this node."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // _from_torchrun("LOCAL_WORLD_SIZE", 1))


def _from_torchrun(name: str, otherwise: int) -> int:
    """The variable ``name`` where torchrun set it: other programs set variables of these names for themselves."""
    return int(os.environ.get(name, otherwise)) if "TORCHELASTIC_RUN_ID" in os.environ else otherwise


def select_device(name: str = "auto") -> "torch.device":
    """Return the device called ``name``; ``auto`` takes CUDA when present, otherwise the CPU.

    Under torchrun the process of rank k on a node takes CUDA device k.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and process_count() > 1:
        name = _own_device(name, _from_torchrun("LOCAL_RANK", 0), torch.cuda.device_count())
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()  # "meta" has no values
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(f"--device {name}: not available here; use auto or cpu") from None
    if device.type == "cuda" and process_count() > 1:
        torch.cuda.set_device(device)  # else each process would hold some memory of the first device
    return device


def _own_device(name: str, local_rank: int, devices: int) -> str:
    """Name of the CUDA device of one of several processes of a node."""
    if name != "cuda":
        raise InputError(f"--device {name}: one device for several processes; use auto, each then takes its own")
    if local_rank >= devices:
        raise InputError(f"more processes than CUDA devices here: use torchrun --nproc-per-node {devices}")
    return f"cuda:{local_rank}"


def communication(device: "torch.device") -> str:
    """Backend of ``torch.distributed`` for tensors on ``device`` and on the CPU."""
    return "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"


def prepare_process(threads: int | None = None) -> None:
    """Set numerical defaults of this process: subnormals flushed to zero, optional thread count.

    Zero-initialised layers make subnormal gradients, which slow early training about five times on a CPU.
    """
    import torch

    torch.set_flush_denormal(True)
    if threads is not None:
        torch.set_num_threads(threads)


def keep_freed_memory() -> bool:
    """Let glibc keep large blocks that are freed, for the next step of a training asks for the same ones.

    Otherwise every step gets fresh pages from the kernel and pays for their zeroing. Returns whether it was done: not
    with another C library, and not where MALLOC_ variables of the environment say what is wanted.
    """
    import ctypes
    import platform

    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    allocator = ctypes.CDLL(None).mallopt
    trim_threshold, mmap_threshold, kept = -1, -3, 1 << 30
    return bool(allocator(trim_threshold, kept)) and bool(allocator(mmap_threshold, kept))


def free_memory(device: "torch.device") -> int | None:
    """Bytes that ``device`` has left, on a CPU within the limit of the control group; None where nothing tells."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return free_host_memory() if device.type == "cpu" else None


def free_host_memory(root: Path = Path("/")) -> int | None:
    """Bytes that the host, and the control group (version 1 or 2) below ``root``, have left; None off Linux."""
    try:
        table = dict(line.split(":", 1) for line in (root / "proc/meminfo").read_text(encoding="ascii").splitlines())
        free = 1024 * int(table["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    groups = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
    for limit, used in groups:
        try:
            base = (root / "sys/fs/cgroup" / limit).parent
            most = int((root / "sys/fs/cgroup" / limit).read_text(encoding="ascii"))
            now = int((root / "sys/fs/cgroup" / used).read_text(encoding="ascii"))
            counts = dict(line.split() for line in (base / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):  # no such group, or "max": no limit
            continue
        cache = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))  # given back when needed
        free = min(free, max(0, most - now + cache))
    return free


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
