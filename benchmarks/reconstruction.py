"""Time reconstructions side by side with BART's pics (and on request sigpy, mrpro, deepinv), in one run.

    python benchmarks/reconstruction.py --threads 1 --json reconstruction.json

A simulated head, true coil maps, lines at R = 4 with 24 ACS lines, noise. Methods take turns; the figures are medians.
With ``--prior`` the draws of `rsd` join, beside BART's L1-wavelet. BART runs as a program on its own files: ``raw`` is
its wall time; ``net`` leaves out the start, the files and one iteration, as a run of one iteration shows them. Ours is
the whole call, operator included. Each regularised method takes the strength of a small grid with the least NRMSE of
the magnitude. Machines drift: read the ratios.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cfl import read_cfl, write_cfl
from timing import interleaved, use_threads

SIZES = {"8x320x320": (8, 320, 320), "15x640x372": (15, 640, 372)}
QUICK = {"4x64x48": (4, 64, 48)}
NOISE = 0.01
ACS = 24
RIDGES = (0.003, 0.01, 0.03)
STRENGTHS = (0.0005, 0.001, 0.002, 0.005)
ITERATIONS = {"CG-SENSE": 30, "L1-wavelet": 100, "TV": 60}
BART = {
    ("BART", "CG-SENSE"): lambda s: ["-l2", "-r", str(s)],
    ("BART", "L1-wavelet"): lambda s: ["-R", f"W:3:0:{s}"],
    ("BART, haar", "L1-wavelet"): lambda s: ["--wavelet", "haar", "-R", f"W:3:0:{s}"],
    ("BART", "TV"): lambda s: ["-R", f"T:3:0:{s}"],
}

DRAWS = {"rsd, 1 draw": 1, "rsd, 8 draws": 8}  # timed against BART's L1-wavelet

Method = Callable[[float], object]


def main() -> None:
    arguments = _arguments()
    use_threads(arguments.threads)
    import torch
    from rich.console import Console
    from rich.table import Table

    console, record = Console(width=110), {}
    if shutil.which("bart") is None:
        console.print("BART is not installed: its rows and the ratios over it are left out")
    for size, shape in (QUICK if arguments.quick else SIZES).items():
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(problem(*shape), Path(folder), arguments)
        record[size] = rows
        table = Table(title=f"{size}, {arguments.threads} thread(s), torch {torch.__version__}")
        for column in ("method", "strength", "seconds", "net", "over BART", "over BART, net", "NRMSE"):
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
        for name, row in rows.items():
            figures = (row["strength"], row["seconds"], row["net"], row["ratio"], row["ratio_net"], row["nrmse"])
            table.add_row(name, *("-" if value is None else f"{value:.3g}" for value in figures))
        console.print(table)
    if arguments.json:
        settings = {"threads": arguments.threads, "repeats": arguments.repeats, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(settings | {"sizes": record}, indent=2) + "\n")


def problem(n_coils: int, height: int, width: int) -> dict:
    """Head of ``width`` pixels in a readout of ``height`` (oversampled, so empty at its ends), maps of unit norm."""
    import numpy as np
    import torch

    from rsdmri.data.simulate import simulate_scan
    from rsdmri.physics.fourier import fft2c
    from rsdmri.runtime import torch_generator

    scan = simulate_scan(100, slices=1, size=max(height // 2, width), coils=n_coils, noise=0.0, seed=1)
    size = scan.image.shape[-1]
    left, top = (size - width) // 2, (height - size) // 2
    rows = (torch.arange(height) - top).clamp(0, size - 1)
    inside = (torch.arange(height) - top == rows)[:, None]
    image = torch.from_numpy(scan.image[0] / np.percentile(np.abs(scan.image), 99))[rows, left : left + width] * inside
    maps = torch.from_numpy(scan.maps[0])[:, rows, left : left + width]
    maps = maps / torch.linalg.vector_norm(maps, dim=0)
    generator = torch_generator("benchmark", n_coils, height, width)
    acs = min(ACS, width // 6)
    mask = torch.rand(width, generator=generator) < (width / 4 - acs) / (width - acs)
    mask[(width - acs) // 2 : (width + acs) // 2] = True
    kspace = fft2c(maps * image)
    kspace = kspace + NOISE * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    return {"kspace": torch.where(mask, kspace, 0), "maps": maps, "mask": mask, "image": image}


def measure(data: dict, folder: Path, arguments: argparse.Namespace) -> dict[str, dict]:
    """Tune each method, then time all in turns."""
    methods = ours(data)
    if arguments.prior is not None:
        methods |= drawn(data, arguments)
    if shutil.which("bart") is not None:
        methods |= barts(data, folder)
    for wanted, build in ((arguments.sigpy, sigpys), (arguments.peers, mrpros), (arguments.peers, deepinvs)):
        methods |= build(data) if wanted else {}
    rows, timed = {}, {}
    for (program, name), method in methods.items():
        strengths = (0.0,) if name in DRAWS else RIDGES if name == "CG-SENSE" else STRENGTHS
        errors = {strength: _nrmse(method(strength), data["image"]) for strength in strengths}
        best = min(errors, key=lambda strength: errors[strength])
        rows[program, name] = {"strength": best, "nrmse": errors[best]}
        timed[program, name] = partial(method, best)
        if (program, name) in BART:
            timed[program, name, "one iteration"] = partial(method, best, iterations=1)
    seconds = interleaved(timed, arguments.repeats)
    for (program, name), row in rows.items():
        raw, one = seconds[program, name], seconds.get((program, name, "one iteration"), 0.0)
        row |= {"seconds": raw, "net": raw - one, "ratio": None, "ratio_net": None}
        peer = "L1-wavelet" if name in DRAWS else name
        if ("BART", peer) in seconds:
            base = seconds["BART", peer]
            row["ratio"] = raw / base
            row["ratio_net"] = (raw - one) / (base - seconds["BART", peer, "one iteration"])
    return {f"{name}: {program}": row for (program, name), row in sorted(rows.items(), key=lambda item: item[0][1])}


def ours(data: dict) -> dict[tuple[str, str], Method]:
    from rsdmri.physics import sense
    from rsdmri.physics.classical import l1_wavelet, sense_cg, tv
    from rsdmri.runtime import torch_generator

    kspace, maps, mask = data["kspace"][None], data["maps"][None], data["mask"]

    def cg(strength: float) -> object:
        return sense_cg(sense(maps, mask), kspace, strength=strength, iterations=ITERATIONS["CG-SENSE"])[0]

    def wavelet(strength: float) -> object:
        stream, count = torch_generator("shifts"), ITERATIONS["L1-wavelet"]
        settings = {"strength": strength, "iterations": count, "tolerance": 0, "generator": stream}
        return l1_wavelet(sense(maps, mask), kspace, **settings)[0]

    def variation(strength: float) -> object:
        return tv(sense(maps, mask), kspace, strength=strength, iterations=ITERATIONS["TV"], tolerance=0)[0]

    return {
        ("rsdmri", "CG-SENSE"): cg,
        ("rsdmri", "L1-wavelet"): wavelet,
        ("rsdmri", "TV"): variation,
    }


def drawn(data: dict, arguments: argparse.Namespace) -> dict[tuple[str, str], Method]:
    """Means of draws with a prior, of any size; ``--options`` as for ``rsdmri reconstruct --set-method``."""
    import torch

    from rsdmri.physics import sense
    from rsdmri.physics.classical import l1_strength, l1_wavelet
    from rsdmri.priors import load_prior
    from rsdmri.reconstruction.amortised import shared_estimate
    from rsdmri.reconstruction.consistency import Measurements
    from rsdmri.reconstruction.posterior import chosen_settings, draw
    from rsdmri.reconstruction.settings import AmortisedSettings, parse_options
    from rsdmri.runtime import torch_generator

    prior = load_prior(arguments.prior, "cpu")
    settings = chosen_settings("rsd", parse_options(arguments.options), prior)
    noise = torch.tensor([NOISE])

    def mean(count: int, strength: float) -> object:
        operator, start = sense(data["maps"][None], data["mask"]), None
        if settings.start == "l1-wavelet":
            stream = torch_generator("shifts")
            start = l1_wavelet(operator, data["kspace"][None], strength=l1_strength(noise), generator=stream)
        measured = Measurements(operator, data["kspace"][None], noise)
        if isinstance(settings, AmortisedSettings):
            start = shared_estimate(prior.posterior, measured, None, settings)
        streams = [[torch_generator("draw", number)] for number in range(count)]  # a batch takes as long, and memory
        images = [draw(prior, measured, settings=settings, generators=one, start=start) for one in streams]
        return torch.cat(images).mean(0)

    return {("rsdmri", name): partial(mean, count) for name, count in DRAWS.items()}


def barts(data: dict, folder: Path) -> dict[tuple[str, str], Method]:
    import torch

    for name in ("kspace", "maps"):
        write_cfl(folder / name, data[name].numpy())

    def pics(key: tuple[str, str], strength: float, iterations: int | None = None) -> object:
        count = ITERATIONS[key[1]] if iterations is None else iterations
        command = ["bart", "pics", "-w", "1", "-i", str(count), *BART[key](strength), "kspace", "maps", "image"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
        return torch.from_numpy(read_cfl(folder / "image"))

    return {key: partial(pics, key) for key in BART}


def sigpys(data: dict) -> dict[tuple[str, str], Method]:
    import numpy as np
    import torch
    from sigpy.mri.app import L1WaveletRecon, SenseRecon

    kspace, maps = data["kspace"].numpy(), data["maps"].numpy()
    weights = np.broadcast_to(data["mask"].numpy().astype(np.float32), kspace.shape[-2:])

    def run(app: Callable, name: str, strength: float) -> object:
        settings = {"weights": weights, "max_iter": ITERATIONS[name], "show_pbar": False}
        return torch.from_numpy(app(kspace, maps, lamda=strength, **settings).run())

    return {
        ("sigpy", "CG-SENSE"): partial(run, SenseRecon, "CG-SENSE"),
        ("sigpy", "L1-wavelet"): partial(run, L1WaveletRecon, "L1-wavelet"),
    }


def mrpros(data: dict) -> dict[tuple[str, str], Method]:
    """mrpro's conjugate gradients on its own operators."""
    try:
        from mrpro.algorithms.optimizers import cg
        from mrpro.operators import CartesianMaskingOp, FastFourierOp, SensitivityOp
    except ImportError:
        return {}
    height, width = data["image"].shape
    fourier = FastFourierOp(dim=(-2, -1))
    masking = CartesianMaskingOp(data["mask"].expand(height, width)[None, None, None])
    operator = masking @ fourier @ SensitivityOp(data["maps"][None, :, None])
    kspace = data["kspace"][None, :, None]

    def run(strength: float) -> object:
        (rhs,) = operator.H(kspace)
        (image,) = cg(operator.gram + strength, rhs, max_iterations=ITERATIONS["CG-SENSE"], tolerance=0.0)
        return image[0, 0, 0]

    return {("mrpro", "CG-SENSE"): run}


def deepinvs(data: dict) -> dict[tuple[str, str], Method]:
    """deepinv's conjugate gradients on its own operator."""
    try:
        import deepinv
    except ImportError:
        return {}
    import torch

    maps, height, width = data["maps"][None], *data["image"].shape
    physics = deepinv.physics.MultiCoilMRI(mask=data["mask"].expand(height, width)[None, None].float(), coil_maps=maps)
    kspace = torch.view_as_real(data["kspace"][None]).movedim(-1, 1).contiguous()

    def run(strength: float) -> object:
        def normal(x: torch.Tensor) -> torch.Tensor:
            return physics.A_adjoint(physics.A(x)) + strength * x

        solve = deepinv.optim.utils.conjugate_gradient
        image = solve(normal, physics.A_adjoint(kspace), max_iter=ITERATIONS["CG-SENSE"], tol=0.0)
        return torch.complex(image[0, 0], image[0, 1])

    return {("deepinv", "CG-SENSE"): run}


def _nrmse(image, truth) -> float:
    return float((image.abs() - truth.abs()).norm() / truth.norm())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prior", type=Path, help="run or prior folder whose draws are timed, too")
    parser.add_argument("--options", nargs="+", default=[], help="settings of rsd, such as variant=amortised")
    parser.add_argument("--sigpy", action="store_true", help="also sigpy's apps (slow)")
    parser.add_argument("--peers", action="store_true", help="also mrpro and deepinv, where they are installed")
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
