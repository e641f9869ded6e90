"""How far samplers of a teacher end from the prior, at equal numbers of evaluations of its denoiser.

    python benchmarks/samplers.py --json samplers.json

The prior is Gaussian, where the denoiser is known exactly and a sampler is linear in its noise: nothing is drawn and
nothing trained, the covariance of the samples is computed in float64. The prior's spectrum falls with frequency k like
that of images, power 1 / (1 + (k / 2)^3) on a 64 x 64 grid, with standard deviation 0.5 per pixel.

Variance: of a pixel of the samples over the prior's, less 1. Coarsest and finest: the same of the lowest and the
highest hundredth of the frequencies. Distance: Frechet distance to the prior over the prior's standard deviation.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from timing import use_threads

if TYPE_CHECKING:
    from torch import Tensor

    from rsdmri.diffusion.sample import SamplerSettings

SIDE = 64


def main() -> None:
    arguments = _arguments()
    use_threads(arguments.threads)
    from rich.console import Console
    from rich.table import Table

    variances = spectrum(16 if arguments.quick else SIDE)
    table = Table(title="Samplers on a Gaussian prior, Karras' ladder from 80 to 0.002")
    table.add_column("sampler")
    for column in ("evaluations", "variance", "coarsest", "finest", "distance"):
        table.add_column(column, justify="right")
    record: dict[str, Any] = {}
    for settings in candidates():
        row = compared(sampled_variances(settings, variances), variances)
        record[str(settings)] = {"evaluations": settings.evaluations, **row}
        cells = [f"{value:+.1f} %" for value in row.values()]
        table.add_row(str(settings), str(settings.evaluations), *cells[:-1], cells[-1].lstrip("+"))
    Console(width=100).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def candidates() -> "list[SamplerSettings]":
    from rsdmri.diffusion.sample import Churn, SamplerSettings

    found = []
    for steps in (9, 18, 35):
        found += [SamplerSettings("euler", 2 * steps - 1), SamplerSettings("heun", steps)]
        found += [SamplerSettings("dpmpp-2m", 2 * steps - 1)]
        found += [SamplerSettings("heun", steps, Churn(amount)) for amount in (2.0, 10.0)]
        if steps == 18:
            found += [SamplerSettings("dpmpp-2m", steps)]
    return found


def spectrum(side: int) -> "Tensor":
    """Eigenvalues of the prior's covariance, float64 ``(side^2,)``, falling."""
    import torch

    frequency = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    power = 1 / (1 + (torch.hypot(frequency[:, None], frequency) / 2) ** 3)
    return (0.25 * power / power.mean()).flatten().sort(descending=True).values


def sampled_variances(settings: "SamplerSettings", variances: "Tensor") -> "Tensor":
    """Variances of the samples along the same eigenvectors: sum of squared gains of all the noise that goes in."""
    import torch

    from rsdmri.diffusion.sample import run_sampler
    from rsdmri.diffusion.schedule import SIGMA_MAX, karras_ladder

    gains = torch.zeros(settings.steps, len(variances), dtype=torch.float64)  # one item for each noise
    gains[0] = SIGMA_MAX
    drawn = iter(range(1, len(gains)))

    def fresh(x: "Tensor") -> "Tensor":
        noise = torch.zeros_like(x)
        noise[next(drawn)] = 1
        return noise

    def denoise(x: "Tensor", sigma: "Tensor") -> "Tensor":
        return x * variances / (variances + sigma[:, None] ** 2)

    return run_sampler(settings, denoise, gains, karras_ladder(settings.steps), fresh=fresh).square().sum(0)


def compared(found: "Tensor", variances: "Tensor") -> dict[str, float]:
    """Figures of the table, in per cent."""
    few = max(1, len(variances) // 100)
    distance = (found.sqrt() - variances.sqrt()).square().sum() / variances.sum()
    return {
        "variance": 100 * float(found.sum() / variances.sum() - 1),
        "coarsest": 100 * float(found[:few].sum() / variances[:few].sum() - 1),
        "finest": 100 * float(found[-few:].sum() / variances[-few:].sum() - 1),
        "distance": 100 * float(distance.sqrt()),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small grid, to see that it runs")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
