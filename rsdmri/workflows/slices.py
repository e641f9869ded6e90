"""The slices of one scan on their way from acquired samples to images."""

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.physics import classical
from rsdmri.physics.fourier import rss
from rsdmri.physics.map_quality import map_quality
from rsdmri.physics.masks import acs_block
from rsdmri.physics.noise import NoiseEstimate, estimate_covariance
from rsdmri.physics.prepare import PreparedSlice, prepare_slice
from rsdmri.physics.sense import Sense, sense
from rsdmri.priors import Prior
from rsdmri.reconstruction.amortised import shared_estimate, sparse_change
from rsdmri.reconstruction.consistency import Measurements
from rsdmri.reconstruction.posterior import ambient_one_step, draw
from rsdmri.reconstruction.settings import (
    AdpsSettings,
    AmortisedSettings,
    DrawSettings,
    LatentSettings,
    MethodSettings,
    OneStepSettings,
    SenseSettings,
    TvSettings,
    WaveletSettings,
    method_settings,
)
from rsdmri.reconstruction.uncertainty import summarise
from rsdmri.runtime import torch_generator
from rsdmri.workflows.conditions import scan_conditions

_COPIES = 8  # of k-space that a method holds at once, roughly
_BATCH_BYTES, _DEVICE_BATCH_BYTES = 64 << 20, 2 << 30
_DRAW_BYTES, _DEVICE_DRAW_BYTES = (
    128 << 20,
    8 << 30,
)  # of the draws that go through the network together; caches are small
_PIXEL_BYTES, _GRADIENT_PIXEL_BYTES = 2 << 10, 8 << 10  # of a network per pixel, without and with its gradient


class SliceWork:
    """The slices of one scan on their way from k-space to images."""

    def __init__(
        self,
        scan: Scan,
        mask: Tensor,
        method: str,
        prior: Prior | None,
        samples: int,
        seed: int,
        device: torch.device,
        sets: int | None = None,
        settings: MethodSettings | None = None,
        watch: Callable[[int, PreparedSlice, Tensor], None] | None = None,
    ):
        slices, _, height, width = scan.kspace.shape
        self.scan, self.mask, self.method, self.prior = scan, mask, method, prior
        self.settings = settings or method_settings(method)
        self.samples = samples if isinstance(self.settings, DrawSettings) else 1
        self.seed, self.device, self.sets = seed, device, sets
        self.noise = scan_noise(scan, mask)
        self.images = np.zeros((slices, height, width), np.complex64)
        self.volume = np.zeros((slices, *scan.crop), np.float32)
        self.std = np.zeros_like(self.volume) if self.samples > 1 else None
        self.quantiles = np.zeros((3, *self.volume.shape), np.float32) if self.samples > 1 else None
        self.watch, self.watched = watch, 0.0  # is given each slice's draws; seconds that it took
        self.scale, self.sigma_y = np.ones(slices), np.zeros(slices)
        self.blank: list[int] = []
        self.notes: list[str] = []

    def run(self, advance: Callable[[int], None]) -> None:
        """Reconstruct all slices."""
        for batch in self._batches():
            prepared = {index: item for index in batch if (item := self._prepare(index)) is not None}
            if prepared:
                self._reconstruct(prepared)
            advance(len(batch))
        bad = sorted({int(index) for index in np.argwhere(~np.isfinite(self.volume))[:, 0]})
        if bad:
            raise InputError(
                f"{self.method} gave NaN or infinite values in slices {', '.join(map(str, bad[:8]))}; the prior is"
                " damaged or far from this scan: try another --prior or --method l1-wavelet"
            )

    def warnings(self) -> tuple[str, ...]:
        """What happened on the way."""
        notes = list(self.notes)
        if self.blank:
            notes.append(
                f"nothing but zeros acquired in slices {', '.join(map(str, self.blank))}: their images are zero"
            )
        return tuple(notes)

    def _batches(self) -> Iterator[range]:
        """Slices to hold at once, bounded by their bytes."""
        count, item = len(self.volume), self.scan.kspace[0].nbytes * _COPIES
        limit = _BATCH_BYTES if self.device.type == "cpu" else _DEVICE_BATCH_BYTES
        step = max(1, limit // item)
        yield from (range(start, min(start + step, count)) for start in range(0, count, step))

    def _prepare(self, index: int) -> PreparedSlice | None:
        """Whitened, scaled slice with coil maps; None where nothing but zeros was acquired."""
        kspace = torch.where(self.mask, torch.from_numpy(self.scan.kspace[index]), 0)
        if not bool((kspace != 0).any()):
            self.blank.append(index)
            return None
        maps = None if self.scan.maps is None else torch.from_numpy(self.scan.maps[index])
        prepared = prepare_slice(kspace, self.mask, noise=self.noise, maps=maps, sets=self.sets)
        if maps is not None and index == len(self.volume) // 2:
            self._judge(prepared)
        return prepared

    def _judge(self, prepared: PreparedSlice) -> None:
        """Note what is wrong with maps that were given."""
        acs = acs_block(prepared.mask)
        quality = map_quality(prepared.maps, prepared.kspace, acs, sigma_y=prepared.sigma_y)
        if quality.grade != "good":
            self.notes.append(f"coil maps, middle slice: {quality.verdict}")

    def _reconstruct(self, prepared: dict[int, PreparedSlice]) -> None:
        items = list(prepared.values())
        maps = torch.stack([p.maps for p in items]).to(self.device)
        operator = sense(maps, self.mask, sets=self.sets is not None)
        kspace = torch.stack([p.kspace for p in items]).to(self.device)
        sigma_y = torch.tensor([p.sigma_y for p in items], device=self.device)
        if isinstance(self.settings, DrawSettings):
            draws = self._draws(list(prepared), operator, kspace, sigma_y)
        else:
            draws = self._solve(operator, kspace, sigma_y)[:, None]
        for position, (index, item) in enumerate(prepared.items()):
            self._keep(index, item, draws[position].cpu())

    def _keep(self, index: int, item: PreparedSlice, draws: Tensor) -> None:
        """Keep what ``draws`` (draw, y, x), with sets of maps (draw, set, y, x), of slice ``index`` say."""
        if self.watch is not None:
            started = time.monotonic()
            self.watch(index, item, draws)
            self.watched += time.monotonic() - started
        found = summarise(draws)
        image, magnitude = found.mean, found.mean.abs() * item.intensity
        if self.sets is not None:  # of all sets together; the complex image is that of the first
            image, magnitude = image[0], rss(magnitude)
        self.images[index] = image.numpy()
        self.scale[index], self.sigma_y[index] = item.scale, item.sigma_y
        self.volume[index] = cropped(magnitude, self.scan.crop)
        if self.std is not None and found.std is not None:
            self.std[index] = cropped(found.std * item.intensity, self.scan.crop)
        if self.quantiles is not None and found.quantiles is not None:
            for level, quantile in enumerate(found.quantiles):
                self.quantiles[level, index] = cropped(quantile * item.intensity, self.scan.crop)

    def _solve(self, operator: Sense, kspace: Tensor, sigma_y: Tensor) -> Tensor:
        match self.settings:
            case SenseSettings() as s:
                strength = classical.sense_strength(sigma_y, s.factor)
                return classical.sense_cg(operator, kspace, strength=strength, iterations=s.iterations)
            case WaveletSettings() as s:
                return self._l1_wavelet(operator, kspace, sigma_y, s)
            case TvSettings() as s:
                strength = classical.tv_strength(sigma_y, s.factor, s.floor)
                return classical.tv(operator, kspace, strength=strength, iterations=s.iterations)
            case OneStepSettings() as s:
                conditions = self._conditions(len(kspace))
                return ambient_one_step(_given(self.prior), Measurements(operator, kspace, sigma_y), conditions, s)
            case _:
                return classical.zero_filled(operator, kspace)

    def _conditions(self, count: int) -> Tensor | None:
        """What the scan says, where the prior asks for it."""
        if not _given(self.prior).config.network.conditions:
            return None
        return scan_conditions(self.scan.header, self.scan.acquisition).to(self.device).expand(count, -1)

    def _l1_wavelet(self, operator: Sense, kspace: Tensor, sigma_y: Tensor, settings: WaveletSettings) -> Tensor:
        shifts = torch_generator("l1-wavelet", self.seed, self.scan.name)  # so that the size of a batch changes nothing
        strength = classical.l1_strength(sigma_y, settings.factor, settings.floor)
        return classical.l1_wavelet(
            operator, kspace, strength=strength, iterations=settings.iterations, generator=shifts
        )

    def _start(self, start: str, operator: Sense, kspace: Tensor, sigma_y: Tensor) -> Tensor | None:
        """Image that the draws of each slice start from; None for noise."""
        if start == "noise":
            return None
        if start == "sense":
            return classical.sense_cg(operator, kspace, strength=classical.sense_strength(sigma_y))
        return self._l1_wavelet(operator, kspace, sigma_y, WaveletSettings())

    def _draws(self, indices: list[int], operator: Sense, kspace: Tensor, sigma_y: Tensor) -> Tensor:
        """Draws ``(slice, draw, y, x)``; each depends on seed, scan, slice and number alone, whatever else is drawn."""
        settings = self.settings
        if not isinstance(settings, DrawSettings):
            raise ValueError(f"settings: {type(settings).__name__} are of no method that draws")
        if paired := isinstance(settings, AmortisedSettings):
            measured = Measurements(operator, kspace, sigma_y)
            known = self._conditions(len(indices))
            start = shared_estimate(_given(self.prior).posterior, measured, known, settings)
        else:
            start = self._start(settings.start, operator, kspace, sigma_y)
        pairs = [(position, number) for position in range(len(indices)) for number in range(self.samples)]
        drawn = []
        for chunk in chunks(pairs, self._at_once(settings, kspace)):
            rows = torch.tensor([position for position, _ in chunk], device=self.device)
            key = self.method, self.seed, self.scan.name
            numbers = [number // 2 if paired else number for _, number in chunk]
            streams = [
                torch_generator(*key, indices[at], number, device=self.device)
                for (at, _), number in zip(chunk, numbers, strict=True)
            ]
            drawn.append(
                draw(
                    _given(self.prior),
                    Measurements(sense(operator.maps[rows], self.mask), kspace[rows], sigma_y[rows]),
                    settings=settings,
                    generators=streams,
                    start=None if start is None else start[rows],
                    conditions=self._conditions(len(chunk)),
                    mirrored=[paired and number % 2 == 1 for _, number in chunk],
                ).cpu()
            )
        draws = torch.cat(drawn).unflatten(0, (len(indices), self.samples))
        if isinstance(settings, AmortisedSettings) and settings.agree:
            mean = draws.mean(dim=1).to(self.device)
            change = sparse_change(Measurements(operator, kspace, sigma_y), mean, settings)
            draws = draws + change[:, None].cpu()
        return draws

    def _at_once(self, settings: DrawSettings, kspace: Tensor) -> int:
        """Draws that go through the network together."""
        limit = _DRAW_BYTES if self.device.type == "cpu" else _DEVICE_DRAW_BYTES
        pixel = _GRADIENT_PIXEL_BYTES if isinstance(settings, (AdpsSettings, LatentSettings)) else _PIXEL_BYTES
        return max(1, limit // (kspace[0].nbytes * _COPIES + pixel * kspace[0, 0].numel()))


def chunks(items: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    """``items`` in runs of at most ``size``."""
    yield from (items[first : first + size] for first in range(0, len(items), size))


def scan_noise(scan: Scan, mask: Tensor) -> NoiseEstimate:
    """Noise covariance that the scan brings, or one estimated from its samples under ``mask``."""
    if scan.noise_cov is not None:
        return NoiseEstimate(torch.from_numpy(scan.noise_cov), 0, "the scan's file")
    return estimate_covariance(torch.from_numpy(scan.kspace), mask)


def _given(prior: Prior | None) -> Prior:
    if prior is None:
        raise InputError("this method needs a prior; give --prior PATH")
    return prior


def cropped(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Centre of an image (y, x) as fastMRI crops it, float32."""
    top, left = ((n - m) // 2 for n, m in zip(image.shape, size, strict=True))
    return image[top : top + size[0], left : left + size[1]].numpy().astype(np.float32)
