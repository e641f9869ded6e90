# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: from undersampled k-space to a one-step prior
#
# Simulate a few multicoil scans, look at what is acquired, train for a few minutes, sample, reconstruct, compare.
# Research use only, not for diagnosis.
#
# Set `RSDMRI_SHORT=1` to run everything in about a minute with worse pictures.

# %%
# %matplotlib inline
import os
import tempfile
from pathlib import Path

import numpy as np

import rsdmri
from rsdmri.config import load_config
from rsdmri.data.manifest import read_manifest
from rsdmri.data.simulate_files import write_simulated
from rsdmri.physics import masks
from rsdmri.report.figures import image_grid, kspace_figure, loss_figure, reconstruction_figure
from rsdmri.workflows.run_folder import read_metrics
from rsdmri.workflows.train import train

SHORT = os.environ.get("RSDMRI_SHORT") == "1"
folder = Path(tempfile.mkdtemp(prefix="rsdmri-"))

# %% [markdown]
# ## Scans
#
# Each scan is one warped head with its own contrast, coil maps, phase and correlated noise, in a fastMRI-style file.

# %%
size = 32 if SHORT else 48
manifest = write_simulated(folder / "data", scans=12 if SHORT else 40, slices=4, size=size, contrast="T2w")
scan = rsdmri.load_scan(folder / "data" / "sim00000.h5")
scan

# %% [markdown]
# ## K-space, and what acceleration leaves of it
#
# A mask keeps the centre (the ACS, from which coil maps and the image scale come) and random outer lines.

# %%
mask = masks.draw_mask("random", size, acceleration=4, center_fraction=0.125, key=("quickstart", 0))
print(masks.describe(mask, nominal=4))
kspace_figure(scan.kspace[1], mask.numpy())

# %% [markdown]
# ## Train on what was acquired
#
# The same function is behind `rsdmri train`. Each slice keeps one mask; the rest of its k-space is never read.

# %%
config = load_config(
    None,
    [
        f"data.path='{folder / 'data'}'",
        "network.channels=[24, 64, 96]",
        "teacher.learning_rate=1e-3",
        "teacher.ema_images=8000",
        "prior.learning_rate=5e-5",
        "prior.fake_learning_rate=1e-4",
    ]
    + (["steps=5"] if SHORT else []),
)
run = train(config, folder / "run", budget=None if SHORT else 240)
loss_figure(read_metrics(run))

# %% [markdown]
# ## Sample
#
# One network evaluation per image.

# %%
prior = rsdmri.load_prior(run)
images = prior.sample(16, seed=1)
image_grid(np.abs(images.numpy()), window=1.2, heading="one-step prior")

# %% [markdown]
# ## Reconstruct a held-out scan
#
# A fully sampled scan is undersampled when `acceleration` is given, and the result is scored against the full scan.

# %%
held_out = next(entry for entry in read_manifest(manifest) if entry.split == "test")
scan = rsdmri.load_scan(held_out.path)
results = {
    method: rsdmri.reconstruct(scan, method=method, prior=prior, acceleration=4, samples=4)
    for method in ("zero-filled", "sense", "l1-wavelet", "rsd")
}
for method, result in results.items():
    print(f"{method:12}", {name: round(float(value), 4) for name, value in result.scores.items()})

# %%
middle = scan.kspace.shape[0] // 2
images = {method: result.volume[middle] for method, result in results.items()}
reconstruction_figure(scan.target[middle], images, results["rsd"].std[middle])

# %% [markdown]
# ## Where to go from here
#
# `rsdmri train --data FOLDER --acceleration 4 --budget 8h` trains on your own scans, `rsdmri inspect SCAN` says what a
# file holds, and `recipes/` has settings to start from.
