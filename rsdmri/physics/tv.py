"""Isotropic total variation of complex images and its proximal map."""

import torch
from torch import Tensor

_STEP = 1 / 8  # 1 / |D|^2 of two-dimensional forward differences


def total_variation(x: Tensor) -> Tensor:
    """TV(x) = sum sqrt(|x[y+1, x] - x[y, x]|^2 + |x[y, x+1] - x[y, x]|^2) of (..., y, x), real, shape (...).

    A difference across the border is 0 (Neumann).
    """
    differences = x.new_zeros(2, *x.shape)
    differences[0, ..., :-1, :] = x[..., 1:, :] - x[..., :-1, :]
    differences[1, ..., :-1] = x[..., 1:] - x[..., :-1]
    value: Tensor = torch.linalg.vector_norm(differences, dim=0).sum((-2, -1))
    return value


def tv_proximal(
    x: Tensor, strength: Tensor | float, *, dual: Tensor | None = None, iterations: int = 50
) -> tuple[Tensor, Tensor]:
    """argmin_z 1/2 |z - x|^2 + strength TV(z) of complex (..., y, x), and the dual variable that gave it.

    Accelerated projected gradient on the dual (Beck and Teboulle 2009, FGP): z = x - D^H q with |q| <= strength in
    every pixel. ``strength`` >= 0 is a number or (..., 1, 1), one per image. Started from the ``dual`` of a similar
    problem, a few iterations do; it may be overwritten.
    """
    planes = torch.stack([x.real, x.imag])
    limit = torch.as_tensor(strength, dtype=planes.dtype, device=x.device).clamp(min=torch.finfo(planes.dtype).tiny)
    old = planes.new_zeros(2, *planes.shape) if dual is None else dual
    ahead, spare, image = old.clone(), torch.empty_like(old), torch.empty_like(planes)
    momentum = 1.0
    for _ in range(iterations):
        _primal(planes, ahead, image)
        _ascend(ahead, image)
        _project(ahead, limit)
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        torch.lerp(old, ahead, 1 + (momentum - 1) / following, out=spare)
        old, ahead, spare, momentum = ahead, spare, old, following
    _primal(planes, old, image)
    return torch.complex(image[0], image[1]), old


def _primal(planes: Tensor, dual: Tensor, out: Tensor) -> None:
    """out = planes - D^H dual."""
    torch.add(planes, dual[0], out=out).add_(dual[1])
    out[..., 1:, :].sub_(dual[0, ..., :-1, :])
    out[..., 1:].sub_(dual[1, ..., :-1])


def _ascend(dual: Tensor, image: Tensor) -> None:
    """dual += step D image; the last row or column of a difference stays 0."""
    dual[0, ..., :-1, :].add_(image[..., 1:, :], alpha=_STEP).sub_(image[..., :-1, :], alpha=_STEP)
    dual[1, ..., :-1].add_(image[..., 1:], alpha=_STEP).sub_(image[..., :-1], alpha=_STEP)


def _project(dual: Tensor, limit: Tensor) -> None:
    """Scale [axis, real and imaginary, ..., y, x] down to a magnitude of at most ``limit`` per pixel, in place."""
    magnitude = dual[0, 0].square()
    for plane in (dual[0, 1], dual[1, 0], dual[1, 1]):
        magnitude.addcmul_(plane, plane)
    dual.mul_(torch.div(limit, torch.maximum(magnitude.sqrt_(), limit, out=magnitude), out=magnitude))
