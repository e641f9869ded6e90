"""Power-function averages of any length, put together afterwards from snapshots of two of them.

Averaging is linear: what matters of an average is its profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on
[0, t], the weight of each moment of training. The profile that is wanted is approximated by a combination of those of
the snapshots, and the same combination of their weights is the average (Karras et al. 2024, section 3 and appendix C).
A profile ends abruptly at its step, so that steps with a snapshot are matched well and others are not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.training.checkpoint import load_tensors
from rsdmri.training.ema import TRACKED, power_gamma, power_name
from rsdmri.training.snapshots import step_of

LARGEST_ERROR = 0.05

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """A power-function average after ``step`` steps, of length ``sigma_rel``."""

    step: float
    sigma_rel: float


def inner_products(first: Sequence[Profile], second: Sequence[Profile]) -> Array:
    """Integrals of p_i p_j over training time, ``(first, second)``.

    With t_i <= t_j: (gamma_i + 1) (gamma_j + 1) / (gamma_i + gamma_j + 1) (t_i / t_j)^gamma_j / t_j.
    """
    (t, u), (g, h) = (np.meshgrid(*each, indexing="ij") for each in zip(_numbers(first), _numbers(second), strict=True))
    ratio = np.minimum(t, u) / np.maximum(t, u)
    of_later = np.where(t <= u, h, g)
    result: Array = (g + 1) * (h + 1) / (g + h + 1) * ratio**of_later / np.maximum(t, u)
    return result


def coefficients(snapshots: Sequence[Profile], wanted: Profile) -> tuple[Array, float]:
    """Combination of ``snapshots`` nearest to ``wanted`` in the mean square, and its relative error.

    Minimises |sum_i x_i p_i - p|^2 subject to sum_i x_i = 1, which the paper leaves out: so weights that rest stay as
    they are. The error is |sum_i x_i p_i - p| / |p|, of profiles, not of weights.

    Errors:
        ValueError: no snapshots, or a step that is not positive.
    """
    if not snapshots or min(each.step for each in (*snapshots, wanted)) <= 0:
        raise ValueError("snapshots: expected at least one, all after positive steps")
    gram, right = inner_products(snapshots, snapshots), inner_products(snapshots, [wanted])[:, 0]
    power = float(inner_products([wanted], [wanted])[0, 0])
    scale = np.append(1 / np.sqrt(np.diag(gram)), 1.0)  # equal diagonals: profiles differ in power by orders
    ones = np.ones((len(right), 1))
    system = scale[:, None] * np.block([[gram, ones], [ones.T, np.zeros((1, 1))]]) * scale
    found = scale * np.linalg.lstsq(system, scale * np.append(right, 1.0), rcond=1e-14)[0]
    x: Array = found[:-1]
    error = power - 2 * float(x @ right) + float(x @ gram @ x)
    return x, float(np.sqrt(max(error, 0.0) / power))


def combine(parts: Iterable[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """Sum of coefficient times tensors over ``parts``, added up in float64; of the type of the first."""
    total: dict[str, Tensor] = {}
    kinds: dict[str, torch.dtype] = {}
    for coefficient, tensors in parts:
        for name, tensor in tensors.items():
            kinds.setdefault(name, tensor.dtype)
            total[name] = total.get(name, torch.zeros((), dtype=torch.float64)) + coefficient * tensor.double()
    return {name: tensor.to(kinds[name]) for name, tensor in total.items()}


def average_of(files: Sequence[Path], wanted: Profile) -> tuple[dict[str, Tensor], float]:
    """Weights of the average ``wanted`` from snapshot files, and the relative error of its profile.

    Errors:
        InputError: files missing or damaged, or an error above 5 %: too few snapshots, or none at the step.
    """
    x, error = profile_fit(files, wanted)
    if error > LARGEST_ERROR:
        raise InputError(
            f"--sigma-rel {wanted.sigma_rel:g} at step {wanted.step:g}: {len(files)} snapshots match its profile only "
            f"to {100 * error:.0f} % (at most {100 * LARGEST_ERROR:.0f} %); choose a length nearer to 0.05 to 0.10 "
            "and a step that has a snapshot"
        )
    return combine(_parts(files, x.reshape(len(files), len(TRACKED)))), error


def profile_fit(files: Sequence[Path], wanted: Profile) -> tuple[Array, float]:
    """`coefficients` for all averages in snapshot ``files``, file by file."""
    return coefficients([Profile(step_of(file), length) for file in files for length in TRACKED], wanted)


def _parts(files: Sequence[Path], x: Array) -> Iterable[tuple[float, dict[str, Tensor]]]:
    for file, row in zip(files, x.tolist(), strict=True):
        tensors, meta = load_tensors(file)
        _check(file, meta)
        for coefficient, length in zip(row, TRACKED, strict=True):
            start = power_name(length) + "."
            yield coefficient, {key[len(start) :]: t for key, t in tensors.items() if key.startswith(start)}


def _check(file: Path, meta: dict[str, Any]) -> None:
    if meta.get("kind") != "averages" or meta.get("sigma_rel") != list(TRACKED):
        raise InputError(f"{file}: no snapshot of averages of sigma_rel {TRACKED}; keep other files out of its folder")


def _numbers(profiles: Sequence[Profile]) -> tuple[Array, Array]:
    return np.array([p.step for p in profiles], float), np.array([power_gamma(p.sigma_rel) for p in profiles])
