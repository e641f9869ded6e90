"""Non-Cartesian multicoil acquisition: radial, spiral or any other trajectory in 2-D or 3-D.

    (A x)_{c,j} = sqrt(d_j / N) sum_n e^{-2 pi i k_j . n} s_c(n) x(n),   n from -(N_a // 2) along each axis a,

with N pixels, trajectory k in cycles per pixel and density compensation d (1 without). At the points k = m / N_a of a
Cartesian grid this is the centred orthonormal transform of :mod:`rsdmri.physics.fourier`. The non-uniform transforms
are those of FINUFFT (Barnett, Magland and af Klinteberg 2019).

A^H A is a convolution with the point spread function of the trajectory. On a grid twice as large it is a product in the
Fourier domain (Toeplitz embedding: Wajer and Pruessmann 2001; Fessler et al. 2005), without any gridding.
"""

import math
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.linop import LinearOperator, check_shape, linear

_TOLERANCE = {torch.complex64: 1e-6, torch.complex128: 1e-13}  # of the transforms, relative
_GOLDEN_ANGLE = math.pi * (math.sqrt(5) - 1) / 2  # 111.25 degrees
_PER_THREAD = 100_000  # complex numbers of a transform that are worth a thread of their own
_BLOCK = 500_000  # complex numbers of one block of coils on the doubled grid, per thread of a CPU
_DEVICE_BLOCK = 32_000_000  # the same on an accelerator, where only memory is a limit


def noncartesian_sense(maps: Tensor, trajectory: Tensor, density: Tensor | None = None) -> "NonCartesianSense":
    """SENSE operator of complex coil ``maps`` (coil, y, x) or (batch, coil, y, x) along a ``trajectory`` (sample, 2).

    The columns of the trajectory belong to the axes of the image, (k_y, k_x), in cycles per pixel within [-1/2, 1/2];
    divide radians per pixel by 2 pi. Three columns (k_z, k_y, k_x) take maps (coil, z, y, x).
    ``density`` (sample,), not negative, weights the samples; `weighted` gives measured ones the same weights.
    Raises ``InputError`` when FINUFFT is not installed or the trajectory leaves its range, ``ValueError`` for shapes.
    """
    return NonCartesianSense(maps, trajectory, density)


class NonCartesianSense(LinearOperator):
    """A x = sqrt(d / N) sum_n e^{-2 pi i k n} s_c x: (..., y, x) to (..., coil, sample), one trajectory for all items.

    Batched maps: (batch, y, x) to (batch, coil, sample), item by item. The image has the complex type of the maps.
    Gradients flow through the image. On CUDA cufinufft transforms where it is installed; without it forward and adjoint
    go through the host, the normal does once, for its point spread function. In single precision forward and adjoint
    err by about 2e-5 at 320 x 320 because FINUFFT rounds the points; the normal by 2e-7.
    """

    def __init__(self, maps: Tensor, trajectory: Tensor, density: Tensor | None = None) -> None:
        trajectory = _checked_trajectory(trajectory)
        rank = trajectory.shape[1]
        if maps.ndim not in (rank + 1, rank + 2) or maps.dtype not in _TOLERANCE or 0 in maps.shape:
            raise ValueError(
                f"maps: expected complex (coil, y, x) or (batch, coil, y, x), with z before y for three columns of the "
                f"trajectory; got {maps.dtype} {list(maps.shape)} for {rank} columns"
            )
        if maps.device.type != "cuda" or _cufinufft() is None:
            _finufft()
        self.maps: Tensor = maps.detach().clone()
        self.trajectory: Tensor = trajectory.to(maps.device)
        self.density: Tensor | None = None
        if density is not None:
            self.density = _checked_density(density, len(trajectory)).to(maps.device)
        self._rank, self._image = rank, tuple(maps.shape[-rank:])
        self._batched = maps.ndim == rank + 2
        leading = tuple(maps.shape[: -rank - 1])
        self.domain_shape = (*leading, *self._image)
        self.range_shape = (*leading, maps.shape[-rank - 1], len(trajectory))
        scale = torch.ones(len(trajectory), dtype=torch.float64, device=maps.device) / math.prod(self._image)
        self._power = scale if self.density is None else scale * self.density
        self._weight = self._power.sqrt().to(maps.real.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Return A x, by a non-uniform transform of type 2."""
        self._check(x, self.domain_shape)
        return linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^H y, by a non-uniform transform of type 1."""
        self._check(y, self.range_shape)
        return linear(y, self._adjoint, self._forward)

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x, by a convolution with the point spread function."""
        self._check(x, self.domain_shape)
        return linear(x, self._normal, self._normal)

    def weighted(self, samples: Tensor) -> Tensor:
        """Return measured ``samples`` [..., coil, sample] times the root of the density, to go with A."""
        self._check(samples, self.range_shape)
        return samples.clone() if self.density is None else samples * self.density.sqrt().to(self.maps.real.dtype)

    def _check(self, x: Tensor, shape: tuple[int, ...]) -> None:
        check_shape(x, shape, leading=not self._batched)
        if x.dtype != self.maps.dtype:
            raise ValueError(f"expected {self.maps.dtype} like the maps, got {x.dtype}")

    def _forward(self, x: Tensor) -> Tensor:
        return _to_samples(self.maps * x.unsqueeze(-self._rank - 1), self.trajectory).mul_(self._weight)

    def _adjoint(self, y: Tensor) -> Tensor:
        images = _to_image(self._weight * y, self.trajectory, self._image)
        return images.mul_(self.maps.conj()).sum(-self._rank - 1)

    def _normal(self, x: Tensor) -> Tensor:
        axis = -self._rank - 1
        block = _BLOCK * torch.get_num_threads() if x.device.type == "cpu" else _DEVICE_BLOCK
        coils = max(1, block // (2**self._rank * x.numel()))
        result = torch.zeros_like(x)
        for maps in torch.split(self.maps, coils, dim=axis):
            images = _convolve(maps * x.unsqueeze(axis), self._spectrum)
            result += images.mul_(maps.conj()).sum(axis)
        return result

    @cached_property
    def _spectrum(self) -> Tensor:
        """Fourier transform of the point spread function on the doubled grid, real; always from double precision."""
        doubled = tuple(2 * n for n in self._image)
        spread = _to_image(self._power.to(torch.complex128), self.trajectory, doubled)
        axes = tuple(range(-self._rank, 0))
        # the imaginary part belongs to offset -N alone, which no pair of pixels has
        spectrum: Tensor = torch.fft.fftn(torch.fft.ifftshift(spread, dim=axes)).real
        return spectrum.to(self.maps.real.dtype)


def radial(n_spokes: int, n_samples: int, *, golden: bool = True) -> Tensor:
    """Spokes through the centre of k-space, (n_spokes * n_samples, 2) float64, (k_y, k_x) in cycles per pixel.

    Spoke i is turned by i golden angles (111.25 degrees; Winkelmann et al. 2007) or, evenly, by i pi / n_spokes.
    Sample j has the radius (j - n_samples // 2) / n_samples.
    """
    _require_positive(n_spokes=n_spokes, n_samples=n_samples)
    step = _GOLDEN_ANGLE if golden else math.pi / n_spokes
    angle = step * torch.arange(n_spokes, dtype=torch.float64)[:, None]
    radius = (torch.arange(n_samples, dtype=torch.float64) - n_samples // 2) / n_samples
    return torch.stack((radius * angle.sin(), radius * angle.cos()), dim=-1).flatten(0, 1)


def spiral(n_interleaves: int, n_samples: int, *, turns: float) -> Tensor:
    """Archimedean spirals from the centre to 1/2, (n_interleaves * n_samples, 2) float64, (k_y, k_x), cycles per pixel.

    Interleaf i starts at the angle 2 pi i / n_interleaves and makes ``turns`` turns; the radius grows as the root of
    the sample index, which spreads samples evenly over the disc. The rings lie 1 / (2 turns n_interleaves) apart: an
    image of N pixels asks for turns >= N / (2 n_interleaves).
    """
    _require_positive(n_interleaves=n_interleaves, n_samples=n_samples, turns=turns)
    fraction = (torch.arange(n_samples, dtype=torch.float64) / n_samples).sqrt()
    start = torch.arange(n_interleaves, dtype=torch.float64)[:, None] / n_interleaves
    angle = 2 * math.pi * (turns * fraction + start)
    return torch.stack((0.5 * fraction * angle.sin(), 0.5 * fraction * angle.cos()), dim=-1).flatten(0, 1)


def density_compensation(trajectory: Tensor, image: tuple[int, ...], *, iterations: int = 30) -> Tensor:
    """Weights d (sample,) that bring F^H d F close to the identity on images of the size ``image`` (y, x), float64.

    d <- d / (C d) from d = 1 (Pipe and Menon 1999). The kernel C is the squared Fourier transform of the image's
    support, positive, and C d = 1 is the condition for the least ||F^H d F - I|| in the Frobenius norm.
    Raises the errors of :func:`noncartesian_sense`.
    """
    trajectory = _checked_trajectory(trajectory)
    if len(image) != trajectory.shape[1] or min(image) < 1:
        raise ValueError(f"image: expected {trajectory.shape[1]} sizes of 1 or more, got {tuple(image)}")
    _require_positive(iterations=iterations)
    doubled = tuple(2 * n for n in image)
    window = torch.ones((), dtype=torch.float64, device=trajectory.device)
    for n in image:
        overlap = 1 - (torch.arange(2 * n, dtype=torch.float64, device=trajectory.device) - n).abs() / n
        window = window[..., None] * overlap
    window = window / math.prod(image)
    density = torch.ones(len(trajectory), dtype=torch.complex128, device=trajectory.device)
    for _ in range(iterations):
        density = density / _to_samples(window * _to_image(density, trajectory, doubled), trajectory).real
    return density.real.clone()


def _convolve(images: Tensor, spectrum: Tensor) -> Tensor:
    """Circular convolution on the doubled grid, axis by axis: zeros go in and rows out as soon as they can."""
    sizes = images.shape[-spectrum.ndim :]
    axes = range(-spectrum.ndim, 0)
    for axis in reversed(axes):
        images = torch.fft.fft(images, n=spectrum.shape[axis], dim=axis)
    images *= spectrum
    for axis in axes:
        images = torch.fft.ifft(images, dim=axis).narrow(axis, 0, sizes[axis])
    return images.contiguous()


def _to_samples(images: Tensor, trajectory: Tensor) -> Tensor:
    """sum_n e^{-2 pi i k n} f(n) for images [..., *axes]: [..., sample]."""
    rank = trajectory.shape[1]
    flat = images.reshape(-1, *images.shape[-rank:])
    return _transform(2, flat, trajectory).view(*images.shape[:-rank], len(trajectory))


def _to_image(samples: Tensor, trajectory: Tensor, image: tuple[int, ...]) -> Tensor:
    """sum_j e^{2 pi i k n} c_j for samples [..., sample]: [..., *image]."""
    flat = samples.reshape(-1, samples.shape[-1])
    return _transform(1, flat, trajectory, image).view(*samples.shape[:-1], *image)


def _transform(kind: int, data: Tensor, trajectory: Tensor, image: tuple[int, ...] | None = None) -> Tensor:
    """FINUFFT's transform of type 1 or 2 of ``data`` [n, ...], on the device of the data where a library is."""
    points = (2 * math.pi * trajectory).to(data.real.dtype).T.contiguous()
    options = {"eps": _TOLERANCE[data.dtype], "isign": 1 if kind == 1 else -1}
    arguments = () if image is None else (image,)
    name = f"nufft{len(points)}d{kind}"
    if data.device.type == "cuda" and (library := _cufinufft()) is not None:
        options["gpu_device_id"] = data.device.index or 0
        options["gpu_stream"] = torch.cuda.current_stream(data.device).cuda_stream
        on_device: Tensor = getattr(library, name)(*points, data.contiguous(), *arguments, **options)
        return on_device
    host = data.resolve_conj().resolve_neg().contiguous().cpu().numpy()
    options["nthreads"] = min(torch.get_num_threads(), 1 + host.size // _PER_THREAD)
    result = getattr(_finufft(), name)(*points.cpu().numpy(), host, *arguments, **options)
    return torch.from_numpy(result).to(data.device)


def _finufft() -> ModuleType:
    try:
        import finufft
    except ImportError as error:
        raise InputError(
            f"FINUFFT cannot be imported ({error}): python -m pip install 'rsdmri[noncartesian]'"
        ) from None
    module: ModuleType = finufft
    return module


def _cufinufft() -> ModuleType | None:
    try:
        import cufinufft
    except ImportError:
        return None
    module: ModuleType = cufinufft
    return module


def _checked_trajectory(trajectory: Tensor) -> Tensor:
    if trajectory.ndim != 2 or trajectory.shape[1] not in (2, 3) or len(trajectory) == 0:
        raise ValueError(f"trajectory: expected (sample, 2) or (sample, 3), got shape {list(trajectory.shape)}")
    if not trajectory.is_floating_point():
        raise ValueError(f"trajectory: expected a real floating-point type, got {trajectory.dtype}")
    trajectory = trajectory.detach().to(torch.float64, copy=True)
    largest = float(trajectory.abs().max())
    if not largest <= 0.5:  # also NaN
        raise InputError(
            f"trajectory: expected cycles per pixel within [-1/2, 1/2], got values up to {largest:.6g}; "
            "divide radians per pixel by 2 pi, cycles per field of view by the matrix size"
        )
    return trajectory


def _checked_density(density: Tensor, n_samples: int) -> Tensor:
    if density.shape != (n_samples,) or not density.is_floating_point():
        raise ValueError(f"density: expected real ({n_samples},), got {density.dtype} of shape {list(density.shape)}")
    if not bool(((density >= 0) & density.isfinite()).all()):
        raise InputError("density: expected weights of 0 or more, got negative or non-finite ones")
    return density.detach().to(torch.float64, copy=True)


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name}: expected a positive number, got {value}")
