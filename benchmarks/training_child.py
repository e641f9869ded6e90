"""One training held ready in a process of its own: told to step, it takes one step and answers
with the seconds.

Started by ``training.py`` with the checkout to import first on PYTHONPATH, so that two versions of the package, or two
settings of it, can take turns in one run.
"""

import json
import resource
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any


def stage(settings: dict[str, Any]) -> Any:
    """The teacher of the fixed network on one batch of a simulated slice: ambient objective, R = 4, lines."""
    import torch
    from scene import scene

    from rsdmri.config import load_config
    from rsdmri.diffusion.batch import Batch
    from rsdmri.physics import masks
    from rsdmri.priors import build_denoiser
    from rsdmri.runtime import select_device, torch_generator
    from rsdmri.training.shards import Shards
    from rsdmri.training.teacher import TeacherStage

    size, coils, count = settings["size"], settings["coils"], settings["batch"]
    generator = torch_generator("training benchmark", size)
    mask = torch.rand(count, 1, size, generator=generator) < 0.25
    mask[..., size // 2 - 4 : size // 2 + 4] = True
    shown = masks.further_mask(mask, size // 20, acs=8, generator=generator)
    slice_ = scene(coils, size, size)
    kspace = torch.where(mask[:, None], slice_.kspace, 0)
    maps = slice_.maps.expand(count, -1, -1, -1).contiguous()
    device = select_device(settings["device"])
    batch = Batch(kspace, maps, mask, shown, torch.zeros(count)).to(device)
    config = load_config(None, [f"teacher.batch={count}", f"workers={settings['workers']}", *settings["set"]])
    denoiser = build_denoiser(config, 0.3, device)
    return TeacherStage(config, denoiser, lambda *_: batch, Shards(config.workers, device))


def main() -> None:
    settings = json.loads(sys.argv[1])
    import torch
    import training_parts

    from rsdmri import runtime

    runtime.prepare_process(settings["threads"])
    if hasattr(runtime, "keep_freed_memory"):  # as training does
        runtime.keep_freed_memory()
    held = stage(settings)
    for number, line in enumerate(sys.stdin):
        command = json.loads(line)
        if command["do"] == "step":
            answer: Any = timed_step(held, number, torch.cuda.synchronize if settings["device"] == "cuda" else None)
        elif command["do"] == "limits":
            answer = training_parts.limits()
        elif command["do"] == "floor":
            answer = training_parts.floor(held, command["peak"], command["bandwidth"])
        else:
            answer = training_parts.profiled(held)
        print(json.dumps(answer), flush=True)


def timed_step(held: Any, number: int, wait: Callable[[], None] | None) -> dict[str, float]:
    """Seconds by the clock and of the processor, kernel's share of the latter, peak memory in MB."""
    before, start = resource.getrusage(resource.RUSAGE_SELF), perf_counter()
    held.step(number, 0.0)
    if wait is not None:
        wait()
    wall, after = perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    kernel = after.ru_stime - before.ru_stime
    used = after.ru_utime - before.ru_utime + kernel
    return {"wall": wall, "processor": used, "kernel": kernel, "memory": after.ru_maxrss / 1024}


if __name__ == "__main__":
    main()
