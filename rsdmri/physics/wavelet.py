"""Orthogonal periodised wavelet transform of complex images, equal to ``pywt.wavedec2(..., mode="periodization")``.

One level along an axis is a circulant band matrix. It is applied as a small dense matrix to overlapping windows, and
real and imaginary parts are kept apart: on a processor both are faster than convolutions of interleaved numbers. In
between, coefficients stay in place (low and high pass alternate), so that analysis and synthesis are the same code.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.physics.linop import LinearOperator, check_shape, linear

_SHORTEST = 16  # an axis is halved while it has this many samples
_MOST_LEVELS = 4
_WHOLE = 96  # an axis of at most so many samples is one window
_BLOCK = 16  # samples that one window of a longer axis makes


@dataclass(frozen=True)
class _Bands:
    """A circulant band matrix: ``matrix`` maps a window, ``extra`` samples wider on either side, to its samples."""

    matrix: Tensor
    extra: tuple[int, int]


class Wavelet(LinearOperator):
    """Psi: complex images (..., y, x) of a grid to as many coefficients; unitary, real, separable.

    Coefficients are in the layout of ``pywt.coeffs_to_array``: the coarse band first along both axes.

    Args:
        size: (y, x) of the images, any.
        dtype: complex64 or complex128.
        device: of the images.
        name: of an orthogonal wavelet of PyWavelets with at most 16 taps; ``db1``: Haar's.

    Attributes:
        levels: how often the grid is halved, at most 4, down to at least 8 coarse samples.
        shape: (y, x) of the grid: ``size`` rounded up to multiples of 2^levels, at least 16.
    """

    def __init__(
        self, size: tuple[int, int], dtype: torch.dtype, device: torch.device | str | None = None, name: str = "db1"
    ) -> None:
        self.levels = min(_MOST_LEVELS, math.floor(math.log2(2 * max(min(size), _SHORTEST) / _SHORTEST)))
        step = 2**self.levels
        height, width = (-(-max(n, _SHORTEST) // step) * step for n in size)
        self.shape = self.domain_shape = self.range_shape = (height, width)
        taps = _filters(name).to(device, dtype.to_real())
        self._dtype = dtype
        sizes = {n >> level for n in self.shape for level in range(self.levels)}
        self._split = {n: _for_axis(_analysis, taps, n) for n in sizes}
        self._merge = {n: _for_axis(_synthesis, taps, n) for n in sizes}

    def forward(self, x: Tensor) -> Tensor:
        """Return Psi x."""
        self._check(x)
        return linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return Psi^H y, the image of coefficients ``y``."""
        self._check(y)
        return linear(y, self._adjoint, self._forward)

    def normal(self, x: Tensor) -> Tensor:
        """Return x."""
        self._check(x)
        return x.clone()

    def shrink(self, x: Tensor, threshold: Tensor | float, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Proximal map of threshold |Psi x|_1 without the coarse band: argmin_z 1/2 |z - x|^2 + threshold |Psi z|_1.

        A complex coefficient keeps its phase. ``threshold`` >= 0 is a number or (..., 1, 1), one per image; ``shift``
        moves the grid of the wavelets by whole pixels (y, x).
        """
        self._check(x)
        moved = torch.roll(x, shift, (-2, -1)) if any(shift) else x
        levels = self._analyse(_planes(moved))
        coarse = levels[-1][:, ::2, ::2].clone()
        for bands in levels:  # the low pass of all but the last is overwritten by the synthesis
            _shrink(bands.view(2, *x.shape[:-2], *bands.shape[-2:]), threshold)
        levels[-1][:, ::2, ::2] = coarse
        image = _image(self._synthesise(levels), x.shape)
        return torch.roll(image, (-shift[0], -shift[1]), (-2, -1)) if any(shift) else image

    def _check(self, x: Tensor) -> None:
        check_shape(x, self.shape)
        if x.dtype != self._dtype:
            raise ValueError(f"expected {self._dtype}, got {x.dtype}")

    def _forward(self, x: Tensor) -> Tensor:
        levels = self._analyse(_planes(x))
        result = torch.empty_like(levels[0])
        for bands in levels:
            height, width = (n // 2 for n in bands.shape[-2:])
            for y in (0, 1):
                for x_ in (0, 1):
                    part = slice(y * height, (y + 1) * height), slice(x_ * width, (x_ + 1) * width)
                    result[:, part[0], part[1]] = bands[:, y::2, x_::2]
        return _image(result, x.shape)

    def _adjoint(self, y: Tensor) -> Tensor:
        planes = _planes(y)
        levels = []
        for level in range(self.levels):
            height, width = (n >> level for n in self.shape)
            bands = planes[:, :height, :width].reshape(-1, 2, height // 2, 2, width // 2)
            levels.append(bands.permute(0, 2, 1, 4, 3).reshape(-1, height, width))
        return _image(self._synthesise(levels), y.shape)

    def _analyse(self, planes: Tensor) -> list[Tensor]:
        """Bands of each level, finest first, in place: low pass at even, high pass at odd positions."""
        levels = []
        for _ in range(self.levels):
            bands = _on_both_axes(planes, self._split)
            levels.append(bands)
            planes = bands[:, ::2, ::2]
        return levels

    def _synthesise(self, levels: list[Tensor]) -> Tensor:
        """Inverse of :meth:`_analyse`; the low pass of all but the last level is overwritten."""
        planes = _on_both_axes(levels[-1], self._merge)
        for bands in levels[-2::-1]:
            bands[:, ::2, ::2] = planes
            planes = _on_both_axes(bands, self._merge)
        return planes


def _on_both_axes(planes: Tensor, matrices: dict[int, _Bands]) -> Tensor:
    """Apply the matrices of the axes' sizes to real [planes, y, x]."""
    count, height, width = planes.shape
    rows, columns = matrices[height], matrices[width]
    wrapped = _wrapped(planes, rows.extra, columns.extra)
    step = rows.matrix.shape[0]
    windows = wrapped.unfold(1, rows.matrix.shape[1], step).mT
    half = torch.matmul(rows.matrix, windows).view(count * height, -1)

    step, length = columns.matrix.shape
    if length == step:  # windows that do not overlap are one product
        return torch.mm(half.view(-1, step), columns.matrix.mT).view(count, height, width)
    windows = half.unfold(1, length, step).transpose(0, 1)
    result = planes.new_empty(count, height, width)
    transposed = columns.matrix.mT.expand(windows.shape[0], length, step)
    torch.bmm(windows, transposed, out=result.view(-1, width // step, step).transpose(0, 1))
    return result


def _wrapped(planes: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> Tensor:
    """Continue [planes, y, x] periodically by so many samples before and after."""
    count, height, width = planes.shape
    (above, below), (left, right) = rows, columns
    if not any((*rows, *columns)):
        return planes.contiguous()
    result = planes.new_empty(count, above + height + below, left + width + right)
    result[:, above : above + height, left : left + width] = planes
    result[:, :above] = result[:, height : height + above]
    result[:, above + height :] = result[:, above : above + below]
    result[:, :, :left] = result[:, :, width : width + left]
    result[:, :, left + width :] = result[:, :, left : left + right]
    return result


def _planes(x: Tensor) -> Tensor:
    """Complex [..., y, x] as real [planes, y, x], all real parts first."""
    planes = torch.stack([x.real, x.imag])
    return planes.view(-1, *x.shape[-2:])


def _image(planes: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of :func:`_planes`."""
    real, imaginary = planes.view(2, *shape)
    return torch.complex(real, imaginary)


def _shrink(bands: Tensor, threshold: Tensor | float) -> None:
    """Reduce the magnitude of [real and imaginary, ..., y, x] by ``threshold``, at most to 0, in place."""
    gain = bands[0].square().addcmul_(bands[1], bands[1]).sqrt_().clamp_(min=torch.finfo(bands.dtype).tiny)
    gain = gain.reciprocal_().mul_(-threshold).add_(1).clamp_(min=0)
    bands.mul_(gain)


def _filters(name: str) -> Tensor:
    """Low and high pass of synthesis, [2, taps], float64."""
    import pywt

    wavelet = pywt.Wavelet(name)
    if not wavelet.orthogonal or wavelet.rec_len > _SHORTEST:
        raise ValueError(f"name: expected an orthogonal wavelet of at most {_SHORTEST} taps, got {name}")
    return torch.tensor([wavelet.rec_lo, wavelet.rec_hi], dtype=torch.float64)


def _for_axis(kind: Callable[[Tensor, int], _Bands], taps: Tensor, n: int) -> _Bands:
    if n > _WHOLE:
        return kind(taps, math.gcd(n, _BLOCK) // 2)
    bands = kind(taps, n // 2)
    source = (torch.arange(bands.matrix.shape[1], device=taps.device) - bands.extra[0]) % n
    return _Bands(taps.new_zeros(n, n).index_add_(1, source, bands.matrix), (0, 0))


def _analysis(taps: Tensor, half: int) -> _Bands:
    """Coefficient i is sum_k taps[k] x[2 i + k - before], in PyWavelets' placement; windows make 2 ``half`` of them."""
    length = taps.shape[1]
    before = length // 2 - 1
    matrix = taps.new_zeros(half, 2, 2 * half + length - 2)
    for i in range(half):
        matrix[i, :, 2 * i : 2 * i + length] = taps
    return _Bands(matrix.flatten(0, 1), (before, length - 2 - before))


def _synthesis(taps: Tensor, half: int) -> _Bands:
    """The transposed map, as windows of coefficients that make 2 ``half`` samples."""
    length = taps.shape[1]
    before, extra = length // 2 - 1, length // 4
    matrix = taps.new_zeros(2 * half, half + 2 * extra, 2)
    for sample in range(2 * half):
        for i in range(-extra, half + extra):
            if 0 <= sample - 2 * i + before < length:
                matrix[sample, i + extra] = taps[:, sample - 2 * i + before]
    return _Bands(matrix.flatten(1), (2 * extra, 2 * extra))
