"""Time and accuracy of the coil maps against BART's ``ecalib -m1 -r24`` and sigpy's ``EspiritCalib``, in one run.

    python benchmarks/coil_maps.py --threads 1 --json coil_maps.json

The error is the mean sine of the angle between found and true maps over the pixels of the object that all methods kept.
BART's time includes its start and its files, which a call of ``bart slice`` on the same file measures.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfl import read_cfl, write_cfl
from scene import Scene, scene
from timing import Candidates, interleaved, use_threads

if TYPE_CHECKING:
    from torch import Tensor

SIZES = {"8x320x320": (8, 320, 320), "15x640x372": (15, 640, 372)}
SMALL = {"8x96x96": (8, 96, 96)}
LINES = 24


def main() -> None:
    arguments = _arguments()
    use_threads(arguments.threads)
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    record: dict[str, Any] = {"threads": arguments.threads, "sizes": {}}
    for name, shape in (SMALL if arguments.quick else SIZES).items():
        truth = scene(*shape)
        with tempfile.TemporaryDirectory() as folder:
            found: dict[str, Tensor] = {}
            seconds = interleaved(_candidates(truth, Path(folder), found, sigpy=arguments.sigpy), arguments.repeats)
        errors, covered = _errors(found, truth)
        against = seconds.get("BART ecalib", seconds["rsdmri"])
        table = Table(title=f"{name}, {arguments.threads} thread(s), {LINES} x {LINES} ACS")
        for column in ("maps", "seconds", "over BART", "error", "object covered"):
            table.add_column(column, justify="right")
        rows = {}
        for key, value in seconds.items():
            rows[key] = {"seconds": value, "ratio": value / against}
            cells = ["", ""]
            if key in errors:
                rows[key] |= {"error": errors[key], "covered": covered[key]}
                cells = [f"{errors[key]:.4f}", f"{100 * covered[key]:.1f} %"]
            table.add_row(key, f"{value:.3f}", f"{value / against:.2f}", *cells)
        record["sizes"][name] = rows
        console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


def _candidates(truth: Scene, folder: Path, found: "dict[str, Tensor]", *, sigpy: bool) -> Candidates:
    """Calls that put their maps into ``found``."""
    import torch

    from rsdmri.physics.coils import espirit_maps

    acs = tuple(slice((n - LINES + 1) // 2, (n - LINES + 1) // 2 + LINES) for n in truth.image.shape)

    def ours() -> None:
        found["rsdmri"] = espirit_maps(truth.kspace, (acs[0], acs[1]))

    candidates: Candidates = {"rsdmri": ours}
    if shutil.which("bart"):
        write_cfl(folder / "kspace", truth.kspace.numpy())

        def bart() -> None:
            command = ["bart", "ecalib", "-m1", f"-r{LINES}", "kspace", "maps"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
            found["BART ecalib"] = torch.from_numpy(read_cfl(folder / "maps"))

        start = ["bart", "slice", "3", "0", "kspace", "slice"]
        candidates["BART ecalib"] = bart
        candidates["BART start and files"] = lambda: subprocess.run(start, cwd=folder, check=True, capture_output=True)
    if sigpy:
        from sigpy.mri.app import EspiritCalib

        def theirs() -> None:
            app = EspiritCalib(truth.kspace.numpy(), calib_width=LINES, crop=0.8, show_pbar=False)
            found["sigpy"] = torch.from_numpy(app.run())

        candidates["sigpy"] = theirs
    return candidates


def _errors(found: "dict[str, Tensor]", truth: Scene) -> tuple[dict[str, float], dict[str, float]]:
    """Subspace error, and the share of the object with a map, of each result."""
    import torch

    lengths = {name: torch.linalg.vector_norm(maps, dim=0) for name, maps in found.items()}
    kept = truth.inside & torch.stack([length > 0 for length in lengths.values()]).all(0)
    errors, covered = {}, {}
    for name, maps in found.items():
        cosine = (maps.conj() * truth.maps).sum(0).abs()[kept].double() / lengths[name][kept]
        errors[name] = float((1 - cosine.square()).clamp(min=0).sqrt().mean())
        covered[name] = float((lengths[name] > 0)[truth.inside].double().mean())
    return errors, covered


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sigpy", action="store_true", help="also sigpy, 5 to 7 times slower than BART")
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
