"""Time A^H A of the SENSE operator against the bare FFT pair of the same coil stack and against sigpy's, in one run.

    python benchmarks/operators.py --threads 1 --json operators.json

Machines drift between runs, so read the ratios (to the bare ``torch.fft.fft2`` and ``ifft2`` of the stack), which
compare medians of interleaved repeats.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

SIZES = {"8x320x320": (1, 8, 320, 320), "15x640x372": (1, 15, 640, 372), "16x8x64x64": (16, 8, 64, 64)}
BATCHED = {"4x8x320x320": (4, 8, 320, 320)}
TIMED = ("rsdmri, lines", "rsdmri, points", "sigpy, lines", "sigpy, points")
SMALL = {"8x64x64": (1, 8, 64, 64)}


def main() -> None:
    arguments = _arguments()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ["OMP_WAIT_POLICY"] = "passive"
    import torch
    from rich.console import Console
    from rich.table import Table

    torch.set_num_threads(arguments.threads)
    sizes = SMALL if arguments.quick else SIZES | BATCHED
    results = {}
    table = Table(title=f"A^H A over the bare FFT pair, {arguments.threads} thread(s), torch {torch.__version__}")
    for column in ("size", "bare pair", *TIMED):
        table.add_column(column, justify="right", no_wrap=True)
    for name, shape in sizes.items():
        times = interleaved(candidates(shape, with_sigpy=not arguments.no_sigpy), arguments.repeats)
        bare = times["bare pair"]
        results[name] = {key: {"seconds": value, "ratio": value / bare} for key, value in times.items()}
        cells = [f"{1000 * bare:.2f} ms"]
        cells += [f"{times[key] / bare:.2f}" if key in times else "-" for key in TIMED]
        table.add_row(name, *cells)
    Console(width=100).print(table)
    if arguments.json:
        record = {"threads": arguments.threads, "repeats": arguments.repeats, "torch": torch.__version__}
        arguments.json.write_text(json.dumps(record | {"sizes": results}, indent=2) + "\n")


def candidates(shape: tuple[int, int, int, int], *, with_sigpy: bool) -> dict[str, Callable[[], object]]:
    """What is timed: each applies A^H A once to ``shape`` (items, coil, y, x), all with the same maps and masks."""
    import torch

    from rsdmri.physics import sense
    from rsdmri.runtime import torch_generator

    items, n_coils, height, width = shape
    generator = torch_generator("benchmark", *shape)
    maps = torch.randn(items, n_coils, height, width, dtype=torch.complex64, generator=generator)
    maps = maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)
    image = torch.randn(items, height, width, dtype=torch.complex64, generator=generator)
    lines = torch.rand(width, generator=generator) < 0.25
    points = torch.rand(height, width, generator=generator) < 0.25
    stack = maps * image[:, None]
    if items == 1:
        maps, image = maps[0], image[0]
    by_lines, by_points = sense(maps, lines), sense(maps, points)
    timed: dict[str, Callable[[], object]] = {
        "bare pair": lambda: torch.fft.ifft2(torch.fft.fft2(stack)),
        "rsdmri, lines": lambda: by_lines.normal(image),
        "rsdmri, points": lambda: by_points.normal(image),
    }
    if with_sigpy:
        import sigpy.mri.linop

        stacked = maps.reshape(items, n_coils, height, width).numpy()
        images = list(image.reshape(items, height, width).numpy())
        for name, mask in (("lines", lines.expand(height, width)), ("points", points)):
            weights = mask.numpy().astype("float32")
            operators = [sigpy.mri.linop.Sense(own, weights=weights).N for own in stacked]
            timed[f"sigpy, {name}"] = lambda operators=operators: [
                operator(one) for operator, one in zip(operators, images, strict=True)
            ]
    return timed


def interleaved(timed: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each callable over ``repeats`` rounds that call all of them in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for call in timed.values():
        call()
    for _ in range(repeats):
        for name, call in timed.items():
            start = perf_counter()
            call()
            seconds[name].append(perf_counter() - start)
    return {name: median(values) for name, values in seconds.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--no-sigpy", action="store_true", help="leave sigpy out (it takes seconds to import)")
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
