"""Acquisition physics: Fourier transforms, coils, masks, noise, operators and solvers.

``from rsdmri.physics import sense, masks`` gives the function that builds the SENSE operator and the module of
sampling masks.
"""

from rsdmri.physics.sense import sense

__all__ = ["masks", "sense"]

from rsdmri.physics import masks  # isort: skip
