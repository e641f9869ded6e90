"""Simulated multicoil scans: a warped head, a contrast, coils, phase and noise. No measurement is copied.

`simulate_scan` makes one scan (one subject, its slices belong together), of the packaged anatomy or of a magnitude
volume; `rsdmri.data.simulate_files` fills folders with them. Everything follows from ``(seed, subject_seed)`` and the
settings.
"""

from dataclasses import dataclass

import numpy as np

from rsdmri.data.anatomy import LEAST_MARGIN, MOST_MARGIN, TISSUES, draw_head, smooth_field
from rsdmri.data.magnitudes import Magnitudes, draw_slices
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

CONTRASTS = ("T1w", "T2w", "PDw", "FLAIR")
ECHOES = ("spin", "gradient", "mixed")

# T1 ms, T2 ms, relative proton density at 3 T. White and grey matter: Wansapura et al. 1999 (JMRI 9:531); muscle:
# Stanisz et al. 2005 (MRM 54:507); fat: Gold et al. 2004 (AJR 183:343); fluid, marrow, bone and skin: rounded from
# reviews, bone being nearly silent at these echo times.
_RELAXATION = {
    "white": (832.0, 79.6, 0.69),
    "grey": (1331.0, 110.0, 0.84),
    "fluid": (4000.0, 1900.0, 1.00),
    "bone": (400.0, 6.0, 0.15),
    "marrow": (380.0, 70.0, 0.45),
    "fat": (371.0, 133.0, 0.90),
    "muscle": (1412.0, 50.0, 0.75),
    "skin": (1100.0, 35.0, 0.70),
}
_FATTY = ("fat", "marrow")
# Power of the template's own T1-weighted detail in each contrast.
_DETAIL_POWER = {"T1w": 0.8, "T2w": -0.8, "PDw": -0.3, "FLAIR": -0.5}


@dataclass(frozen=True)
class SimulatedScan:
    """One simulated scan and the truth behind it; S slices, C coils, y = size rows, x columns (see ``phase_fov``).

    ``kspace = fft2c(maps * image) + noise`` holds exactly up to rounding, in the file's arbitrary units.
    """

    kspace: np.ndarray
    """(S, C, y, x) complex64, fully sampled, noisy."""
    target: np.ndarray
    """(S, y, x) float32: root sum of squares over coils of the noisy full data, fastMRI's ``reconstruction_rss``."""
    image: np.ndarray
    """(S, y, x) complex64, noise-free."""
    maps: np.ndarray
    """(S, C, y, x) complex64, sum over coils of |s|^2 = 1 everywhere, outside the head too."""
    noise_covariance: np.ndarray
    """(C, C) complex128 covariance E[n n^H] of one k-space sample, in the units of ``kspace``."""
    contrast: str
    """One of `CONTRASTS`, or ``volume``."""
    fov_mm: float
    scale: float
    """Units: the 99th percentile of |image| over the scan."""

    def as_scan(self, name: str) -> Scan:
        """A fully sampled scan without maps, its target the noise-free image; what is known of the noise stays out."""
        height, width = self.image.shape[-2:]
        return Scan(
            name=name,
            kspace=self.kspace.astype(np.complex64),
            mask=np.ones((1, width), bool),
            absent=np.zeros(width, bool),
            crop=(height, width),
            prospective=False,
            acquisition=self.contrast,
            target=np.abs(self.image),
            target_source="the noise-free image",
        )


def simulate_scan(
    subject_seed: int,
    *,
    slices: int = 8,
    size: int = 128,
    coils: int = 8,
    noise: float = 0.01,
    contrast: str = "mixed",
    seed: int = 0,
    echo: str = "spin",
    phase_fov: float = 1.0,
    margin: float = LEAST_MARGIN,
    volume: Magnitudes | None = None,
) -> SimulatedScan:
    """Simulate one subject's scan.

    Args:
        subject_seed: which subject; another number is another head, contrast and coil array.
        slices: axial slices over the middle of the brain.
        size: image side in pixels, odd or even.
        coils: receive coils.
        noise: standard deviation of a complex k-space sample, sqrt(E|n|^2) averaged over coils, where the 99th
            percentile of the noise-free image magnitude over the scan is 1 (k-space orthonormal, so the same holds
            per pixel of a coil image). Coils are correlated.
        contrast: one of `CONTRASTS`, or ``mixed``: each once in every four subjects.
        seed: which population.
        echo: of `ECHOES`: ``gradient`` adds the phase that air nearby and fat leave where no pulse refocuses them,
            ``mixed`` to one subject in two.
        phase_fov: field of view along the phase encoding over that along the readout; heads are narrow.
        margin: least share of it left free in front of a packaged head and behind it; each has its own, up to 0.11.
        volume: anatomy and contrast are drawn from it, see `draw_slices`; None: packaged anatomy.

    Raises:
        InputError: a setting out of range.
    """
    check_settings(
        slices=slices,
        size=size,
        coils=coils,
        noise=noise,
        contrast=contrast,
        echo=echo,
        phase_fov=phase_fov,
        margin=margin,
    )
    key = ("simulate", seed, subject_seed)
    contrast = "volume" if volume is not None else _drawn_contrast(contrast, seed, subject_seed)
    tissue, fat, heights, fov = _magnitude(key, contrast, volume, slices, size, margin)
    line = (np.arange(size) - size // 2) / size  # field of view is [-1/2, 1/2)
    height = heights / fov
    maps, shading = _coil_maps(numpy_generator(*key, "coils"), coils, height, line)
    image, scale = _object(key, echo, tissue, fat, shading, height, line)
    image, maps = (_middle(x, phase_columns(size, phase_fov)) for x in (image, maps))

    kspace = _fft2c(maps * image[:, None])
    covariance = _noise_covariance(numpy_generator(*key, "covariance"), coils) * (noise * scale) ** 2
    if noise > 0:
        kspace += _noise(numpy_generator(*key, "noise"), covariance, kspace.shape)
    target = np.sqrt((np.abs(_fft2c(kspace, inverse=True)) ** 2).sum(1))
    return SimulatedScan(kspace, target, image, maps, covariance, contrast, fov, scale)


def _middle(x: np.ndarray, columns: int) -> np.ndarray:
    """The ``columns`` around the centre of the last axis."""
    left = x.shape[-1] // 2 - columns // 2
    return np.ascontiguousarray(x[..., left : left + columns])


def _drawn_contrast(contrast: str, seed: int, subject_seed: int) -> str:
    """``contrast``, or one of `CONTRASTS` for ``mixed``: every four subjects in a row hold each once."""
    if contrast != "mixed":
        return contrast
    shuffled = numpy_generator("simulate", seed, "contrasts", subject_seed // 4).permutation(CONTRASTS)
    return str(shuffled[subject_seed % 4])


def _magnitude(
    key: tuple[object, ...], contrast: str, volume: Magnitudes | None, slices: int, size: int, margin: float
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, float]:
    """All tissue and the fat in it (slice, y, x), heights in mm (slice,), field of view in mm.

    Of the ``volume``, whose fat is not known, or a packaged head.
    """
    if volume is not None:
        drawn = draw_slices(volume, numpy_generator(*key, "head"), slices=slices, size=size)
        return drawn.magnitude, None, drawn.heights, drawn.fov_mm
    head = draw_head(numpy_generator(*key, "head"), slices=slices, size=size, margin=margin)
    signal = _draw_signal(numpy_generator(*key, "contrast"), contrast)
    parts = np.empty((2, slices, size, size), np.float32)
    for index, rendered in enumerate(head.slices):
        for part, own in enumerate((signal, signal * np.isin(TISSUES, _FATTY))):
            fine = np.tensordot(own, rendered.fractions, 1) * rendered.detail ** _DETAIL_POWER[contrast]
            step = len(fine) // size
            parts[part, index] = fine.reshape(size, step, size, step).mean((1, 3))
    return parts[0], parts[1], head.heights, head.fov_mm


def phase_columns(size: int, phase_fov: float) -> int:
    """Columns of a scan of ``size`` rows, whose pixels are square."""
    return round(size * phase_fov)


def check_settings(
    *,
    slices: int,
    size: int,
    coils: int,
    noise: float,
    contrast: str,
    echo: str = "spin",
    phase_fov: float = 1.0,
    margin: float = LEAST_MARGIN,
) -> None:
    """Raise `InputError` for a setting of `simulate_scan` that is out of range."""
    for name, value, low, high in (("slices", slices, 1, 512), ("size", size, 16, 512), ("coils", coils, 1, 128)):
        if not low <= value <= high:
            raise InputError(f"--{name} {value}: must be between {low} and {high}")
    if not 0 <= noise <= 10:
        raise InputError(f"--noise {noise}: must be between 0 and 10 (1 is the brightest tissue)")
    if not 0.5 <= phase_fov <= 1:
        raise InputError(f"--phase-fov {phase_fov}: must be between 0.5 and 1 of the readout's")
    if not 0 <= margin <= MOST_MARGIN:
        raise InputError(f"--margin {margin}: must be between 0 and {MOST_MARGIN} of the field of view")
    if echo not in ECHOES:
        raise InputError(f"--echo {echo}: must be one of {', '.join(ECHOES)}")
    if contrast not in ("mixed", *CONTRASTS):
        raise InputError(f"--contrast {contrast}: must be one of mixed, {', '.join(CONTRASTS)}")


def _draw_signal(generator: np.random.Generator, contrast: str) -> np.ndarray:
    """Signal of each tissue, (tissue,) float32, for one draw of relaxation and sequence times.

    T2w, PDw, half of T1w, spin echo: PD (1 - e^(-TR/T1)) e^(-TE/T2). FLAIR and the other half of T1w, inversion
    recovery: PD |1 - 2 e^(-TI/T1) + e^(-TR/T1)| e^(-TE/T2), with TI at the null of fluid for FLAIR.
    Relaxation times vary by 4 % and densities by 2 % about the literature; fat is partly suppressed.
    """
    t1, t2, density = np.array([_RELAXATION[tissue] for tissue in TISSUES]).T
    t1 = t1 * np.exp(generator.normal(0, 0.04, len(TISSUES)))
    t2 = t2 * np.exp(generator.normal(0, 0.04, len(TISSUES)))
    density = density * np.exp(generator.normal(0, 0.02, len(TISSUES)))
    fat, u, v, w = generator.uniform(size=4)
    inversion = None
    match contrast:
        case "T1w" if w < 0.5:
            repetition, echo = 350 + 250 * u, 8 + 7 * v
        case "T1w":
            repetition, echo, inversion = 1900 + 600 * u, 2.5 + 2 * v, 700 + 400 * w
        case "T2w":
            repetition, echo = 3500 + 2500 * u, 80 + 35 * v
        case "PDw":
            repetition, echo = 2500 + 1500 * u, 14 + 12 * v
        case _:
            repetition, echo = 8000 + 2000 * u, 90 + 40 * v
            fluid = t1[TISSUES.index("fluid")]
            inversion = fluid * (np.log(2) - np.log1p(np.exp(-repetition / fluid))) * (0.94 + 0.06 * w)
    recovery = 1 - np.exp(-repetition / t1)
    if inversion is not None:
        recovery = np.abs(recovery + 2 * (np.exp(-repetition / t1) - np.exp(-inversion / t1)))
    signal: np.ndarray = density * recovery * np.exp(-echo / t2)
    for fatty in _FATTY:
        signal[TISSUES.index(fatty)] *= 0.2 + 0.5 * fat
    return np.asarray(signal, np.float32)


def _coil_maps(
    generator: np.random.Generator, coils: int, height: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Birdcage-like maps (slice, coil, y, x) with unit sum of squares, and the shading they and the transmitter leave.

    Coils sit around the head on an ellipse, alternately high and low, each turned, shifted and phased at random.
    A loop's sensitivity falls as (1 + d^2 / a^2)^(-3/2) and its phase follows the direction to a point behind the loop.
    """
    angle = 2 * np.pi * (np.arange(coils) + generator.uniform(-0.15, 0.15, coils)) / coils
    angle += generator.uniform(0, 2 * np.pi)
    radius = generator.uniform(0.52, 0.60) * (1 + generator.uniform(-0.06, 0.06, coils))
    centre_x, centre_y = 0.88 * radius * np.cos(angle), radius * np.sin(angle)
    centre_z = 0.12 * (-1.0) ** np.arange(coils) + generator.uniform(-0.05, 0.05, coils) + 0.1
    loop = generator.uniform(0.22, 0.38, coils)
    offset = generator.uniform(0, 2 * np.pi, coils)

    column = (slice(None), None, None)
    dx, dy = line[None, None, :] - centre_x[column], line[None, :, None] - centre_y[column]
    dz = height[:, None] - centre_z
    squared = (dx**2 + dy**2)[None] + (dz**2)[..., None, None]
    strength = (1 + squared / loop[:, None, None] ** 2) ** -1.5
    cosine, sine = np.cos(angle)[column], np.sin(angle)[column]
    inward, along = -cosine * dx - sine * dy, cosine * dy - sine * dx
    turn = np.exp(1j * (np.arctan2(along, inward + 0.3) + offset[column]))  # the 0.3 keeps the vortex out of view
    raw = strength * turn[None]
    total = np.sqrt((np.abs(raw) ** 2).sum(1))
    maps = (raw / total[:, None]).astype(np.complex64)
    receive = (total / total.mean()) ** generator.uniform(0.3, 0.7)
    unit = (np.clip(height + 0.5, 0, 1), line + 0.5, line + 0.5)
    transmit = np.exp(0.08 * smooth_field(generator, unit, 4))
    return maps, (receive * transmit).astype(np.float32)


def _phase(generator: np.random.Generator, height: np.ndarray, line: np.ndarray) -> np.ndarray:
    """Unit-magnitude object phase (slice, y, x): a quadratic in position plus a smooth random field of 0.4 rad."""
    z, y, x = np.meshgrid(height, line, line, indexing="ij", sparse=True)
    linear, square = generator.normal(0, 2.0, 3), generator.normal(0, 3.0, 3)
    phase = generator.uniform(-np.pi, np.pi) + linear[0] * x + linear[1] * y + linear[2] * z
    phase = phase + square[0] * x**2 + square[1] * y**2 + square[2] * x * y
    unit = (np.clip(height + 0.5, 0, 1), line + 0.5, line + 0.5)
    return np.asarray(np.exp(1j * (phase + 0.4 * smooth_field(generator, unit, 8))), np.complex64)


def _object(
    key: tuple[object, ...],
    echo: str,
    tissue: np.ndarray,
    fat: np.ndarray | None,
    shading: np.ndarray,
    height: np.ndarray,
    line: np.ndarray,
) -> tuple[np.ndarray, float]:
    """Noise-free image (slice, y, x) complex64 in arbitrary units, and the 99th percentile of its magnitude."""
    phase, shift = _phase_at_echo(key, echo, height, line)
    tissue = tissue if fat is None or shift is None else tissue + (shift - 1) * fat
    image = phase * (tissue * shading)
    scale = float(10.0 ** numpy_generator(*key, "scale").uniform(-6, -3))
    return (image * (scale / np.percentile(np.abs(image), 99))).astype(np.complex64), scale


def _phase_at_echo(
    key: tuple[object, ...], echo: str, height: np.ndarray, line: np.ndarray
) -> tuple[np.ndarray, complex | None]:
    """Object phase (slice, y, x), and exp(i g) of fat where the echo is a gradient's."""
    phase, generator = _phase(numpy_generator(*key, "phase"), height, line), numpy_generator(*key, "echo")
    if echo == "gradient" or (echo == "mixed" and generator.uniform() < 0.5):
        dephased, shift = _unrefocused(generator, height, line)
        return phase * dephased, shift
    return phase, None


def _unrefocused(generator: np.random.Generator, height: np.ndarray, line: np.ndarray) -> tuple[np.ndarray, complex]:
    """Phase exp(i f) (slice, y, x) of a gradient echo near air, and exp(i g) of its fat.

    f is a sum over the frontal sinus, the two ears and a place anywhere of A (1 + d^2 / w^2)^(-3/2), d the distance,
    30 (frontal) or 10 rad (standard deviation of A), and of what the shim left, 3 rad; all times an echo time of 0.2 to
    2. Half of the heads have places, of a twentieth of their area, whose signal is 7 or more lines from the centre of
    k-space. g is anywhere in the circle.
    """
    places = [(0.0, -0.34, 0.0, 30.0), (0.3, 0.02, -0.08, 10.0), (-0.3, 0.02, -0.08, 10.0)]
    places.append((*generator.uniform(-0.3, 0.3, 2), generator.uniform(-0.1, 0.2), 10.0))
    z, y, x = np.meshgrid(height, line, line, indexing="ij", sparse=True)
    echo = generator.uniform(0.2, 2.0)
    field = 3 * smooth_field(generator, (np.clip(height + 0.5, 0, 1), line + 0.5, line + 0.5), 5)
    for right, down, up, amplitude in places:
        at = np.array([right, down, up]) + generator.normal(0, [0.04, 0.04, 0.05])
        squared = (x - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2]) ** 2
        field = field + generator.normal(0, amplitude) * (1 + squared / generator.uniform(0.1, 0.25) ** 2) ** -1.5
    shift = complex(np.exp(1j * generator.uniform(-np.pi, np.pi)))
    return np.exp(1j * echo * field).astype(np.complex64), shift


def _noise_covariance(generator: np.random.Generator, coils: int) -> np.ndarray:
    """Random covariance (coil, coil) complex128, mean of its diagonal 1: neighbours correlated, gains 20 % apart."""
    index = np.arange(coils)
    apart = np.minimum(np.abs(index[:, None] - index), coils - np.abs(index[:, None] - index))
    factor = generator.standard_normal((coils, coils)) + 1j * generator.standard_normal((coils, coils))
    wishart = factor @ factor.conj().T / (2 * coils)
    mixed = np.exp(-apart / 0.8) + 0.15 * wishart * np.exp(-apart / 2.0)
    gain = np.exp(generator.normal(0, 0.2, coils))
    covariance = gain[:, None] * mixed * gain
    return np.asarray(covariance / np.trace(covariance).real * coils)


def _noise(generator: np.random.Generator, covariance: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Circular complex Gaussian noise of ``shape`` (slice, coil, y, x) with the given covariance over coils."""
    root = np.linalg.cholesky(covariance / 2).astype(np.complex64)
    white = np.empty(shape, np.complex64)
    white.real = generator.standard_normal(shape, np.float32)
    white.imag = generator.standard_normal(shape, np.float32)
    mixed = root @ white.reshape(shape[0], shape[1], -1)
    return mixed.reshape(shape)


def _fft2c(array: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Centred orthonormal 2-D FFT over the last two axes, complex64 in and out."""
    from scipy import fft

    transform = fft.ifft2 if inverse else fft.fft2
    shifted = fft.ifftshift(array, axes=(-2, -1))
    return np.asarray(fft.fftshift(transform(shifted, norm="ortho", overwrite_x=True), axes=(-2, -1)))
