"""The scans that checkpoints are validated on: those of the manifest's val split, where it has any that fit."""

from collections.abc import Callable

import torch

from rsdmri.config import Config
from rsdmri.data.dataset import TrainingSlices
from rsdmri.data.manifest import read_manifest
from rsdmri.data.remote import Location
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator
from rsdmri.workflows.plan import mask_law
from rsdmri.workflows.sources import Source, open_source

_SCANS = 8


def open_held_out(
    config: Config, location: Location, device: torch.device, say: Callable[[str], None]
) -> Source | None:
    """Source of up to 8 scans of the val split; None, after a line that says why, where they do not fit.

    Args:
        config: settings, as of the training.
        location: manifest or folder.
        device: where batches go.
        say: where the line goes; there is none where no scan is in the split.
    """
    entries = [entry for entry in read_manifest(location) if entry.split == "val" != config.data.split]
    if not entries:
        return None
    rng = numpy_generator(config.seed, "held out")
    chosen = sorted(rng.choice(len(entries), min(_SCANS, len(entries)), replace=False).tolist())
    try:
        slices = TrainingSlices(
            [entries[k] for k in chosen],
            mask_law(config),
            config.data.cache_gb * 1e9,
            ambient=config.trains_on_kspace,
        )
        return open_source(config, slices, device)
    except InputError as error:
        say(f"validation: on training slices, for the val split does not fit ({error})")
        return None
