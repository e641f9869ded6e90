"""Peak memory of training steps beside what the plan foretells: python benchmarks/backbone.py [--only PRESET].

Each figure is of a process of its own, that of the imports taken off: one step of a stage on random k-space of 8 coils,
one thread and one share, so that no second copy of the gradients counts.
"""

import argparse
import subprocess
import sys

from timing import use_threads

COILS = 8
CASES = {"tiny": (48, 16), "small": (128, 8), "base": (320, 1)}  # matrix size, batch


def peak() -> float:
    """Most memory that this process has held so far, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024.0 for line in file if line.startswith("VmHWM"))


def step(preset: str, stage: str, backbone: str) -> None:
    """Take one step and print parameters, foretold and measured memory."""
    use_threads(1)
    import torch

    from rsdmri.config import load_config
    from rsdmri.diffusion.backbones import build_backbone
    from rsdmri.diffusion.batch import Batch
    from rsdmri.diffusion.unet import parameter_count
    from rsdmri.physics import masks
    from rsdmri.priors import build_denoiser
    from rsdmri.runtime import select_device, torch_generator
    from rsdmri.training.prior import PriorStage
    from rsdmri.training.shards import Shards
    from rsdmri.training.teacher import TeacherStage
    from rsdmri.workflows.plan import training_bytes

    size, batch = CASES[preset]
    settings = [f"network.{name}" for name in (f"preset={preset}", f"backbone={backbone}")]
    config = load_config(None, [*settings, f"teacher.batch={batch}", f"prior.batch={batch}"])
    foretold = training_bytes(config, build_backbone(config), (COILS, size, size))

    def batches(count: int, *key: object) -> Batch:
        generator = torch_generator(*key)
        maps = torch.randn(count, COILS, size, size, dtype=torch.complex64, generator=generator)
        maps /= maps.abs().square().sum(1, keepdim=True).sqrt()
        mask = torch.rand(count, 1, size, generator=generator) < 0.25
        mask[..., size // 2 - 4 : size // 2 + 4] = True
        shown = masks.further_mask(mask, 2, acs=8, generator=generator)
        kspace = torch.where(mask[:, None], torch.randn(maps.shape, dtype=maps.dtype, generator=generator), 0)
        return Batch(kspace, maps, mask, shown, torch.zeros(count))

    device = select_device("cpu")
    shards = Shards(1, device)
    small = load_config(None, ["network.channels=[8]", "prior.batch=1"])  # loads libraries
    sides, size = size, 16
    PriorStage(small, build_denoiser(small, 0.5, device), batches, shards).step(0, 0.0)
    size, before = sides, peak()
    denoiser = build_denoiser(config, 0.5, device)
    trained = {"teacher": TeacherStage, "prior": PriorStage}[stage](config, denoiser, batches, shards)
    del denoiser
    for index in range(2):  # the optimiser's moments appear after the first
        trained.step(index, 0.0)
    found, count = peak() - before, parameter_count(build_backbone(config))
    print(
        f"| {backbone} {preset} | {count / 1e6:.1f} | {size} x {size}, batch {batch} | {stage} | {found / 1e9:.2f} "
        f"| {foretold[stage] / 1e9:.2f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=CASES)
    parser.add_argument("--backbone", default="unet", choices=("unet", "diffusers", "monai"))
    parser.add_argument("--stage", choices=("teacher", "prior"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        step(options.only, options.stage, options.backbone)
        return
    print(
        "| backbone | million parameters | size | stage | measured GB | foretold GB |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for preset in [options.only] if options.only else CASES:
        for stage in ("teacher", "prior"):
            command = [sys.executable, __file__, "--only", preset, "--stage", stage, "--backbone", options.backbone]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
