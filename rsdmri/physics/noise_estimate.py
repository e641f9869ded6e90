"""An estimate of coil noise: its covariance, what it rests on, and how far to trust it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rsdmri.errors import InputError

_FLOOR = 1e-5  # least noise amplitude, relative to the brightest readout row (noise-free simulations)
_COIL_FLOOR = 1e-4  # least noise variance of a coil, relative to the median coil (dead coils)
_EMPTY = "none, the scan is empty"
_TOLERATED = 0.05  # share of signal in the samples: 2.5 % of the noise level


@dataclass(frozen=True)
class NoiseEstimate:
    """Coil noise covariance (coil, coil) complex128 per complex sample, how many samples it rests on, and whence.

    ``signal`` is the share of the samples' energy that is not stationary noise but signal, drift or filter, as a test
    of the source itself tells (see there), with standard error ``signal_error``; None where it cannot be tested.
    """

    covariance: Tensor
    samples: int
    source: str
    signal: float | None = None
    signal_error: float | None = None

    @property
    def relative_error(self) -> float:
        """Relative standard error of a noise variance, 1 / sqrt(samples); infinite for a floor without samples."""
        return self.samples**-0.5 if self.samples > 0 else float("inf")

    @property
    def sigma(self) -> float:
        """Noise standard deviation of a complex sample, root mean square over the coils, in the units of the data."""
        return math.sqrt(float(self.covariance.diagonal().real.mean()))

    @property
    def rss_limit(self) -> float:
        """Root sum of squares over the coils that noise alone rarely exceeds, in the units of the data.

        sqrt(tr Psi + 3 sqrt(tr Psi^2)): mean and three standard deviations of the power sum_c |n_c|^2.
        """
        power = float(self.covariance.diagonal().real.sum())
        return math.sqrt(power + 3 * float(torch.linalg.matrix_norm(self.covariance)))

    @property
    def degrees_of_freedom(self) -> float:
        """Of ``sigma``: 2 samples (tr Psi)^2 / tr Psi^2, less than 2 samples coils where coils are correlated.

        The moments of a weighted sum of chi-squares (Satterthwaite 1946, doi:10.2307/3002019).
        """
        trace = float(self.covariance.diagonal().real.sum())
        square = float(self.covariance.abs().square().sum())
        return 2 * self.samples * trace**2 / square if square > 0 else 0.0

    @property
    def sigma_error(self) -> float:
        """Relative standard error of ``sigma``, 1 / sqrt(2 degrees of freedom); infinite without samples."""
        freedom = self.degrees_of_freedom
        return (2 * freedom) ** -0.5 if freedom > 0 else float("inf")

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the true noise standard deviation, by chi-square; (0, inf) without samples.

        Counts the number of samples alone: what ``signal`` in them adds is not part of it.
        """
        from scipy.stats import chi2

        freedom = self.degrees_of_freedom
        if freedom <= 0:
            return 0.0, float("inf")
        low, high = (self.sigma * math.sqrt(freedom / float(chi2.ppf(p, freedom))) for p in (0.975, 0.025))
        return low, high

    @property
    def suspicious(self) -> bool:
        """Whether ``signal`` exceeds 5 % of the samples' energy by more than two standard errors."""
        return self.signal is not None and self.signal - 2 * (self.signal_error or 0.0) > _TOLERATED

    def __str__(self) -> str:
        """One line: level, 95 % interval, source, number of samples, and whether the source may hold signal."""
        words = f"noise {self.sigma:.3g} per sample and coil"
        if self.samples > 0:
            low, high = self.interval
            words += f" (95 %: {low:.3g} to {high:.3g})"
        words += f", from {self.source}"
        if self.samples > 0:
            words += f", {self.samples} samples, standard error {100 * self.sigma_error:.2g} %"
        if self.signal is not None:
            share = f"{100 * self.signal:.1f} % ± {100 * (self.signal_error or 0.0):.1f} % of their energy"
            words += f"; {share} is not white noise" + (
                ": may hold signal, or a filter shapes it" if self.suspicious else ""
            )
        return words


def combine_estimates(estimates: Sequence[NoiseEstimate]) -> NoiseEstimate:
    """One estimate from those of several slices of a scan: covariances averaged by their number of samples.

    Raises ``ValueError`` when there are none.
    """
    if not estimates:
        raise ValueError("estimates: expected at least one")
    # floors and empty slices rest on no samples; their values would drown noise in small units
    filled = [estimate for estimate in estimates if estimate.source != _EMPTY] or list(estimates[:1])
    estimates = [estimate for estimate in filled if estimate.samples > 0] or filled[:1]
    weights = torch.tensor([max(estimate.samples, 1) for estimate in estimates], dtype=torch.float64)
    stacked = torch.stack([estimate.covariance for estimate in estimates])
    covariance = torch.einsum("s,sij->ij", (weights / weights.sum()).to(stacked.dtype), stacked)
    signal, error = _mean_signal([e for e in estimates if e.signal is not None])
    samples = sum(estimate.samples for estimate in estimates)
    return NoiseEstimate(covariance, samples, estimates[0].source, signal, error)


def covariance_of_samples(
    samples: Tensor, *, filled: float, brightest: float, source: str, signal: tuple[float, float] | None
) -> NoiseEstimate:
    """Covariance of noise ``samples`` (coil, n) of which a share ``filled`` carries noise, always positive definite.

    Few samples are shrunk towards the diagonal by (coil / (coil + n))^2; dead coils and noise-free data get a floor,
    relative to the energy ``brightest`` of the scan, which ``source`` then says. Raises ``InputError`` for NaN.
    """
    if not bool(torch.isfinite(torch.view_as_real(samples)).all()) or not brightest < float("inf"):
        raise InputError("kspace: acquired samples hold NaN or infinite values; the noise cannot be estimated")
    samples = samples.to(torch.complex128)
    n_coils, count = samples.shape
    covariance = samples @ samples.mH / (count * max(filled, 1e-6))
    shrink = (n_coils / (n_coils + count)) ** 2
    variance = covariance.diagonal().real
    covariance = (1 - shrink) * covariance + shrink * torch.diag_embed(variance).to(covariance.dtype)

    alive = variance[variance > 0]
    typical = float(alive.median()) if len(alive) else 0.0
    floor = max(_FLOOR**2 * brightest, _COIL_FLOOR * typical)
    if typical <= _FLOOR**2 * brightest:
        source, filled, signal = f"floor, {source} holds no noise", 0.0, None
    if floor == 0:
        return NoiseEstimate(torch.eye(n_coils, dtype=covariance.dtype), 0, _EMPTY)
    covariance = covariance + torch.diag_embed((floor - variance).clamp(min=0)).to(covariance.dtype)
    share, error = signal if signal is not None else (None, None)
    return NoiseEstimate(covariance.cpu(), round(count * filled), source, share, error)


def _mean_signal(estimates: Sequence[NoiseEstimate]) -> tuple[float | None, float | None]:
    """Share of signal and its error, averaged by the number of samples."""
    total = sum(max(estimate.samples, 1) for estimate in estimates)
    if not estimates:
        return None, None
    parts = [(max(e.samples, 1) / total, e.signal or 0.0, e.signal_error or 0.0) for e in estimates]
    return sum(w * share for w, share, _ in parts), sum((w * error) ** 2 for w, _, error in parts) ** 0.5
