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
# # What the distillation finds, where everything is linear
#
# Images $x = E w$ with orthonormal $E$ and $w \sim N(0, \mathrm{diag}(v))$ of low rank, lines of single-coil k-space
# as measurements, and a generator $G(z) = W z$. Its images have covariance $W W^H$; the true one is
# $C = E\,\mathrm{diag}(v)\,E^H$.
#
# With $K = F C F^H$, the shown lines $\tilde M$ and $u = F^H \tilde M F (x + s e)$, the best linear denoiser is
# $$f_C(u, \tilde M, s) = F^H P K \tilde M (\tilde M K \tilde M + s^2)^{-1} \tilde M F u,$$
# where $P$ keeps the lines that can be acquired given $\tilde M$. The teacher is $f_C$, and a fake score that has
# learnt the present generator is $f_{W W^H}$.
#
# **Statement.** Where every line can be acquired given $\tilde M$ ($P = 1$), equal scores mean equal covariances: the
# eigenspace of $E[x x^H]$ and the variances in it are the fixed point of `sid` and `dmd`. What follows descends the
# losses that `rsdmri train` uses, with expectations over masks, $z$ and $e$ in place of training data.
#
# `RSDMRI_SHORT=1` takes fewer steps.

# %%
# %matplotlib inline
import os

import numpy as np
import torch
from matplotlib.figure import Figure

from rsdmri.distillation.linear import distil, line_law, low_rank, principal_angles
from rsdmri.report.figures import COLOURS
from rsdmri.runtime import torch_generator

torch.set_num_threads(1)
STEPS = 40 if os.environ.get("RSDMRI_SHORT") == "1" else 300
width, variances = 5, [1.0, 0.5]
basis, covariance = low_rank(width, variances, torch_generator("images"))
every = line_law(width, [(0, 1, 3, 4)])  # M: the centre and any two outer lines, M~: the centre and one of them


def follow(objective, law=every, **settings):
    """Principal angles and variances of the generator after every step."""
    path = list(distil(covariance, law, objective, torch_generator("start"), steps=STEPS, **settings))
    angles = np.array([principal_angles(reached, basis).numpy() for reached in path])
    return angles, torch.linalg.eigvalsh(torch.stack(path)).flip(-1).numpy()


def draw(curves, label, truth=()):
    """One logarithmic plot of named curves over steps."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
        axes.semilogy(np.maximum(values, 1e-8), color=colour, label=name)
    for value in truth:
        axes.axhline(value, color="0.6", linestyle=":", zorder=0)
    axes.set(xlabel="step", ylabel=label)
    axes.legend(fontsize=8)
    return figure


# %% [markdown]
# ## The eigenspace
#
# The largest principal angle between $E$ and the leading eigenvectors of $W W^H$, from a random $W$. `sid` falls below
# 1e-3 for each $\alpha$; `dmd` does so more slowly. `sds` has no fake score: nothing opposes the pull to the mode.

# %%
runs = {f"sid, alpha {alpha}": follow("sid", alpha=alpha) for alpha in (0.8, 1.0, 1.2)}
runs |= {objective: follow(objective) for objective in ("dmd", "sds")}
for name, (angles, _) in runs.items():
    print(f"{name:15} largest angle {angles[0, 0]:.1e} -> {angles[-1, 0]:.1e} rad")
draw({name: angles[:, 0] for name, (angles, _) in runs.items()}, "largest principal angle [rad]", [1e-3])

# %% [markdown]
# ## The variances in it, and beside it
#
# Variances are recovered, too, and those beside the eigenspace vanish, in proportion to 1 / steps: their pull is
# $\propto v / s^2$ once they are below the noise. Under `sds` all of them collapse.

# %%
for name, (_, found) in runs.items():
    print(f"{name:15} variances {found[-1, :3].round(4)}, true {[*variances, 0]}")
shown = {f"{name}, no. {k + 1}": runs[name][1][:, k] for name in ("sid, alpha 1.2", "sds") for k in range(3)}
draw(shown, "variance", variances)

# %% [markdown]
# ## Where alpha = 1.2 fails
#
# Take a direction in which images have no variance and the generator has $v$. There $f_\phi = 0$ and
# $f_\psi = Q (x_g + s e)$ with $Q = v / (v + s^2)$; with the scores held, the slope of the `sid` loss is
# $$\frac{d}{dv}\,E\big[(f_\phi - f_\psi)\big((f_\phi - x_g) - \alpha (f_\phi - f_\psi)\big)\big] = Q (1 - \alpha Q).$$
# For $\alpha \le 1$ it is positive, so that $v$ shrinks. For $\alpha > 1$ it is negative at levels
# $s^2 < (\alpha - 1) v$: where most levels are that small, an exact fake score drives the wrong variance up. Above, the
# levels began at 0.1. With levels from 0.002 on, the same start diverges for $\alpha = 1.2$; with the others the wrong
# variance falls about tenfold, until the noise of a constant step size holds it.

# %%
fine = {f"sid, alpha {alpha}": follow("sid", alpha=alpha, sigma_min=0.002, rate=0.1) for alpha in (0.8, 1.0, 1.2)}
fine["dmd"] = follow("dmd", sigma_min=0.002, rate=0.1)
draw({name: found[:, 2] for name, (_, found) in fine.items()}, "largest variance beside the eigenspace")

# %% [markdown]
# ## Masks that break the condition
#
# A line that is never acquired: no loss says anything about it. Two groups of lines that are never acquired together:
# every line is seen, but not how lines of different groups go together. The generator comes to rest elsewhere.

# %%
broken = {
    "every pair of lines": runs["sid, alpha 1.2"],
    "one line never acquired": follow("sid", line_law(width, [(0, 1, 3)])),
    "two groups never together": follow("sid", line_law(width, [(0, 1), (3, 4)])),
}
for name, (angles, _) in broken.items():
    print(f"{name:26} largest angle {angles[-1, 0]:.1e} rad")
draw({name: angles[:, 0] for name, (angles, _) in broken.items()}, "largest principal angle [rad]", [1e-3])
