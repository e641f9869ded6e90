"""Samplers: from noise to an image by the probability-flow ODE dx/ds = (x - D(x, s)) / s.

Each takes ``denoise(x_s, sigma)`` with sigma ``(batch,)``, a state ``x`` at ``sigmas[0]`` and decreasing levels
``sigmas`` ``(steps + 1,)`` of which only the last may be 0, and treats every item of the batch on its own. A last step
to 0 lands on the estimate D(x, s) in all of them. Evaluations of the denoiser on a ladder that ends at 0:

    euler      first order    steps
    heun       second order   2 steps - 1
    dpmpp_2m   second order   steps

Variance that the samples of a Gaussian prior have over its own, with Karras' ladder from 80 to 0.002
(``benchmarks/samplers.py``): 18 Heun steps, the published choice, +7.6 %; ``dpmpp_2m`` +1.7 % with the same 35
evaluations and +8.4 % with 18.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, log, sqrt
from typing import Literal

import torch
from torch import Tensor

from rsdmri.diffusion.denoiser import Denoiser
from rsdmri.diffusion.schedule import SIGMA_MAX, SIGMA_MIN, karras_ladder, unit_noise
from rsdmri.errors import InputError
from rsdmri.physics.sense import Sampling, Sense

SamplerName = Literal["heun", "euler", "dpmpp-2m"]
Denoise = Callable[[Tensor, Tensor], Tensor]
Fresh = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """What a step of a sampler started from.

    Attributes:
        index: number of the step, from 0.
        sigma: noise level of ``state``; with churn the raised one.
        state: x_s, ``(batch, y, x)``.
        denoised: estimate D(x_s, s), ``(batch, y, x)``.
    """

    index: int
    sigma: float
    state: Tensor
    denoised: Tensor


OnStep = Callable[[Step], None]


@dataclass(frozen=True)
class Churn:
    """Fresh noise of the stochastic sampler (Karras et al. 2022, algorithm 2).

    Before each of N steps that starts at a level s in [lowest, highest], the state goes up to s' = (1 + g) s,
    g = min(amount / N, sqrt(2) - 1), by x_s' = x_s + noise sqrt(s'^2 - s^2) e. Not before a step to 0, which would only
    end with the estimate of a noisier state; the published ranges leave it out as well.

    Attributes:
        amount: S_churn; 0 leaves the sampler deterministic.
        lowest: S_tmin.
        highest: S_tmax.
        noise: S_noise; 1 keeps the law of x_s, a little more makes up for denoisers that remove too much.
    """

    amount: float = 0.0
    lowest: float = 0.0
    highest: float = inf
    noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.amount < inf:
            raise InputError(f"--churn {self.amount:g}: must be a number of at least 0")
        if not 0 <= self.lowest <= self.highest:
            raise InputError(f"churn: levels from {self.lowest:g} to {self.highest:g}; give 0 <= lowest <= highest")
        if not 0 < self.noise < inf:
            raise InputError(f"churn: noise {self.noise:g}; must be positive, usually 1 to 1.01")

    def raised(self, sigma: float, steps: int) -> float:
        """The level s' from which a step of ``steps`` that starts at ``sigma`` is taken."""
        within = self.lowest <= sigma <= self.highest
        return sigma * (1 + min(self.amount / steps, sqrt(2) - 1)) if within else sigma


@dataclass(frozen=True)
class SamplerSettings:
    """How a teacher is sampled.

    Attributes:
        name: ``heun`` with 18 steps is the published choice; ``dpmpp-2m`` with 35 costs the same and is closer to the
            prior, with 18 it is as close at half the cost.
        steps: steps of the ladder, the last one to 0.
        churn: fresh noise, of ``heun`` only.
    """

    name: SamplerName = "heun"
    steps: int = 18
    churn: Churn = Churn()

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"--steps {self.steps}: must be at least 1")
        if self.name not in ("heun", "euler", "dpmpp-2m"):
            raise InputError(f"--sampler {self.name}: unknown; use heun, euler or dpmpp-2m")
        if self.churn.amount > 0 and self.name != "heun":
            raise InputError(f"--churn {self.churn.amount:g}: not with --sampler {self.name}; use --sampler heun")

    @property
    def evaluations(self) -> int:
        """Evaluations of the network for one image."""
        return 2 * self.steps - 1 if self.name == "heun" else self.steps

    def __str__(self) -> str:
        name = {"heun": "Heun", "euler": "Euler", "dpmpp-2m": "DPM-Solver++(2M)"}[self.name]
        churn = f", churn {self.churn.amount:g}" if self.churn.amount > 0 else ""
        return f"{name}, {self.steps} steps{churn}"


def run_sampler(
    settings: SamplerSettings,
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
    fresh: Fresh | None = None,
) -> Tensor:
    """Run the sampler that ``settings`` names along ``sigmas``; ``fresh`` as for `heun`."""
    match settings.name:
        case "heun":
            return heun(denoise, x, sigmas, on_step, settings.churn, fresh)
        case "euler":
            return euler(denoise, x, sigmas, on_step)
        case "dpmpp-2m":
            return dpmpp_2m(denoise, x, sigmas, on_step)


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """First-order steps x_t = x_s + (t - s) (x_s - D) / s."""
    for index, now, after in _steps(sigmas):
        denoised = _estimate(denoise, x, now)
        _report(on_step, index, now, x, denoised)
        x = x + (after - now) / now * (x - denoised)
    return x


def heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    on_step: OnStep | None = None,
    churn: Churn | None = None,
    fresh: Fresh | None = None,
) -> Tensor:
    """Second-order steps with the mean of the slopes at both ends (Karras et al. 2022, algorithms 1 and 2).

    A step to 0 stays first order, so ``steps`` steps need ``2 steps - 1`` evaluations when the last level is 0, else
    ``2 steps``. With ``churn``, ``fresh(x)`` gives the standard noise of each step, shaped like ``x``.
    """
    churned = churn is not None and churn.amount > 0
    if churned and fresh is None:
        raise ValueError("fresh: churn needs a source of noise; give item_noise(generators), one for each image")
    for index, now, after in _steps(sigmas):
        if churn is not None and fresh is not None and after > 0:
            now, low = churn.raised(now, len(sigmas) - 1), now
            x = x + churn.noise * sqrt(now**2 - low**2) * fresh(x) if now > low else x
        denoised = _estimate(denoise, x, now)
        _report(on_step, index, now, x, denoised)
        slope = (x - denoised) / now
        ahead = x + (after - now) * slope
        if after > 0:
            slope = (slope + (ahead - _estimate(denoise, ahead, after)) / after) / 2
            ahead = x + (after - now) * slope
        x = ahead
    return x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, on_step: OnStep | None = None) -> Tensor:
    """DPM-Solver++(2M), second order with one evaluation a step (Lu et al. 2022, algorithm 2).

    In l = -ln s the ODE is solved exactly but for D, which two estimates extrapolate to the middle of the step:
        x_t = (t / s) x_s + (1 - t / s) (D + (D - D') h / (2 h')),
    h = ln(s / t) of this step, h' and D' of the one before it. The first step, without D', and a step to 0, where h is
    infinite, take D alone.
    """
    before: tuple[float, Tensor] | None = None
    for index, now, after in _steps(sigmas):
        denoised = middle = _estimate(denoise, x, now)
        _report(on_step, index, now, x, denoised)
        if after > 0:
            width = log(now / after)
            if before is not None:
                middle = denoised + width / (2 * before[0]) * (denoised - before[1])
            before = width, denoised
        x = after / now * x + (1 - after / now) * middle
    return x


def item_noise(generators: Sequence[torch.Generator]) -> Fresh:
    """Noise for `heun` whose item i comes from ``generators[i]`` alone, whatever batch it is in."""

    def fresh(x: Tensor) -> Tensor:
        return torch.stack([unit_noise(item, own) for item, own in zip(x, generators, strict=True)])

    return fresh


def sample_teacher(
    denoiser: Denoiser,
    operator: Sense | Sampling,
    noise: Tensor,
    settings: SamplerSettings | None = None,
    *,
    coil_noise: Tensor | None = None,
    sigma_y: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """Draw images from the teacher: the ODE of x_s with D(A~^H A~ x_s, M~, s), fixed (maps, M~) per item.

    Sampling is truncated at ``sigma_y``, the noise of the measurements, below which the teacher has not learnt: the
    result is then the estimate there, of covariance C (C + sigma_y^2)^-1 C for a Gaussian prior.

    With coil noise c = A~^H M~ n' (see `Acquisitions.draw_coil_noise`) the teacher sees u_s = A~^H A~ x_s + s c.
    For x_s = x + s e this is A~^H (A~ x + s n), n = A_1 e + n', and n is standard as A_1 e and n' are the two
    orthogonal parts of k-space noise. Churn keeps that law: with fresh image noise e', independent of x, e and n',
        x_s' = x_s + sqrt(s'^2 - s^2) e' = x + s' e'',   e'' = (s e + sqrt(s'^2 - s^2) e') / s' standard,
    so that u_s' = A~^H A~ x_s' + s' c is A~^H (A~ x + s' n''), n'' = A_1 e'' + n': c stays, and scales with the raised
    level. (Noise of another size than 1 breaks this for the image part, as it is meant to.)

    Args:
        denoiser: the teacher.
        operator: A~, batched.
        noise: standard noise of images ``(batch, y, x)``.
        settings: the sampler; by default 18 Heun steps, 35 evaluations.
        coil_noise: c, ``(batch, y, x)``, the part of k-space noise that no image has.
        sigma_y: level at which sampling is truncated: the last step goes from there to the estimate.
        generators: of the fresh noise of each item; needed for churn only.
        on_step: called once in each step.

    Errors:
        ValueError: churn without a generator for each item, or a level that no ladder can end at.
    """
    settings = settings or SamplerSettings()
    if settings.churn.amount > 0 and (generators is None or len(generators) != len(noise)):
        found = "none" if generators is None else len(generators)
        raise ValueError(f"generators: churn needs one for each of {len(noise)} images, got {found}")
    if not 0 <= sigma_y < SIGMA_MAX:
        raise ValueError(f"sigma_y: expected a noise level from 0 to below {SIGMA_MAX:g}, got {sigma_y:g}")

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        u = operator.normal(x)
        if coil_noise is not None:
            u = u + sigma[:, None, None] * coil_noise
        return denoiser(u, operator, sigma)

    ladder = karras_ladder(settings.steps, max(SIGMA_MIN, sigma_y))
    fresh = None if generators is None else item_noise(generators)
    with torch.no_grad():
        return run_sampler(settings, denoise, SIGMA_MAX * noise, ladder, on_step, fresh)


class Trajectory:
    """Keeps what the steps of a sampler saw, over all batches, on the CPU; give it as ``on_step``.

    Args:
        most: images to keep, the first ones.
    """

    def __init__(self, most: int | None = None) -> None:
        self._most = most
        self._levels: list[float] = []
        self._seen: list[list[tuple[Tensor, Tensor]]] = []

    def __call__(self, step: Step) -> None:
        """Keep ``step``."""
        if step.index == len(self._seen):
            self._levels.append(step.sigma)
            self._seen.append([])
        kept = self._seen[step.index]
        room = None if self._most is None else self._most - sum(len(state) for state, _ in kept)
        kept.append((step.state[:room].cpu(), step.denoised[:room].cpu()))

    @property
    def sigmas(self) -> Tensor:
        """Noise levels of the steps, float64 ``(steps,)``."""
        return torch.tensor(self._levels, dtype=torch.float64)

    @property
    def states(self) -> Tensor:
        """States x_s before each step, ``(n, steps, y, x)``."""
        return torch.stack([torch.cat([state for state, _ in kept]) for kept in self._seen], dim=1)

    @property
    def denoised(self) -> Tensor:
        """Estimates D(x_s, s) in each step, ``(n, steps, y, x)``."""
        return torch.stack([torch.cat([denoised for _, denoised in kept]) for kept in self._seen], dim=1)


def _steps(sigmas: Tensor) -> Iterator[tuple[int, float, float]]:
    """Number, first and last level of each step of a ladder."""
    levels = sigmas.tolist()
    falling = all(now > after for now, after in pairwise(levels))
    if len(levels) < 2 or not falling or levels[-1] < 0:
        raise ValueError("sigmas: expected at least two decreasing levels, none below 0; see karras_ladder")
    for index, (now, after) in enumerate(pairwise(levels)):
        yield index, now, after


def _estimate(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    return denoise(x, torch.full((x.shape[0],), sigma, dtype=x.real.dtype, device=x.device))


def _report(on_step: OnStep | None, index: int, sigma: float, state: Tensor, denoised: Tensor) -> None:
    if on_step is not None:
        on_step(Step(index, sigma, state, denoised))
