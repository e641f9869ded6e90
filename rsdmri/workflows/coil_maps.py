"""Coil maps that do not come from the scan itself: the user's files, a separate calibration scan."""

import dataclasses
import os

import numpy as np
import torch

from rsdmri.data.hdf5 import shown
from rsdmri.data.sandbox import load_maps
from rsdmri.data.scan import Scan
from rsdmri.errors import InputError
from rsdmri.physics.coils import espirit_maps
from rsdmri.physics.masks import acs_block
from rsdmri.physics.noise import estimate_covariance
from rsdmri.physics.whitening import whiten, whitening_matrix


def with_maps(scan: Scan, path: str | os.PathLike[str], *, trust: bool = False) -> Scan:
    """``scan`` with the coil maps of a file, see `rsdmri.data.maps`; `InputError` where they do not fit."""
    maps = load_maps(path, scan.kspace.shape, trust=trust)
    if maps.ndim == 5:
        if maps.shape[1] > 1:
            raise InputError(
                f"{shown(path)}: holds {maps.shape[1]} sets of maps and reconstruct takes one; keep the first set,"
                " or use rsdmri.physics.sense(maps, mask, sets=True)"
            )
        maps = maps[:, 0]
    return dataclasses.replace(scan, maps=np.ascontiguousarray(maps))


def with_calibration(scan: Scan, calibration: Scan) -> Scan:
    """``scan`` with the coil maps of a separate ``calibration`` scan: same coils and field of view, any matrix size.

    The centre of the calibration is whitened with its own noise, and the maps are turned back to the coils as they are
    in the file. One slice of calibration serves all slices. Raises `InputError` where coils or slices do not fit.
    """
    slices, coils = scan.kspace.shape[:2]
    found_slices, found_coils = calibration.kspace.shape[:2]
    where = f"calibration scan {calibration.name}"
    if found_coils != coils:
        raise InputError(f"{where}: {found_coils} coils, {scan.name} has {coils}; use a scan with the same coils")
    if found_slices not in (1, slices):
        raise InputError(f"{where}: {found_slices} slices, {scan.name} has {slices}; give one slice, or as many")
    mask = torch.from_numpy(calibration.mask.copy())
    kspace = torch.from_numpy(calibration.kspace)
    whitening = whitening_matrix(estimate_covariance(kspace, mask).covariance)
    height, width = scan.kspace.shape[-2:]
    try:
        maps = espirit_maps(whiten(kspace, whitening), acs_block(mask), shape=(height, width), noise_std=1.0)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    in_file = whiten(maps, torch.linalg.inv(whitening)).expand(slices, -1, -1, -1)
    return dataclasses.replace(scan, maps=np.ascontiguousarray(in_file.numpy()))
