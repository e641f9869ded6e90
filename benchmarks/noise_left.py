"""Noise that teachers of noisy scans leave in their samples: python benchmarks/noise_left.py REFERENCE RUN [RUN ...].

Two places where neither missing lines nor much signal hide it: the ends of the readout (beyond 0.75 of its edge) among
the calibration lines, and the air, where clean images are below 3 % on average. Printed: the root mean power there of
samples and of clean images, in scaled units (tissue is about 1).
"""

import argparse
import json
import math
from pathlib import Path

import torch
from torch import Tensor


def edge_level(images: Tensor, lines: int) -> float:
    """Root mean power of ``images`` (n, y, x) at the ends of the readout, over the central ``lines``."""
    from rsdmri.physics.fourier import fft2c

    height, width = images.shape[-2:]
    readout = torch.linspace(-1, 1, height).abs() > 0.75
    centre = slice((width - lines) // 2, (width + lines) // 2)
    return math.sqrt(float(fft2c(images)[:, readout, centre].abs().square().mean()))


def air_level(images: Tensor, air: Tensor) -> float:
    """Root mean power of ``images`` (n, y, x) where ``air`` (y, x) is set."""
    return math.sqrt(float(images[:, air].abs().square().mean()))


def main() -> None:
    from rsdmri.physics import masks
    from rsdmri.priors import load_prior
    from rsdmri.runtime import prepare_process
    from rsdmri.workflows.assess import clean_slices
    from rsdmri.workflows.sample import timed_samples

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reference", type=Path, help="fully sampled scans of other subjects, nearly without noise")
    parser.add_argument("runs", type=Path, nargs="+", help="finished teachers")
    parser.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    prepare_process()
    for run in arguments.runs:
        prior = load_prior(run / "teacher", "cpu")
        lines = masks.acs_lines(prior.bank.mask[0])
        drawn = torch.as_tensor(timed_samples(prior, arguments.samples, teacher=True)[0])
        clean = torch.stack([c.image for c in clean_slices(prior, arguments.reference)])
        air = clean.abs().mean(0) < 0.03
        row = {"run": run.name, "samples": len(drawn), "air pixels": int(air.sum())}
        for name, images in (("samples", drawn), ("clean images", clean)):
            row |= {f"readout, {name}": edge_level(images, lines), f"air, {name}": air_level(images, air)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
