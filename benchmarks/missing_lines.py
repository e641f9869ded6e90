"""How well trained teachers fill the lines that no mask acquired: python benchmarks/missing_lines.py RUN [RUN ...].

Each RUN is a finished teacher on simulated scans (`recipes/equivariance.toml`). Scans of the validation and test splits
are complete: NRMSE = |A_N (D(u, M~, s) - x)| / |A_N x| over the lines N that M lacks, and the same over those of M.
One JSON line a run.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

LEVELS = (0.05, 0.2, 0.5)


def errors(run: Path) -> dict[str, Any]:
    """NRMSE at each noise level, over the lines that the mask lacks and over those that it has."""
    from rsdmri.config import load_config
    from rsdmri.data.dataset import TrainingSlices
    from rsdmri.data.fastmri import read_scan
    from rsdmri.data.manifest import read_manifest
    from rsdmri.diffusion.schedule import unit_noise
    from rsdmri.physics import masks
    from rsdmri.physics.sense import sense
    from rsdmri.physics.whitening import whiten, whitening_matrix
    from rsdmri.priors import load_prior
    from rsdmri.runtime import torch_generator
    from rsdmri.workflows.plan import mask_law

    config, prior = load_config(run / "config.toml"), load_prior(run / "teacher", "cpu")
    data = Path(config.data.path) if config.data.path else run / "data"
    slices = TrainingSlices([e for e in read_manifest(data) if e.split != "train"], mask_law(config))
    energy = np.zeros((len(LEVELS), 2, 2))
    for item, ref in enumerate(slices.slices):
        known, generator = slices[item], torch_generator("missing", item)
        full = torch.from_numpy(read_scan(ref.path, slices=slice(ref.index, ref.index + 1)).kspace[0])
        full = whiten(full, whitening_matrix(slices.noise_of(ref.path).covariance)) / known.scale
        mask = ref.mask[None]
        shown = masks.further_mask(mask, slices.further_drop(ref), acs=slices.acs_of(ref), generator=generator)
        every = sense(known.maps[None], torch.ones_like(mask))
        truth = every.adjoint(full[None])
        noise = unit_noise(truth, generator)
        operator = every.with_mask(shown)
        for k, level in enumerate(LEVELS):
            u = operator.adjoint(full[None]) + level * operator.normal(noise)
            with torch.no_grad():
                estimate = prior.denoiser(u, operator, torch.tensor([level]))
            for side, lines in enumerate((~mask, mask)):
                seen = every.with_mask(lines)
                energy[k, side] += [float(seen.forward(x).abs().square().sum()) for x in (estimate - truth, truth)]
    found = np.sqrt(energy[..., 0] / energy[..., 1]).round(4)
    return {
        f"NRMSE {name}": dict(zip(map(str, LEVELS), found[:, side].tolist(), strict=True))
        for side, name in enumerate(("missing lines", "acquired lines"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    options = parser.parse_args()
    from rsdmri.config import load_config
    from rsdmri.workflows.run_folder import read_metrics

    for run in options.runs:
        config = load_config(run / "config.toml")
        row = {"equivariance": config.teacher.equivariance, "steps": read_metrics(run)[-1]["step"], "seed": config.seed}
        print(json.dumps(row | errors(run)), flush=True)


if __name__ == "__main__":
    main()
