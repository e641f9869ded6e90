"""Prewhitening as an operator, so that it composes with an acquisition: W A."""

import torch
from torch import Tensor

from rsdmri.physics.linop import LinearOperator, check_shape, linear


class Whitening(LinearOperator):
    """y to W y, y_c' = sum_c W_c'c y_c: mixes the coils of k-space of one ``shape``, [..., coil, y, x] by default.

    ``matrix`` W (coil, coil), real or complex, as :func:`rsdmri.physics.noise.whitening_matrix` returns it: for noise
    of covariance Psi = (W^H W)^-1 the result has unit noise variance per complex sample. ``coil_axis`` is counted from
    the end: -2 for the samples of a trajectory, [..., coil, sample]. Positions are never mixed.
    Raises ``ValueError`` when the matrix does not fit the coil axis.
    """

    def __init__(self, matrix: Tensor, shape: tuple[int, ...], *, coil_axis: int = -3) -> None:
        if not -len(shape) <= coil_axis < 0:
            raise ValueError(f"coil_axis: expected {-len(shape)} to -1 for shape {list(shape)}, got {coil_axis}")
        n_coils = shape[coil_axis]
        if matrix.shape != (n_coils, n_coils):
            raise ValueError(f"matrix: expected ({n_coils}, {n_coils}), got {list(matrix.shape)}")
        self.domain_shape = self.range_shape = tuple(shape)
        self._axis = coil_axis
        self.matrix: Tensor = matrix.detach().clone()
        self._adjoint_matrix = self.matrix.mH.contiguous().resolve_conj()
        self._normal_matrix = self._adjoint_matrix @ self.matrix

    def forward(self, x: Tensor) -> Tensor:
        """Return W y."""
        return self._mix(x, self.matrix, self._adjoint_matrix)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return W^H y."""
        return self._mix(y, self._adjoint_matrix, self.matrix)

    def normal(self, x: Tensor) -> Tensor:
        """Return W^H W y, one mixing with the product of the matrices."""
        return self._mix(x, self._normal_matrix, self._normal_matrix)

    def _mix(self, x: Tensor, matrix: Tensor, adjoint: Tensor) -> Tensor:
        check_shape(x, self.domain_shape)
        if matrix.is_complex() and not x.is_complex():
            raise ValueError(f"expected complex k-space for a complex matrix, got {x.dtype}")
        return linear(x, lambda y: self._mixed(y, matrix), lambda y: self._mixed(y, adjoint))

    def _mixed(self, x: Tensor, matrix: Tensor) -> Tensor:
        columns = x.unsqueeze(-1).flatten(self._axis)  # [..., coil, everything behind it]
        mixed: Tensor = torch.matmul(matrix.to(device=x.device, dtype=x.dtype), columns)
        return mixed.view(x.shape)
