"""Time A^H A of the SENSE operator against the bare FFT pair of the same coil stack and against peers, in one run.

    python benchmarks/operators.py --threads 1 --json operators.json

Machines drift between runs, so read the ratios, which compare medians of interleaved repeats: to the bare
``torch.fft.fft2`` and ``ifft2`` of the coil stack (into fresh memory or into buffers of its own, whichever is faster
here), and for the batch of 4 slices, per slice, to one slice at a time.
Peers that are not installed are left out. BART is timed inside ``pics``: (21 conjugate-gradient steps - 1) / 20.
On a CUDA machine ``--device cuda`` compares with the cuFFT pair.
"""

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

from cfl import write_cfl
from timing import Candidates, interleaved, use_threads

SIZES = {"8x320x320": (8, 320, 320), "15x640x372": (15, 640, 372)}
SMALL = {"8x64x64": (8, 64, 64)}
BATCH = 4


def main() -> None:
    arguments = _arguments()
    use_threads(arguments.threads)
    import torch
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    record: dict[str, Any] = {"threads": arguments.threads, "torch": torch.__version__, "sizes": {}}
    for name, shape in (SMALL if arguments.quick else SIZES).items():
        record["sizes"][name] = {}
        for kind in ("lines", "points"):
            problem = Problem(shape, kind, arguments.device)
            times = interleaved(problem.candidates(peers=not arguments.no_peers), arguments.repeats)
            if not arguments.no_peers and shutil.which("bart"):
                times["BART, one step of pics"] = problem.bart_step()
            pair = min(times["bare pair"], times["bare pair into buffers"])
            ratios = {key: value / pair for key, value in times.items()}
            ratios["a batch of 4, per slice, over one slice"] = times["rsdmri, 4 slices"] / times["rsdmri, 4 x 1 slice"]
            record["sizes"][name][kind] = ratios | {"bare pair, ms": 1000 * pair}
            table = Table(
                title=f"{name}, {kind}, {arguments.threads} thread(s), pair {1000 * times['bare pair']:.1f} ms"
            )
            table.add_column("A^H A")
            table.add_column("over the bare pair", justify="right")
            for key, ratio in ratios.items():
                table.add_row(key, f"{ratio:.2f}")
            console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(record, indent=2) + "\n")


class Problem:
    """Random maps, image and a mask at R = 4; every candidate applies A^H A to the same and is checked to agree."""

    def __init__(self, shape: tuple[int, int, int], kind: str, device: str) -> None:
        import torch

        from rsdmri.runtime import select_device, torch_generator

        n_coils, height, width = shape
        generator = torch_generator("benchmark", *shape)
        maps = torch.randn(BATCH, n_coils, height, width, dtype=torch.complex64, generator=generator)
        target = select_device(device)
        self.maps = (maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)).to(target)
        self.image = torch.randn(BATCH, height, width, dtype=torch.complex64, generator=generator).to(target)
        mask = torch.rand((height if kind == "points" else 1), width, generator=generator) < 0.25
        self.mask, self.kind = mask.to(target), kind

    def candidates(self, *, peers: bool) -> Candidates:
        import torch

        from rsdmri.physics import sense

        maps, image = self.maps[0], self.image[0]
        operator, batch = sense(maps, self.mask), sense(self.maps, self.mask)
        singles = [sense(own, self.mask) for own in self.maps]
        stack = maps * image
        there, back = torch.empty_like(stack), torch.empty_like(stack)
        found: Candidates = {
            "bare pair": lambda: torch.fft.ifft2(torch.fft.fft2(stack)),
            "bare pair into buffers": lambda: torch.fft.ifft2(torch.fft.fft2(stack, out=there), out=back),
            "rsdmri": lambda: operator.normal(image),
            "rsdmri, 4 slices": lambda: batch.normal(self.image),
            "rsdmri, 4 x 1 slice": lambda: [one.normal(own) for one, own in zip(singles, self.image, strict=True)],
        }
        if peers:
            others: dict[str, Any] = {"fastMRI style": self._fastmri_style()}
            for name, build in (("sigpy", self._sigpy), ("mrpro", self._mrpro), ("deepinv", self._deepinv)):
                try:
                    others[name] = build()
                except ImportError as error:
                    print(f"{name}: left out ({error})")
            expected = operator.normal(image)
            for name, call in others.items():
                result = torch.as_tensor(call()).reshape(expected.shape).to(expected.device)
                if float((result - expected).norm() / expected.norm()) > 1e-5:
                    raise SystemExit(f"{name} computes something else")
            found |= others
        return self._synchronised(found)

    def _synchronised(self, candidates: Candidates) -> Candidates:
        import torch

        if self.maps.device.type != "cuda":
            return candidates
        return {name: lambda call=call: (call(), torch.cuda.synchronize()) for name, call in candidates.items()}

    def _full_mask(self) -> Any:
        return self.mask.expand(self.image.shape[-2:])

    def _fastmri_style(self) -> Any:
        """Real and imaginary part on a last axis, shifts in every application, as fastMRI's own functions work."""
        import torch

        maps, image = (torch.view_as_real(x) for x in (self.maps[0], self.image[0]))
        mask = self._full_mask()[..., None]

        def multiply(a, b):
            real, imaginary = (
                a[..., 0] * b[..., 0] - a[..., 1] * b[..., 1],
                a[..., 0] * b[..., 1] + a[..., 1] * b[..., 0],
            )
            return torch.stack([real, imaginary], dim=-1)

        def transform(x, work):
            shifted = torch.view_as_complex(torch.fft.ifftshift(x, dim=(-3, -2)).contiguous())
            return torch.fft.fftshift(torch.view_as_real(work(shifted, norm="ortho")), dim=(-3, -2))

        conjugate = torch.stack([maps[..., 0], -maps[..., 1]], dim=-1)

        def normal():
            kspace = transform(multiply(image, maps), torch.fft.fft2) * mask + 0.0
            return torch.view_as_complex(multiply(transform(kspace, torch.fft.ifft2), conjugate).sum(0))

        return normal

    def _sigpy(self) -> Any:
        import sigpy.mri.linop

        if self.maps.device.type != "cpu":
            raise ImportError("on CPUs only here")
        weights = self._full_mask().numpy().astype("float32")
        operator = sigpy.mri.linop.Sense(self.maps[0].numpy(), weights=weights).N
        image = self.image[0].numpy()
        return lambda: operator(image)

    def _mrpro(self) -> Any:
        from mrpro.operators import CartesianMaskingOp, FastFourierOp, SensitivityOp

        mask = CartesianMaskingOp(self._full_mask().float())
        operator = (mask @ FastFourierOp(dim=(-2, -1)) @ SensitivityOp(self.maps[:1, :, None])).gram
        image = self.image[0][None, None, None]
        return lambda: operator(image)[0]

    def _deepinv(self) -> Any:
        import torch
        from deepinv.physics import MultiCoilMRI

        height, width = self.image.shape[-2:]
        mask = self._full_mask().float()
        physics = MultiCoilMRI(mask=mask, coil_maps=self.maps[:1], img_size=(2, height, width), device=self.maps.device)
        channels = torch.view_as_real(self.image[:1]).movedim(-1, 1).contiguous()
        return lambda: torch.view_as_complex(physics.A_adjoint(physics.A(channels)).movedim(1, -1).contiguous())

    def bart_step(self) -> float:
        """Seconds of one conjugate-gradient step of ``bart pics -l2``."""
        from rsdmri.physics import sense

        kspace = sense(self.maps[0], self.mask).forward(self.image[0])
        with tempfile.TemporaryDirectory() as folder:
            for name, array in (("kspace", kspace), ("maps", self.maps[0])):
                write_cfl(Path(folder) / name, array.cpu().numpy())
            seconds = {}
            for steps in (1, 21):
                command = ["bart", "pics", "-w1", "-l2", "-r1e-6", f"-i{steps}", "kspace", "maps", "out"]
                started = perf_counter()
                subprocess.run(command, cwd=folder, check=True, capture_output=True)
                seconds[steps] = perf_counter() - started
        return (seconds[21] - seconds[1]) / 20


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-peers", action="store_true", help="only rsdmri and the bare pair")
    parser.add_argument("--quick", action="store_true", help="one small size")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
