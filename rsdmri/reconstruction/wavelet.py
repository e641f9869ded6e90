"""Orthogonal periodised wavelet transform of complex images, equal to ``pywt.wavedec2(..., mode="periodization")``.

One level along an axis of n samples is a circulant band matrix of 8 taps. It is applied as a small dense matrix to
overlapping windows: faster than strided convolutions, and for large images faster than the n x n matrix.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_TAPS = 8  # of db4
_BEFORE = 3  # coefficient i is sum_k h[k] x[2 i + k - 3], in PyWavelets' placement
_SHORTEST = 16  # an axis is halved while it has this many samples
_MOST_LEVELS = 4
_BLOCK = 16  # samples that one window makes


class Wavelet:
    """Psi: images (batch, y, x) of a grid to as many coefficients, orthogonal: Daubechies with 4 vanishing moments.

    Args:
        size: (y, x) of the images, any.
        dtype: complex64 or complex128.
        device: of the images.

    Attributes:
        levels: how often the grid is halved, at most 4, down to at least 8 coarse samples.
        shape: (y, x) of the grid: ``size`` rounded up to multiples of 2^levels, at least 16.
    """

    def __init__(self, size: tuple[int, int], dtype: torch.dtype, device: torch.device | str | None = None):
        self.levels = min(_MOST_LEVELS, math.floor(math.log2(2 * max(min(size), _SHORTEST) / _SHORTEST)))
        step = 2**self.levels
        height, width = (-(-max(n, _SHORTEST) // step) * step for n in size)
        self.shape = (height, width)
        real = torch.float64 if dtype == torch.complex128 else torch.float32
        self._matrices: dict[int, tuple[Tensor, Tensor]] = {}
        for n in {n >> level for n in self.shape for level in range(self.levels)}:
            split, merge = _window_matrices(math.gcd(n, _BLOCK) // 2)
            self._matrices[n] = split.to(device, real), merge.to(device, real)

    def forward(self, image: Tensor) -> Tensor:
        """Coefficients (batch, x, y) of ``image`` (batch, y, x): transposed, the coarse ones first along both axes."""
        return self._analyse(image, self.levels)

    def inverse(self, coefficients: Tensor) -> Tensor:
        """Image (batch, y, x) of ``coefficients`` (batch, x, y), which are overwritten; inverse and adjoint."""
        return self._synthesise(coefficients, self.levels)

    def coarse(self, coefficients: Tensor) -> Tensor:
        """View of the coarse band, (batch, x >> levels, y >> levels)."""
        return coefficients[:, : self.shape[1] >> self.levels, : self.shape[0] >> self.levels]

    def _analyse(self, image: Tensor, levels: int) -> Tensor:
        result = _on_axis_1(_on_axis_1(image, self._split).mT, self._split)
        if levels > 1:
            coarse = result[:, : result.shape[1] // 2, : result.shape[2] // 2]
            coarse.copy_(self._analyse(coarse.mT, levels - 1))
        return result

    def _synthesise(self, coefficients: Tensor, levels: int) -> Tensor:
        if levels > 1:
            coarse = coefficients[:, : coefficients.shape[1] // 2, : coefficients.shape[2] // 2]
            coarse.copy_(self._synthesise(coarse, levels - 1).mT)
        return _on_axis_1(_on_axis_1(coefficients, self._merge).mT, self._merge)

    def _split(self, x: Tensor) -> Tensor:
        """Real (batch, n, m) to its low pass (batch, n / 2, m) followed by its high pass."""
        batch, n, m = x.shape
        matrix = self._matrices[n][0]
        half, length = matrix.shape[0] // 2, matrix.shape[1]
        padded = torch.cat([x[:, n - _BEFORE :], x, x[:, : _TAPS - 2 - _BEFORE]], dim=1)
        windows = padded.unfold(1, length, 2 * half)
        bands = torch.matmul(matrix, windows.mT).view(batch, n // (2 * half), 2, half, m)
        return bands.transpose(1, 2).reshape(batch, n, m)

    def _merge(self, bands: Tensor) -> Tensor:
        """Inverse and adjoint of :meth:`_split`."""
        batch, n, m = bands.shape
        matrix = self._matrices[n][1]
        half, length = matrix.shape[0] // 2, matrix.shape[1] // 2
        extra = _TAPS // 4
        bands = bands.view(batch, 2, n // 2, m)
        padded = torch.cat([bands[:, :, n // 2 - extra :], bands, bands[:, :, :extra]], dim=2)
        windows = padded.unfold(2, length, half).permute(0, 2, 1, 4, 3).reshape(batch, -1, 2 * length, m)
        return torch.matmul(matrix, windows).view(batch, n, m)


def _on_axis_1(image: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a real linear map along axis 1 of a complex (batch, n, m)."""
    batch, n, m = image.shape
    result = work(torch.view_as_real(image.contiguous()).view(batch, n, 2 * m))
    return torch.view_as_complex(result.view(batch, n, m, 2))


def _window_matrices(half: int) -> tuple[Tensor, Tensor]:
    """Filters as matrices, float64, for windows that make 2 ``half`` samples.

    Analysis (low then high pass, sample): 2 half x (2 half + 6). Synthesis (sample, low then high pass):
    2 half x 2 (half + 4).
    """
    import pywt

    wavelet = pywt.Wavelet("db4")
    taps = torch.tensor([wavelet.rec_lo, wavelet.rec_hi], dtype=torch.float64)
    split = taps.new_zeros(2, half, 2 * half + _TAPS - 2)
    for i in range(half):
        split[:, i, 2 * i : 2 * i + _TAPS] = taps
    extra = _TAPS // 4
    merge = taps.new_zeros(2 * half, 2, half + 2 * extra)
    for j in range(2 * half):
        for i in range(-extra, half + extra):
            if 0 <= j - 2 * i + _BEFORE < _TAPS:
                merge[j, :, i + extra] = taps[:, j - 2 * i + _BEFORE]
    return split.flatten(0, 1), merge.flatten(1)
