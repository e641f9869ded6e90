"""What docs/scale.md rests on: operations, and seconds of one thread for what a training does to a slice.

python benchmarks/scale.py; sums over processes: torchrun --nproc-per-node 2 benchmarks/scale.py

Seconds are those that the processor gave to this process (other work on the machine is not counted), medians.
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter, process_time

from timing import use_threads

use_threads(1)

import torch  # noqa: E402
from scene import scene  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from rsdmri.config import Config, load_config  # noqa: E402
from rsdmri.data.dataset import MaskLaw, TrainingSlices  # noqa: E402
from rsdmri.data.fastmri import scan_shape  # noqa: E402
from rsdmri.data.fastmri_write import write_scan  # noqa: E402
from rsdmri.data.manifest import ManifestEntry  # noqa: E402
from rsdmri.data.slice_cache import SliceCache  # noqa: E402
from rsdmri.diffusion.batch import Batch  # noqa: E402
from rsdmri.diffusion.unet import UNet, parameter_count  # noqa: E402
from rsdmri.priors import build_denoiser  # noqa: E402
from rsdmri.runtime import process_count, process_rank  # noqa: E402
from rsdmri.training.distributed import joined  # noqa: E402
from rsdmri.training.prior import PriorStage  # noqa: E402
from rsdmri.training.shards import Shards  # noqa: E402
from rsdmri.training.teacher import TeacherStage  # noqa: E402

CPU = torch.device("cpu")
NETWORKS = {"base": ((64, 128, 256, 320, 352), 2), "default": ((32, 64, 96, 128), 1), "demo": ((16, 48, 96), 1)}
SHAPES = {"8x320x320": (8, 320, 320), "14x640x320": (14, 640, 320), "15x640x372": (15, 640, 372)}


def seconds(function: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Median processor and wall-clock seconds of ``function``, after one call that is not counted."""
    function()
    cpu, wall = [], []
    for _ in range(repeats):
        start, began = process_time(), perf_counter()
        function()
        cpu.append(process_time() - start)
        wall.append(perf_counter() - began)
    return median(cpu), median(wall)


def operations() -> None:
    for name, (channels, blocks) in NETWORKS.items():
        with torch.device("meta"):
            network = UNet(channels=channels, blocks=blocks)
            for size in ((320, 320), (640, 320)):
                with FlopCounterMode(display=False) as counter:
                    network(torch.empty(1, 3, *size), torch.empty(1))
                count = counter.get_total_flops() / 1e9
                print(f"{name}: {parameter_count(network) / 1e6:.1f} M parameters, {count:.0f} GFLOP forward at {size}")


def slices() -> None:
    for name, shape in SHAPES.items():
        stored = scene(*shape).kspace[None].expand(8, -1, -1, -1).numpy()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "scan.h5"
            write_scan(path, stored)
            opened = seconds(lambda p=path: scan_shape(p), 9)[0]
            law, entry, cache = MaskLaw("random", 4.0, 0.08), ManifestEntry(path), Path(folder) / "cache"
            made, kept = TrainingSlices([entry], law, 0), TrainingSlices([entry], law, 0, disk=SliceCache(cache, 5e10))
            read = seconds(lambda s=made: s._read(s.slices[2]), 9)[0]
            began = process_time()
            made.noise_of(path)
            noise = process_time() - began
            prepared, known = seconds(lambda s=made: s[2], 3)[0], seconds(lambda s=kept: s[2])[0]
            size, entry_size = stored[0].nbytes, next(cache.glob("*.safetensors")).stat().st_size
        print(
            f"{name}: {size / 1e6:.1f} MB; seconds: file opened {opened:.4f}, slice read {read:.4f}, "
            f"prepared {prepared:.3f}, from the disk cache {known:.3f} ({entry_size / 1e6:.1f} MB), noise of a scan "
            f"{noise:.2f}"
        )


def one_batch(size: int, coils: int) -> Callable[..., Batch]:
    truth = scene(coils, size, size)

    def batches(count: int, *key: object, positions: object = None) -> Batch:
        del key, positions
        mask = torch.ones(count, 1, size, dtype=torch.bool)
        mask[..., 1 : size // 3 : 2] = False
        shown = mask.clone()
        shown[..., -size // 4 :: 2] = False
        maps = truth.maps.expand(count, -1, -1, -1).contiguous()
        return Batch(torch.where(mask[:, None], truth.kspace, 0), maps, mask, shown, torch.zeros(count))

    return batches


def settings(name: str) -> Config:
    channels, blocks = NETWORKS[name]
    wanted = [f"network.channels={list(channels)}", f"network.blocks={blocks}", "teacher.batch=2", "prior.batch=2"]
    return load_config(None, wanted)


def steps() -> None:
    for name, size in (("demo", 48), ("default", 64), ("default", 128), ("base", 64)):
        config, shards, batches = settings(name), Shards(1, CPU), one_batch(size, 8)
        denoiser = build_denoiser(config, 0.5, CPU)
        with FlopCounterMode(display=False) as counter:
            denoiser.network(torch.zeros(1, 3, size, size), torch.zeros(1))
        forward = counter.get_total_flops()
        for kind in (TeacherStage, PriorStage):
            stage = kind(config, build_denoiser(config, 0.5, CPU), batches, shards)
            with FlopCounterMode(display=False) as counter:
                stage.step(0, 0.0)
            count = counter.get_total_flops() / 2
            taken = seconds(lambda stage=stage: stage.step(1, 0.0), 3)[0] / 2
            print(
                f"{name} {size}x{size}, {stage.name}: {count / 1e9:.2f} GFLOP an image, {count / forward:.1f} forward "
                f"passes, {taken:.3f} s, {count / taken / 1e9:.0f} GFLOP/s"
            )


def sums(numbers: int = 35_000_000) -> None:
    with joined(CPU) as processes:
        tensors = [torch.ones(numbers // 100) for _ in range(100)]
        cpu, wall = seconds(lambda: processes.add(tensors))
        state = {str(k): tensor for k, tensor in enumerate(tensors)}
        check = seconds(lambda: processes.check_same(state))[1]
        flags = seconds(lambda: processes.largest(1.0), 101)[1]
        if process_rank() == 0:
            print(
                f"sum of {4 * numbers / 1e6:.0f} MB over {processes.count} processes: {wall:.3f} s wall, {cpu:.3f} s "
                f"processor; one flag {1e6 * flags:.0f} us, comparison of the weights {check:.3f} s"
            )


if __name__ == "__main__":
    if process_count() > 1:
        sums()
    else:
        for part in sys.argv[1:] or ("operations", "slices", "steps"):
            {"operations": operations, "slices": slices, "steps": steps}[part]()
