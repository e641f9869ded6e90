"""Training data: acquired samples of undersampled slices, and nothing else.

The mask of a fully sampled file is drawn once per (file, slice) from a stored seed and never changes; what it leaves
out never leaves the reader (`SliceReader`). Coil maps and scale come from the acquired centre alone. Batches depend on
(seed, step) only, so that a resumed run sees what an uninterrupted one would have seen.

Slices are read in this process, not in a guarded child (`rsdmri.data.sandbox`), because training reads them many times:
a training set is to be known beforehand, by the hashes of its manifest. The checks of `hdf5` hold all the same.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rsdmri import __version__
from rsdmri.data.coverage import Coverage, cover
from rsdmri.data.fastmri import ScanShape, scan_shape
from rsdmri.data.manifest import ManifestEntry
from rsdmri.data.remote import Location, name_of
from rsdmri.data.slice_cache import SliceCache, entry_key
from rsdmri.data.slice_reader import SliceReader
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.physics.noise import NoiseEstimate, combine_estimates, estimate_covariance
from rsdmri.physics.prepare import PreparedSlice, prepare_known, prepare_slice, scale_slice
from rsdmri.runtime import numpy_generator

_LEAST_ACS = 4  # lines that coil maps need
_CACHE_VERSION = 2  # of what `prepare_slice` computes
NOISE_SLICES = 8  # of a scan that its noise estimate rests on, at most

Shape = tuple[int, int, int, int, bool]  # coils, y, x, rows of the mask, prospective


@dataclass(frozen=True)
class MaskLaw:
    """How fully sampled slices are undersampled.

    Attributes:
        family: see `rsdmri.physics.masks`.
        acceleration: nominal R.
        center_fraction: share of the lines in the ACS; None: 0.32/R, but at least 8 lines where that leaves half of
            the acquired lines for the rest.
        further_drop: lines that the further mask drops; None: about W/R - W/(R+1).
        seed: of the masks.
        shared: all slices of a width have the same mask.
        gaps: masks may leave lines untaught; `check` lets them pass.
    """

    family: str = "random"
    acceleration: float = 4.0
    center_fraction: float | None = None
    further_drop: int | None = None
    seed: int = 0
    shared: bool = False
    gaps: bool = False

    def fraction(self, width: int) -> float:
        """ACS share at matrix width ``width``."""
        if self.center_fraction is not None:
            return self.center_fraction
        return masks.center_fraction(width, self.acceleration)

    def centre(self, width: int) -> int | None:
        """Lines that scale and coil maps come from; None: all of the centre that a mask acquired.

        Complete k-space with a ``center_fraction`` is seen in the units that undersampled scans with it have.
        """
        if self.acceleration > 1 or self.center_fraction is None:
            return None
        return max(_LEAST_ACS, round(self.center_fraction * width))

    def drop(self, width: int) -> int:
        """Lines that further masks drop."""
        return masks.further_drop(width, self.acceleration) if self.further_drop is None else self.further_drop

    def check(self, width: int, coils: int, absent: Tensor | None = None, *, ambient: bool = True) -> None:
        """Raise `InputError` where training on these masks would fail.

        That is for an acceleration that is none, too few centre lines for coil maps, or, in ``ambient`` training,
        further masks after which some line that is not ``absent``, bool ``(x,)``, can never be acquired.
        """
        lines = masks.check_acceleration(width, self.acceleration, self.fraction(width))
        least = _LEAST_ACS if coils > 1 else 1
        if self.acceleration > 1 and lines < least:
            raise InputError(
                f"acceleration {self.acceleration:g}: leaves {lines} centre (ACS) lines of {width}, coil maps need "
                f"{least}; use at most {width / (2 * least):g}, or a larger acquisition.center_fraction"
            )
        if self.gaps or not ambient:
            return
        try:
            law = masks.SamplingLaw(self.family, (1, width), self.acceleration, self.fraction(width))
            law.check_ambient(self.drop(width), kept=law.acs(), absent=absent)
        except InputError as error:
            cure = "" if self.family == "random" else "; train with --set acquisition.mask=random, or --equivariance"
            raise InputError(f"mask family {self.family}: {error}{cure}") from None

    def draw(self, width: int, file: str, index: int) -> Tensor:
        """Mask of slice ``index`` of the file called ``file``, bool ``(1, x)``."""
        if self.acceleration == 1:
            return torch.ones(1, width, dtype=torch.bool)
        return masks.draw_mask(
            self.family,
            width,
            acceleration=self.acceleration,
            center_fraction=self.fraction(width),
            key=("mask", self.seed) if self.shared else ("mask", self.seed, file, index),
        ).reshape(1, width)

    def inclusion(self, width: int) -> Tensor:
        """Probability that each line is acquired, ``(x,)``."""
        if self.acceleration == 1:
            return torch.ones(width)
        return masks.inclusion(self.family, width, acceleration=self.acceleration, center_fraction=self.fraction(width))


@dataclass(frozen=True)
class SliceRef:
    """One slice of one file: the file's shape, the slice's index and its fixed mask, bool ``(1 or y, x)``."""

    file: ScanShape
    path: Location
    index: int
    mask: Tensor
    contrast: str = ""
    """What the manifest says of it."""


class TrainingSlices:
    """Prepared slices of a set of scans, grouped by (coils, y, x) and kind of mask.

    Args:
        entries: scans of the training split.
        law: masks of fully sampled files; prospectively undersampled files keep theirs.
        cache_bytes: prepared slices kept in memory.
        disk: where coil maps and scales are kept between runs; None: nowhere.
        workers: threads that `prefetch` prepares slices with.
        ambient: lines are learnt from those of other masks, so that each must be acquired somewhere.
        advance: called after each scan that was looked at.
    """

    def __init__(
        self,
        entries: Sequence[ManifestEntry],
        law: MaskLaw,
        cache_bytes: float = 4e9,
        *,
        disk: SliceCache | None = None,
        workers: int = 0,
        ambient: bool = True,
        advance: Callable[[], None] = lambda: None,
    ):
        if not entries:
            raise InputError("no scans to train on; check the manifest's split column or give another --data")
        self.law = law
        self.left_out: frozenset[int] = frozenset()  # slices that are not drawn any more
        self.slices: list[SliceRef] = []
        self.buckets: OrderedDict[Shape, list[int]] = OrderedDict()
        self._files: dict[Location, list[int]] = {}
        for entry in entries:
            self._add(entry.path, entry.contrast, ambient)
            advance()
        self._reader, self._disk = SliceReader(), disk
        self._local = threading.local()  # the buffer of each thread
        self._noise: dict[Location, NoiseEstimate] = {}
        self._noise_lock = threading.Lock()
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, "slices", torch.set_flush_denormal, (True,)) if workers else None
        self._pending: dict[int, Future[PreparedSlice]] = {}
        self._acs: dict[tuple[int, ...], tuple[slice, slice]] = {}
        self._drops: dict[tuple[int, ...], int] = {}
        self._cache: OrderedDict[int, PreparedSlice] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._cached = 0.0

    def _add(self, path: Location, contrast: str, ambient: bool) -> None:
        shape = scan_shape(path)
        if not shape.prospective:
            self.law.check(shape.x, shape.coils, torch.as_tensor(shape.absent), ambient=ambient)
        for index in range(shape.slices):
            mask = shape.mask if shape.prospective else self.law.draw(shape.x, name_of(path), index)
            mask = torch.as_tensor(np.asarray(mask)).reshape(-1, shape.x)
            mask = mask & ~torch.as_tensor(shape.absent)
            kind = (shape.coils, shape.y, shape.x, len(mask), shape.prospective)
            self.buckets.setdefault(kind, []).append(len(self.slices))
            self._files.setdefault(path, []).append(len(self.slices))
            self.slices.append(SliceRef(shape, path, index, mask, contrast))

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, item: int) -> PreparedSlice:
        """Prepared slice ``item``, from memory when it is there."""
        if item in self._cache:
            self._cache.move_to_end(item)
            return self._cache[item]
        pending = self._pending.pop(item, None)
        prepared = self._prepared(item) if pending is None else pending.result()
        size = 8.0 * (prepared.kspace.numel() + prepared.maps.numel())
        if self._cached + size <= self._cache_bytes:
            self._cache[item] = prepared
            self._cached += size
        return prepared

    def prefetch(self, items: Sequence[int]) -> None:
        """Begin to prepare ``items`` on the worker threads; what was begun before and is not among them is dropped."""
        if self._pool is None:
            return
        for item in self._pending.keys() - set(items):
            self._pending.pop(item).cancel()
        threads = torch.get_num_threads()  # the order of sums depends on it: the same as in the calling thread
        for item in items:
            if item not in self._cache and item not in self._pending:
                self._pending[item] = self._pool.submit(self._prepared, item, threads)

    def _prepared(self, item: int, threads: int | None = None) -> PreparedSlice:
        if threads is not None and torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        ref = self.slices[item]
        noise = self.noise_of(ref.path)
        kspace, centre = self._read(ref), self.law.centre(ref.file.x) if not ref.file.prospective else None
        if self._disk is None:
            return prepare_slice(kspace, ref.mask, noise=noise, centre=centre)
        key = entry_key(
            *("slice", _CACHE_VERSION, __version__, torch.__version__, torch.get_num_threads(), tuple(kspace.shape)),
            centre,
            *(x.contiguous().numpy().tobytes() for x in (ref.mask, noise.covariance)),
            kspace.numpy().data,
        )
        known = self._disk.load(key)
        if known is not None:
            scale = float(known.pop("scale"))
            return prepare_known(kspace, ref.mask, noise=noise, scale=scale, **known)
        prepared = prepare_slice(kspace, ref.mask, noise=noise, centre=centre)
        scale_tensor = torch.tensor(prepared.scale, dtype=torch.float64)
        self._disk.store(key, {"maps": prepared.maps, "intensity": prepared.intensity, "scale": scale_tensor})
        return prepared

    def scaled(self, item: int) -> tuple[Tensor, Tensor, float]:
        """K-space, mask and noise level of a prepared slice, without waiting for coil maps."""
        if item in self._cache:
            known = self._cache[item]
            return known.kspace, known.mask, known.sigma_y
        ref = self.slices[item]
        noise = self.noise_of(ref.path)
        centre = None if ref.file.prospective else self.law.centre(ref.file.x)
        return scale_slice(self._read(ref), ref.mask, noise=noise, centre=centre)

    def _read(self, ref: SliceRef) -> Tensor:
        """Acquired samples, in a buffer that the next call of the same thread fills again."""
        shape = (ref.file.coils, ref.file.y, ref.file.x)
        buffer: np.ndarray | None = getattr(self._local, "buffer", None)
        if buffer is None or buffer.shape != shape:
            buffer = self._local.buffer = np.empty(shape, np.complex64)
        return torch.from_numpy(self._reader.read(ref.path, ref.index, ref.mask.numpy(), out=buffer))

    def noise_of(self, path: Location) -> NoiseEstimate:
        """Noise covariance of a scan, from the acquired samples of its first slices."""
        with self._noise_lock:
            if path not in self._noise:
                refs = [self.slices[item] for item in self._files[path]][:NOISE_SLICES]
                found = [estimate_covariance(self._read(ref)[None], ref.mask) for ref in refs]
                self._noise[path] = combine_estimates(found)
            return self._noise[path]

    def prepare(self, advance: Callable[[], None] = lambda: None, share: slice = slice(None)) -> None:
        """Prepare the slices of ``share`` until they fill the memory given to them; ``advance`` after each.

        In sets that fit, damaged files are found before training; the rest of larger ones is prepared as it is drawn.
        """
        items = range(len(self))[share]
        for number, item in enumerate(items):
            if self._pool is not None:
                self.prefetch(items[number : number + 2 * self._workers])
            self[item]
            advance()
            if item not in self._cache:
                break

    def acs_of(self, ref: SliceRef) -> int | tuple[slice, slice]:
        """The centre that every slice with ``ref``'s kind of mask acquired: lines, or slices of measured masks."""
        if not ref.file.prospective:
            return round(self.law.fraction(ref.file.x) * ref.file.x)
        shape = tuple(ref.mask.shape)
        if shape not in self._acs:
            self._acs[shape] = masks.acs_block(torch.stack([r.mask for r in self._like(ref)]))
        return self._acs[shape]

    def commonest(self) -> list[int]:
        """The largest group of slices that may share a batch."""
        return max(self._groups(), key=len)

    def further_drop(self, ref: SliceRef) -> int:
        """Lines (points of 2-D masks) that the further masks of ``ref`` and its like drop."""
        if self.law.further_drop is not None or not ref.file.prospective:
            return self.law.drop(ref.mask.numel())
        shape = tuple(ref.mask.shape)
        if shape not in self._drops:
            share = float(torch.stack([r.mask for r in self._like(ref)]).float().mean())
            self._drops[shape] = masks.further_drop(ref.mask.numel(), 1 / share)
        return self._drops[shape]

    def _like(self, ref: SliceRef) -> list[SliceRef]:
        """Prospective slices with masks of the shape of ``ref``'s."""
        return [r for r in self.slices if r.mask.shape == ref.mask.shape and r.file.prospective]

    def draw_items(self, batch: int, *key: object) -> list[int]:
        """Slices of one batch, all of one shape, determined by ``key``; without repeats where there are enough."""
        rng = numpy_generator("batch", *key)
        groups = self._groups()
        weights = np.array([len(group) for group in groups], dtype=float)
        group = groups[rng.choice(len(groups), p=weights / weights.sum())]
        return [group[i] for i in rng.choice(len(group), batch, replace=len(group) < batch)]

    def _groups(self) -> list[list[int]]:
        """Slices that may share a batch, together; those left out excepted.

        Errors:
            InputError: all are left out.
        """
        if not self.left_out:
            return list(self.buckets.values())
        groups = [[item for item in group if item not in self.left_out] for group in self.buckets.values()]
        if not any(groups):
            raise InputError("no slice is left to train on: training diverged on every one; check the scans")
        return [group for group in groups if group]

    def close(self) -> None:
        """End the worker threads without waiting for what they have not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def sigma_data(self, most: int = 256) -> float:
        """Standard deviation of the images per real channel, from acquired samples and sampling density.

        sd^2 = mean over slices of (1 / 2 pixels) sum_k |y_k|^2 / P(k acquired), less the noise.
        """
        count = min(most, len(self))
        powers = []
        for item in [k * len(self) // count for k in range(count)]:
            ref = self.slices[item]
            kspace, mask, sigma_y = self.scaled(item)
            density = self._density(ref).clamp_min(1e-6)
            samples = kspace.abs().square().sum(0)
            lines = torch.where(mask, (samples - sigma_y**2 * len(kspace)) / density, 0)
            powers.append(float(lines.sum() / (2 * samples.numel())))
        return max(sum(powers) / count, 1e-8) ** 0.5

    def coverage(self) -> list[Coverage]:
        """What was acquired, for each shape of masks, those of the scans and drawn ones apart."""
        kinds: OrderedDict[tuple[int, int, bool], list[SliceRef]] = OrderedDict()
        for ref in self.slices:
            height, width = ref.mask.shape
            kinds.setdefault((height, width, ref.file.prospective), []).append(ref)
        return [
            cover(
                [(ref.path, ref.mask, torch.as_tensor(ref.file.absent)) for ref in refs],
                acs=self.acs_of(refs[0]),
                drop=self.further_drop(refs[0]),
                given=prospective or self.law.shared,
                judged=self.law.shared or (prospective and (height, width, False) not in kinds),
            )
            for (height, width, prospective), refs in kinds.items()
        ]

    def _density(self, ref: SliceRef) -> Tensor:
        if not ref.file.prospective:
            return self.law.inclusion(ref.file.x)
        return torch.stack([r.mask for r in self._like(ref)]).float().mean(dim=0)
