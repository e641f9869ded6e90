"""A sampling law and the masks that it draws."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsdmri.errors import InputError
from rsdmri.physics.masks import ambient
from rsdmri.physics.masks.content import describe
from rsdmri.physics.masks.density import INDEPENDENT_FAMILIES, Falloff, independent_density
from rsdmri.physics.masks.fastmri import GRID_FAMILIES, Grid, acs_count
from rsdmri.physics.masks.further import further_mask
from rsdmri.physics.masks.lines import check_family, draw_mask, inclusion, key_stream
from rsdmri.physics.masks.points import POINT_FAMILIES, acs_positions, check_points, lattice, lattice_steps
from rsdmri.physics.masks.poisson import poisson_density, poisson_disc


@dataclass(frozen=True)
class SamplingLaw:
    """How masks of one shape are drawn: lines (shape (1, x), see ``FAMILIES``) or points ((y, x), ``POINT_FAMILIES``).

    ``acceleration`` is the number of positions over the expected number of acquired ones, ACS included; in
    ``equispaced``, ``magic`` and ``caipi`` it is that of the grid alone, and ``magic_fraction`` rounds its spacing.
    ``center_fraction`` is the share of each undersampled axis in the ACS, ``elliptical`` cuts the corners of a point
    mask's. ``caipi``: ``steps`` (R_y, R_x) and ``shift`` along x from one acquired row to the next.
    Raises ``InputError`` for a family, shape or acceleration that cannot be.
    """

    family: str
    shape: tuple[int, int]
    acceleration: float
    center_fraction: float = 0.08
    falloff: Falloff = field(default_factory=Falloff)
    elliptical: bool = False
    steps: tuple[int, int] | None = None
    shift: int | None = None

    def __post_init__(self) -> None:
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise InputError(f"shape {self.shape}: expected (1, x) for lines or (y, x) for points")
        if self.lines:
            check_family(self.family)
        elif self.family not in POINT_FAMILIES:
            raise InputError(f"mask family {self.family!r}: expected one of {', '.join(POINT_FAMILIES)} for points")
        acs_count(self.shape[1], self.acceleration, self.center_fraction)
        if self.family == "caipi":
            lattice_steps(self.acceleration, self.steps, self.shift)
        elif not self.lines:
            check_points(self.shape, self.acceleration, self._acs())
        else:
            self._line_density()

    @property
    def lines(self) -> bool:
        """Whether whole lines are drawn, not points."""
        return self.shape[0] == 1

    @property
    def density_exact(self) -> bool:
        """Whether :meth:`density` is a closed form; that of ``poisson`` is estimated from repeated draws."""
        return self.family != "poisson" or self.acceleration == 1

    def acs(self) -> Tensor:
        """The ACS block, bool of ``shape``."""
        return torch.from_numpy(self._acs())

    def draw(self, *key: object) -> "Mask":
        """The mask of ``key``, e.g. (file, slice, seed): always the same for the same key.

        Raises ``InputError`` where a Poisson disc cannot come within 2 % of the acceleration.
        """
        acquired = self._draw(key)
        return Mask(acquired, torch.zeros(self.shape, dtype=torch.bool), self)

    def density(self) -> Tensor:
        """Probability that each position is acquired, float64 of ``shape``."""
        if self.acceleration == 1:
            return torch.ones(self.shape, dtype=torch.float64)
        if self.lines:
            return self._line_density()
        acs = self._acs()
        if self.family == "poisson":
            return torch.from_numpy(poisson_density(self.shape, self.acceleration, acs.tobytes(), self.falloff).copy())
        if self.family == "caipi":
            return torch.from_numpy(np.where(acs, 1, 1 / self.acceleration))
        return torch.from_numpy(self._independent(acs).copy())

    def kept(self) -> Tensor:
        """What further masks keep, bool of ``shape``: all that is acquired for sure; the ACS where that is everything.

        Dropping sure positions could show that nothing else was acquired (see `check_ambient`).
        """
        sure = self.density() == 1 if self.density_exact else self.acs()
        return self.acs() if bool(sure.all()) else sure

    def check_ambient(self, drop: int, *, kept: Tensor | None = None, absent: Tensor | None = None) -> None:
        """Raise ``InputError`` unless the ambient loss on masks of this law has E[x | u, M~] as its minimiser.

        That needs a positive probability of each position that is not ``absent`` given the further mask M~, which
        keeps ``kept`` (default: :meth:`kept`) and drops ``drop`` others. Independent families satisfy it where their
        density is positive; grids and Poisson discs only where M~ shows none of them.
        """
        inner = (self.kept() if kept is None else kept).expand(self.shape).numpy()
        present = np.ones(self.shape, dtype=np.bool_) if absent is None else (~absent).expand(self.shape).numpy()
        if self.family in INDEPENDENT_FAMILIES or self.acceleration == 1:
            ambient.check_independent(self.density().numpy(), drop, inner, present)
        elif self.family == "poisson":
            ambient.check_exclusion(self.density().numpy(), drop, inner, present)
        else:
            ambient.check_outcomes(self._outcomes(), self.density().numpy(), drop, inner, present)

    def _draw(self, key: tuple[object, ...]) -> Tensor:
        if self.acceleration == 1:
            return torch.ones(self.shape, dtype=torch.bool)
        if self.lines:
            return draw_mask(
                self.family,
                self.shape[1],
                acceleration=self.acceleration,
                center_fraction=self.center_fraction,
                falloff=self.falloff,
                key=key,
            )[None]
        acs = self._acs()
        if self.family == "poisson":
            return torch.from_numpy(poisson_disc(self.shape, self.acceleration, acs, self.falloff, key))
        rng = key_stream(*key)
        if self.family == "caipi":
            steps = lattice_steps(self.acceleration, self.steps, self.shift)
            offset = int(rng.randint(steps[0])), int(rng.randint(steps[1]))
            return torch.from_numpy(acs | lattice(self.shape, steps, offset))
        return torch.from_numpy(rng.uniform(size=self.shape) < self._independent(acs))

    def _outcomes(self) -> list[NDArray[np.bool_]]:
        """Every mask (y, x) that a grid family can draw."""
        if self.family in GRID_FAMILIES:
            grid = Grid.of(self.family, self.shape[1], self.acceleration, self.center_fraction)
            return [mask[None] for mask in grid.outcomes()]
        steps = lattice_steps(self.acceleration, self.steps, self.shift)
        acs = self._acs()
        return [acs | lattice(self.shape, steps, (y, x)) for y in range(steps[0]) for x in range(steps[1])]

    def _acs(self) -> NDArray[np.bool_]:
        height, width = self.shape
        n_acs = acs_count(width, self.acceleration, self.center_fraction)
        if self.lines:
            if self.family == "magic_fraction" and self.acceleration > 1:
                n_acs = Grid.of(self.family, width, self.acceleration, self.center_fraction).n_acs
            return acs_positions(self.shape, (1, n_acs), elliptical=False)
        return acs_positions(self.shape, (round(height * self.center_fraction), n_acs), elliptical=self.elliptical)

    def _line_density(self) -> Tensor:
        return inclusion(
            self.family,
            self.shape[1],
            acceleration=self.acceleration,
            center_fraction=self.center_fraction,
            falloff=self.falloff,
        )[None]

    def _independent(self, acs: NDArray[np.bool_]) -> NDArray[np.float64]:
        return independent_density(self.family, self.acceleration, acs.tobytes(), self.shape, self.falloff)


@dataclass(frozen=True, eq=False)
class Mask:
    """One mask of a law: ``acquired`` and ``absent``, bool (1, x) or (y, x); what is neither was skipped.

    ``str()`` gives acquired positions, achieved and nominal acceleration and the ACS in one line. Raises
    ``ValueError`` for shapes or types that do not fit or a position that is both.
    """

    acquired: Tensor
    absent: Tensor
    law: SamplingLaw

    def __post_init__(self) -> None:
        for name, flags in (("acquired", self.acquired), ("absent", self.absent)):
            if flags.dtype != torch.bool or tuple(flags.shape) != self.law.shape:
                raise ValueError(f"{name}: expected bool {list(self.law.shape)}, got {flags.dtype} {list(flags.shape)}")
        if bool((self.acquired & self.absent).any()):
            raise ValueError("absent: some of these positions were acquired")

    @property
    def skipped(self) -> Tensor:
        """Positions that the acceleration left out, bool."""
        return ~(self.acquired | self.absent)

    @property
    def density(self) -> Tensor:
        """Probability that the law acquires each position, float64; 0 where absent."""
        return self.law.density().masked_fill(self.absent, 0)

    @property
    def density_exact(self) -> bool:
        """Whether :attr:`density` is a closed form."""
        return self.law.density_exact

    def __str__(self) -> str:
        return describe(self.acquired, self.absent, nominal=self.law.acceleration)

    def further(self, drop: int, *, generator: torch.Generator | None) -> Tensor:
        """A further mask M~, bool like ``acquired``: keeps :meth:`SamplingLaw.kept`, loses ``drop`` of the others.

        Raises ``InputError`` where the ambient condition fails (see :meth:`SamplingLaw.check_ambient`) or nothing
        was acquired outside what stays.
        """
        kept = self.law.kept()
        self.law.check_ambient(drop, kept=kept, absent=self.absent)
        if not bool((self.acquired & ~kept).any()):
            raise InputError("further mask: nothing was acquired outside the centre that it keeps; acquire more")
        return further_mask(self.acquired, drop, acs=kept, generator=generator)
