"""Multicoil Fourier acquisition, A x = M F (s_c x), and the small operators it is the product of.

The centred transform is the plain one between two diagonal phases: with h = n // 2 along an axis of n samples,

    fftshift(fft(ifftshift(x)))[k] = c e^{2 pi i h k / n} fft(e^{2 pi i h j / n} x_j)[k],   c = e^{-2 pi i h h / n},

for even and odd n (for even n the phases are alternating signs). The inner phase is multiplied into the coil maps once,
the outer one meets only complete k-space, and in A^H A it cancels: nothing is ever shifted.

For a mask that depends on the phase-encode position alone the readout transform cancels too,
A^H A x = sum_c conj(s_c) F_pe^H M F_pe s_c x, so the normal needs transforms along the last axis only. Its rows are
independent and are worked through in blocks that stay in the processor's cache.

The way back uses the transform of the way forth, sum_c conj(s_c) ifft(k_c) = conj(sum_c s_c fft(conj(k_c))) / n: the
conjugation costs nothing beside the weights, and no conjugated copy of the maps has to be stored and read.
"""

import math

import torch
from torch import Tensor

from rsdmri.physics.fourier import fft2c, ifft2c
from rsdmri.physics.linop import LinearOperator, check_shape, linear
from rsdmri.physics.masks import Mask

_BLOCK = 200_000  # complex numbers worked on at a time on a CPU: fastest on one and on two threads
_FEW_COILS = 4  # added to the result one by one, which saves writing their products
_DEVICE_BLOCK = 32_000_000  # the same on an accelerator, where only memory is a limit


def sense(maps: Tensor, mask: Tensor | Mask, *, sets: bool = False) -> "Sense":
    """SENSE operator of coil ``maps`` (coil, y, x) or (batch, coil, y, x), complex, and a boolean sampling ``mask``.

    ``mask`` is one drawn from a `SamplingLaw`, or (x,) or (1, x) for phase-encode lines, (y, x) for points;
    (batch, 1, x) or (batch, y, x) per item. With ``sets`` the maps have an axis of ESPIRiT sets before the coils, and
    the image one before y. A single coil is a coil axis of 1. Raises ``ValueError`` when a rank, a size or a type does
    not fit.
    """
    return Sense(maps, mask.acquired if isinstance(mask, Mask) else mask, sets=sets)


class Sense(LinearOperator):
    """A x = M F (s_c x), or M F (sum_s s_sc x_s) with several sets s of maps.

    With unbatched maps and mask: (..., y, x) to (..., coil, y, x). Batched: (batch, y, x) to (batch, coil, y, x), item
    by item. With sets the image is (..., set, y, x) or (batch, set, y, x). The image has the complex type of the maps.
    Gradients flow through the image, not through the maps.
    """

    def __init__(self, maps: Tensor, mask: Tensor, *, sets: bool = False) -> None:
        rank, axes = (4, "set, coil, y, x") if sets else (3, "coil, y, x")
        if maps.ndim not in (rank, rank + 1):
            raise ValueError(f"maps: expected ({axes}) or (batch, {axes}), got shape {list(maps.shape)}")
        if not maps.is_complex():
            raise ValueError(f"maps: expected a complex type, got {maps.dtype}")
        if 0 in maps.shape:
            raise ValueError(f"maps: an axis is empty, shape {list(maps.shape)}")
        self.maps: Tensor = maps.detach()
        self.sets: int | None = maps.shape[-4] if sets else None
        self._phase = _phases(maps, outer=True)
        self._set_mask(mask)
        self._prepared = self._prepare()

    def _set_mask(self, mask: Tensor) -> None:
        sets = () if self.sets is None else (self.sets,)
        leading = self.maps.shape[: -3 - len(sets)]
        self.mask: Tensor = _checked_mask(mask, self.maps, tuple(leading))
        n_coils, height, width = self.maps.shape[-3:]
        self._batched = bool(leading) or self.mask.ndim == 3
        leading = leading or self.mask.shape[:-2]
        self.domain_shape = (*leading, *sets, height, width)
        self.range_shape = (*leading, n_coils, height, width)
        self._lines = self.mask.shape[-2] == 1
        self._skipped = ~self.mask if self.mask.ndim == 2 else ~self.mask[:, None]
        # conjugates and scales k-space in place, seen as real numbers: [batch, 1, 1 or y, x, 2]
        scale = (1.0 if self._lines else 1.0 / height) / width
        weight = self.mask.reshape(-1, 1, *self.mask.shape[-2:]).to(self._phase.real.dtype) * scale
        self._weight = torch.stack([weight, -weight], dim=-1)

    def with_mask(self, mask: Tensor) -> "Sense":
        """The same coils seen through another mask; the prepared maps are shared."""
        other = object.__new__(Sense)
        other.maps, other.sets, other._phase = self.maps, self.sets, self._phase
        other._set_mask(mask)
        other._prepared = self._prepared if other._lines == self._lines else other._prepare()
        return other

    def forward(self, x: Tensor) -> Tensor:
        """Return A x, zero wherever the mask is not set."""
        self._check(x, self.domain_shape)
        return linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return A^H y; only acquired samples of ``y`` are read, the others may hold anything."""
        self._check(y, self.range_shape)
        return linear(y, self._adjoint, self._forward)

    def normal(self, x: Tensor) -> Tensor:
        """Return A^H A x; a mask of whole lines needs no readout transform."""
        self._check(x, self.domain_shape)
        return linear(x, self._normal, self._normal)

    def _check(self, x: Tensor, shape: tuple[int, ...]) -> None:
        check_shape(x, shape, leading=not self._batched)
        if x.dtype != self.maps.dtype:
            raise ValueError(f"expected {self.maps.dtype} like the maps, got {x.dtype}")

    def _prepare(self) -> Tensor:
        """Maps times inner phase: [batch, set, y, coil, x] for lines, [batch, set, coil, y, x] for points."""
        maps = self.maps * _phases(self.maps, outer=False)
        maps = maps.reshape(-1, self.sets or 1, *maps.shape[-3:])
        return maps.movedim(-3, -2).contiguous() if self._lines else maps

    def _coil_first(self) -> Tensor:
        """Prepared maps [batch, set, coil, y, x]."""
        return self._prepared.movedim(-3, -2) if self._lines else self._prepared

    def _forward(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, self.sets or 1, 1, *x.shape[-2:])
        kspace: Tensor = torch.fft.fft2(_combined(images, self._coil_first()), norm="ortho")
        shape = (*x.shape[: x.ndim - len(self.domain_shape)], *self.range_shape)
        return kspace.mul_(self._phase).view(shape).masked_fill_(self._skipped, 0)

    def _adjoint(self, y: Tensor) -> Tensor:
        kspace = y.masked_fill(self._skipped, 0).conj_physical_().mul_(self._phase)
        images: Tensor = torch.fft.fft2(kspace, norm="ortho").reshape(-1, *y.shape[-3:])
        shape = (*y.shape[: y.ndim - len(self.range_shape)], *self.domain_shape)
        return _seen(images, self._coil_first(), -3).conj_physical_().view(shape)

    def _normal(self, x: Tensor) -> Tensor:
        images = x.reshape(-1, self.sets or 1, *x.shape[-2:])
        work = _normal_lines if self._lines else _normal_points
        return work(images, self._prepared, self._weight).conj_physical_().view(x.shape)


def _combined(images: Tensor, maps: Tensor) -> Tensor:
    """sum_s s_sc x_s: images [n, set, ...] with a coil axis of 1, maps [1 or n, set, ...]."""
    return maps[:, 0] * images[:, 0] if maps.shape[1] == 1 else (maps * images).sum(1)


def _seen(images: Tensor, maps: Tensor, coil: int) -> Tensor:
    """sum_c s_sc z_c for every set: coil images [n, ...], overwritten, maps [1 or n, set, ...]; gives [n, set, ...]."""
    if maps.shape[1] == 1:
        return images.mul_(maps[:, 0]).sum(coil)[:, None]
    return (maps * images[:, None]).sum(coil)


def _normal_lines(images: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """conj(A^H A x), lines: images [n, set, y, x], maps [1 or n, set, y, coil, x], weight [1 or n, 1, 1, x, 2]."""
    n, _, height, width = images.shape
    item = maps.shape[-2] * height * width
    block = _block(images)
    result = torch.empty_like(images)
    for items in _ranges(n, max(1, block // item)):
        own_maps, own_weight = _own(maps, items), _own(weight, items)
        for rows in _ranges(height, max(1, height * block // item)):
            _lines_block(images[items, :, rows], own_maps[:, :, rows], own_weight, result[items, :, rows])
    return result


def _lines_block(images: Tensor, maps: Tensor, weight: Tensor, result: Tensor) -> None:
    kspace = torch.fft.fft(_combined(images.unsqueeze(-2), maps))
    torch.view_as_real(kspace).mul_(weight)
    back = torch.fft.fft(kspace)
    if maps.shape[1] == 1:
        torch.sum(back.mul_(maps[:, 0]), dim=-2, out=result[:, 0])
    else:
        result.copy_(_seen(back, maps, -2))


def _normal_points(images: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """conj(A^H A x), points: images [n, set, y, x], maps [1 or n, set, coil, y, x], weight [1 or n, 1, y, x, 2]."""
    n, n_sets, height, width = images.shape
    n_coils = maps.shape[-3]
    block = _block(images)
    if n * n_coils * height * width <= block:
        return _seen(_filtered(images, maps, weight), maps, -3)
    threads = torch.get_num_threads()
    together = threads * max(1, block // (2 * threads * height * width))  # every thread its coils of a block
    one_by_one = n_sets == 1 and together <= _FEW_COILS
    result = torch.empty_like(images) if one_by_one else torch.zeros_like(images)
    for items in _ranges(n, max(1, block // (n_coils * height * width))):
        own_maps, own_weight, own = _own(maps, items), _own(weight, items), result[items]
        for coils in _ranges(n_coils, together):
            part = own_maps[:, :, coils]
            back = _filtered(images[items], part, own_weight)
            if not one_by_one:
                own += _seen(back, part, -3)
                continue
            for coil in range(back.shape[1]):
                if coils.start + coil == 0:
                    torch.mul(back[:, 0], part[:, 0, 0], out=own[:, 0])
                else:
                    own[:, 0].addcmul_(back[:, coil], part[:, 0, coil])
    return result


def _filtered(images: Tensor, maps: Tensor, weight: Tensor) -> Tensor:
    """Coil images [n, coil, y, x], transformed, weighted and transformed once more."""
    kspace = torch.fft.fft2(_combined(images.unsqueeze(-3), maps))
    torch.view_as_real(kspace).mul_(weight)
    back: Tensor = torch.fft.fft2(kspace)
    return back


def _block(images: Tensor) -> int:
    """Complex numbers that are worked on at a time."""
    return _BLOCK if images.device.type == "cpu" else _DEVICE_BLOCK


def _ranges(size: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _own(x: Tensor, items: slice) -> Tensor:
    """The entries of a batch axis that belong to ``items``; a batch axis of one serves all."""
    return x if x.shape[0] == 1 else x[items]


def _checked_mask(mask: Tensor, maps: Tensor, leading: tuple[int, ...]) -> Tensor:
    """``mask`` with a readout axis of 1 or y; ``ValueError`` when it does not belong to ``maps`` [*leading, ...]."""
    height, width = maps.shape[-2:]
    if mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, got {mask.dtype}")
    if mask.ndim not in (1, 2, 3):
        raise ValueError(f"mask: expected (x,), (y, x) or (batch, 1 or y, x), got shape {list(mask.shape)}")
    mask = mask.to(maps.device, copy=True)
    mask = mask[None] if mask.ndim == 1 else mask
    if mask.shape[-1] != width or mask.shape[-2] not in (1, height):
        raise ValueError(
            f"mask: shape {list(mask.shape)} does not fit maps of {height} x {width} (y, x); give ({width},) for"
            f" lines or ({height}, {width}) for points, the phase encode last"
        )
    if mask.ndim == 3 and leading and mask.shape[0] != leading[0]:
        raise ValueError(f"mask: batch of {mask.shape[0]}, maps: batch of {leading[0]}; give one mask, or one per item")
    return mask


def _phases(maps: Tensor, *, outer: bool) -> Tensor:
    """Phases [y, x] that turn the plain 2-D transform into the centred one, before (inner) or after it (outer)."""
    axes = []
    for n in maps.shape[-2:]:
        half = n // 2
        turns = torch.arange(n, dtype=torch.float64) * half  # in units of 1/n of a turn
        turns = (turns - half * half if outer else turns) % n
        phase = torch.polar(torch.ones(n, dtype=torch.float64), 2 * math.pi * turns / n)
        if n % 2 == 0:
            phase = phase.real.round() + 1j * phase.imag.round()  # exact signs
        axes.append(phase)
    return (axes[0][:, None] * axes[1]).to(device=maps.device, dtype=maps.dtype)


class Coils(LinearOperator):
    """x to s_c x; maps (coil, y, x): (..., y, x) to (..., coil, y, x). Batched maps: (batch, y, x) item by item.

    With ``sets``, maps (set, coil, y, x) or (batch, set, coil, y, x): x_s to sum_s s_sc x_s.
    """

    def __init__(self, maps: Tensor, *, sets: bool = False) -> None:
        rank, axes = (4, "set, coil, y, x") if sets else (3, "coil, y, x")
        if maps.ndim not in (rank, rank + 1) or not maps.is_complex():
            raise ValueError(f"maps: expected complex ({axes}) or (batch, {axes}), got {list(maps.shape)}")
        self.maps: Tensor = maps.detach()
        self._sets, self._leading = sets, maps.ndim == rank
        self.domain_shape = (*maps.shape[:-3], *maps.shape[-2:])
        self.range_shape = (*maps.shape[: maps.ndim - rank], *maps.shape[-3:])

    def forward(self, x: Tensor) -> Tensor:
        """Return s_c x, summed over the sets."""
        check_shape(x, self.domain_shape, leading=self._leading)
        images = self.maps * x.unsqueeze(-3)
        return images.sum(-4) if self._sets else images

    def adjoint(self, y: Tensor) -> Tensor:
        """Return sum_c conj(s_c) y_c, for each set."""
        check_shape(y, self.range_shape, leading=self._leading)
        return (self.maps.conj() * (y.unsqueeze(-4) if self._sets else y)).sum(-3)


class Fourier(LinearOperator):
    """Centred orthonormal 2-D Fourier transform of ``shape`` [..., y, x]; its normal is the identity."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        if len(shape) < 2:
            raise ValueError(f"expected at least two axes, got shape {tuple(shape)}")
        self.domain_shape = self.range_shape = tuple(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return F x."""
        check_shape(x, self.domain_shape)
        return fft2c(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return F^H y."""
        check_shape(y, self.range_shape)
        return ifft2c(y)

    def normal(self, x: Tensor) -> Tensor:
        """Return x."""
        check_shape(x, self.domain_shape)
        return x.clone()


class Sampling(LinearOperator):
    """Keeps the samples where ``mask`` (broadcast to ``shape`` [..., y, x]) is set, zero elsewhere; a projection."""

    def __init__(self, mask: Tensor, shape: tuple[int, ...]) -> None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask: expected bool, got {mask.dtype}")
        try:
            fits = mask.expand(shape).shape == torch.Size(shape)
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"mask: shape {list(mask.shape)} does not broadcast to {list(shape)}")
        self.mask: Tensor = mask.detach().clone()
        self.domain_shape = self.range_shape = tuple(shape)

    def with_mask(self, mask: Tensor) -> "Sampling":
        """The same domain seen through another mask."""
        return Sampling(mask, self.domain_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Return M x."""
        check_shape(x, self.domain_shape)
        return torch.where(self.mask, x, 0)

    def adjoint(self, y: Tensor) -> Tensor:
        """Return M y."""
        return self.forward(y)

    def normal(self, x: Tensor) -> Tensor:
        """Return M x."""
        return self.forward(x)
