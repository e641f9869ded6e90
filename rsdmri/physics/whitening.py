"""Prewhitening: the coils mixed so that their noise has unit covariance."""

import torch
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.linop import LinearOperator, check_shape, linear

_SINGULAR = 1e-12  # least eigenvalue of the correlation between coils; float32 copies of one coil reach 1e-14
_IDENTICAL = 1e-6  # coils whose noise correlates closer to 1 than this are the same
_MOST_NAMED = 4


def whitening_matrix(covariance: Tensor) -> Tensor:
    """W = Psi^(-1/2) (coil, coil), Hermitian, so that W Psi W^H = I and the order of coils does not matter.

    Raises ``ValueError`` when ``covariance`` is not square and Hermitian, ``InputError`` when it is not finite or not
    positive definite, with its rank, the coils to blame and the cure.
    """
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"covariance: expected (coil, coil), got {list(covariance.shape)}")
    covariance = covariance.to(torch.complex128)
    if not bool(torch.isfinite(covariance.abs()).all()):
        raise InputError("covariance: holds NaN or infinite values; repair the noise samples it comes from")
    if not torch.allclose(covariance, covariance.mH, rtol=1e-8, atol=1e-10 * float(covariance.abs().max())):
        raise ValueError("covariance: not Hermitian")
    _require_definite(covariance)
    values, vectors = torch.linalg.eigh(covariance)
    result: Tensor = (vectors * values.rsqrt()) @ vectors.mH
    return result


def whiten(kspace: Tensor, whitening: Tensor) -> Tensor:
    """Mix the coils of ``kspace`` [..., coil, y, x] with ``whitening`` (coil, coil); unit noise variance per sample."""
    n_coils = kspace.shape[-3]
    if whitening.shape != (n_coils, n_coils):
        raise ValueError(f"whitening: expected ({n_coils}, {n_coils}), got {list(whitening.shape)}")
    mixed = whitening.to(device=kspace.device, dtype=kspace.dtype) @ kspace.flatten(-2)
    return mixed.view(kspace.shape)


class Whitening(LinearOperator):
    """y to W y, y_c' = sum_c W_c'c y_c: mixes the coils of k-space of one ``shape``, [..., coil, y, x] by default.

    ``matrix`` W (coil, coil), real or complex, as :func:`whitening_matrix` returns it: for noise
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


def _require_definite(covariance: Tensor) -> None:
    """``InputError`` with rank, cause and cure unless every mixture of coils has noise, whatever the coils' gains."""
    variance = covariance.diagonal().real
    if bool((variance < 0).any()):
        raise InputError("covariance: not positive definite, a coil has negative variance; this is no covariance")
    silent = variance <= 0
    gain = torch.where(silent, 0, variance.clamp(min=torch.finfo(variance.dtype).tiny).rsqrt())
    correlation = gain[:, None] * covariance * gain
    values = torch.linalg.eigvalsh(correlation)
    n_coils, rank = len(values), int((values > _SINGULAR).sum())
    if rank == n_coils:
        return
    if float(values[0]) < -1e-6:
        raise InputError(
            f"covariance: not positive definite, the correlation between coils has eigenvalue {float(values[0]):.3g};"
            " this is no covariance of noise samples"
        )
    causes = []
    if bool(silent.any()):
        causes.append("silent: coil " + _named([str(int(c)) for c in silent.nonzero()[:, 0]]))
    same = (correlation.abs() > 1 - _IDENTICAL).triu(1).nonzero().tolist()
    if same:
        causes.append("identical up to a factor: coils " + _named([f"{first} and {second}" for first, second in same]))
    cause = "; ".join(causes) or "some coils are mixtures of others, or there were fewer noise samples than coils"
    raise InputError(
        f"covariance: not positive definite, rank {rank} of {n_coils} coils ({cause}; coils count from 0);"
        " drop those coils or compress, take a longer noise scan, or shrink the covariance towards its diagonal"
    )


def _named(words: list[str]) -> str:
    more = f" and {len(words) - _MOST_NAMED} more" if len(words) > _MOST_NAMED else ""
    return ", ".join(words[:_MOST_NAMED]) + more
