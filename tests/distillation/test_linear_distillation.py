"""A linear generator, distilled by the real losses from masked measurements, reaches the law of low-rank images."""

import pytest
import torch
from torch import Tensor

from rsdmri.diffusion.batch import Batch
from rsdmri.diffusion.denoiser import GaussianDenoiser
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.distillation.objectives import draw_level, generator_loss
from rsdmri.runtime import torch_generator

HEIGHT, WIDTH, PIXELS, RANK = 2, 4, 8, 2


def distil(objective: str, target: Tensor, alpha: float, steps: int = 150, batch: int = 24) -> Tensor:
    """Covariance W W^H of G(z) = W z after ``steps``; each step hides one line from both scores, the fake score is
    the exact one of the present W."""
    generator = torch_generator("linear", objective)
    start = 0.3 * torch.randn(PIXELS, PIXELS, dtype=torch.complex128, generator=generator)
    weights = start.requires_grad_()
    optimiser = torch.optim.Adam([weights], betas=(0.0, 0.999))
    teacher = GaussianDenoiser(target)
    maps = torch.ones(batch, 1, HEIGHT, WIDTH, dtype=torch.complex128)
    for step in range(steps):
        shown = torch.ones(batch, 1, WIDTH, dtype=torch.bool)
        shown[..., int(torch.randint(WIDTH, (1,), generator=generator))] = False
        data = Batch(torch.full_like(maps, torch.nan), maps, torch.ones_like(shown), shown, torch.zeros(len(maps)))
        noise = unit_noise(maps[:, 0], generator)
        images = (noise.reshape(batch, PIXELS) @ weights.T).reshape(noise.shape)
        fake = GaussianDenoiser((weights @ weights.mH).detach())
        level = draw_level(data, generator)
        optimiser.param_groups[0]["lr"] = 0.03 * min(1.0, 2 * (1 - step / steps))
        optimiser.zero_grad()
        generator_loss(objective, images, teacher, fake, data, level, alpha).loss.mean().backward()
        optimiser.step()
    return (weights @ weights.mH).detach()


@pytest.mark.parametrize(("objective", "alpha"), [("dmd", 1.2), ("sid", 0.5), ("sid", 1.0)])
def test_generator_reaches_the_eigenspace_and_the_variances(objective, alpha):
    mixing = torch.randn(PIXELS, RANK, dtype=torch.complex128, generator=torch_generator("mixing"))
    basis = torch.linalg.qr(mixing)[0]
    target = basis @ torch.diag(torch.tensor([1.0, 0.36], dtype=torch.complex128)) @ basis.mH
    found = distil(objective, target, alpha)
    values, vectors = torch.linalg.eigh(found)
    leading = vectors[:, -RANK:]
    sine = torch.linalg.matrix_norm(leading - basis @ (basis.mH @ leading), 2)
    assert float(sine) < 0.05  # largest principal angle
    assert float(values[:-RANK].max()) < 0.02
    assert values[-RANK:].tolist() == pytest.approx([0.36, 1.0], rel=0.15)


def test_sds_collapses_where_the_others_match_the_variance():
    """Without a fake score nothing keeps the generated images from the mode."""
    target = torch.eye(PIXELS, dtype=torch.complex128)
    assert float(distil("sds", target, 1.2, steps=60).diagonal().real.mean()) < 0.3
