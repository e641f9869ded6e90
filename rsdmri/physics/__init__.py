"""Acquisition physics: Fourier transforms, coils, masks, noise, operators and solvers."""
