"""Reconstruction with a prior: data consistency against a dense solve; what every method that draws must keep."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rsdmri.diffusion.amortised import PosteriorSampler
from rsdmri.diffusion.schedule import unit_noise
from rsdmri.errors import InputError
from rsdmri.physics.classical import l1_strength, l1_wavelet
from rsdmri.physics.sense import Sense, sense
from rsdmri.priors import Prior, load_prior
from rsdmri.reconstruction.amortised import sparse_change
from rsdmri.reconstruction.consistency import Measurements, data_consistency
from rsdmri.reconstruction.posterior import ambient_one_step, draw
from rsdmri.reconstruction.settings import (
    AdpsSettings,
    AmortisedSettings,
    DiffpirSettings,
    DrawSettings,
    LatentSettings,
    MethodSettings,
    ProximalSettings,
    method_settings,
    parse_options,
)
from rsdmri.runtime import torch_generator

EVERY: dict[str, DrawSettings] = {
    "adps, Euler": AdpsSettings(steps=4, guidance="variance"),
    "adps, Heun": AdpsSettings(steps=3, sampler="heun", lines="all", scale=0.1),
    "diffpir": DiffpirSettings(steps=3),
    "diffpir, generator": DiffpirSettings(steps=2, network="generator", lines="acquired", start="noise"),
    "proximal": ProximalSettings(),
    "latent": LatentSettings(iterations=4),
    "amortised": AmortisedSettings(),
}
every_method = pytest.mark.parametrize("settings", EVERY.values(), ids=EVERY)


@dataclass
class Problem:
    operator: Sense
    kspace: Tensor
    sigma_y: Tensor
    image: Tensor

    @property
    def measured(self) -> Measurements:
        return Measurements(self.operator, self.kspace, self.sigma_y)

    def item(self, index: int) -> "Problem":
        one = slice(index, index + 1)
        operator = sense(self.operator.maps[one], self.operator.mask[one])
        return Problem(operator, self.kspace[one], self.sigma_y[one], self.image[one])


def problem(
    batch: int, coils: int, height: int, width: int, dtype: torch.dtype = torch.complex64, points: bool = False
) -> Problem:
    generator = torch_generator("posterior", batch, coils, height, width)
    maps = unit_noise(torch.empty(batch, coils, height, width, dtype=dtype), generator)
    maps = maps / maps.abs().square().sum(1, keepdim=True).sqrt()
    mask = torch.rand(batch, height if points else 1, width, generator=generator) < 0.5
    mask[..., width // 2 - 2 : width // 2 + 2] = True
    operator = sense(maps, mask)
    image = unit_noise(torch.empty(batch, height, width, dtype=dtype), generator)
    sigma_y = torch.linspace(0.02, 0.1, batch, dtype=image.real.dtype)
    return Problem(operator, operator.forward(image), sigma_y, image)


def drawn(prior: Prior, settings: DrawSettings, data: Problem, *keys: int) -> Tensor:
    generators = [torch_generator("draw", key) for key in keys]
    return draw(
        prior,
        data.measured,
        settings=settings,
        generators=generators,
        start=None if isinstance(settings, AmortisedSettings) else data.operator.adjoint(data.kspace),
    )


@pytest.fixture(scope="module")
def prior(finished_run: Path) -> Prior:
    """A briefly trained one, with noise of k-space, which all of this has to cope with."""
    prior = load_prior(finished_run, "cpu")
    object.__setattr__(prior.bank, "coil_noise", True)
    prior.posterior = PosteriorSampler(prior.denoiser, (0.1,), 0.05)
    return prior


def test_data_consistency_is_the_dense_minimiser() -> None:
    data = problem(1, 3, 5, 6, torch.complex128)
    estimate = unit_noise(torch.empty(1, 5, 6, dtype=torch.complex128), torch_generator("estimate"))
    sigma, rho = torch.tensor([0.3], dtype=torch.float64), torch.tensor([0.5], dtype=torch.float64)
    found = data_consistency(data.operator, data.kspace, estimate, sigma, rho, iterations=60)

    weight = 0.3**2 / 0.5**2
    basis = torch.eye(30, dtype=torch.complex128).reshape(30, 1, 5, 6)
    dense = torch.stack([data.operator.forward(e).flatten() for e in basis], dim=1)
    left = dense.mH @ dense + weight * torch.eye(30, dtype=torch.complex128)
    right = dense.mH @ data.kspace.flatten() + weight * estimate.flatten()
    torch.testing.assert_close(found.flatten(), torch.linalg.solve(left, right), rtol=1e-9, atol=1e-9)


@every_method
def test_draws_follow_their_stream_at_any_size(prior: Prior, settings: DrawSettings) -> None:
    data = problem(1, 4, 33, 37)
    one, again, other = (drawn(prior, settings, data, key) for key in (0, 0, 1))
    assert torch.equal(one, again)
    assert float((one - other).abs().max()) > 1e-4
    assert one.shape == (1, 33, 37)
    assert one.dtype == torch.complex64
    assert bool(torch.isfinite(one.abs()).all())


@every_method
def test_an_item_is_the_same_alone_and_in_a_batch(prior: Prior, settings: DrawSettings) -> None:
    data = problem(3, 4, 32, 32)
    data.kspace[2] *= 100  # whose residual a norm over the batch would be made of
    together = drawn(prior, settings, data, 0, 1, 2)
    torch.testing.assert_close(together[1:2], drawn(prior, settings, data.item(1), 1), rtol=1e-3, atol=1e-4)


@every_method
@pytest.mark.parametrize(("coils", "points"), [(1, False), (3, True)], ids=["one coil", "points"])
def test_one_coil_and_masks_of_points(prior: Prior, settings: DrawSettings, coils: int, points: bool) -> None:
    image = drawn(prior, settings, problem(2, coils, 16, 24, points=points), 0, 1)
    assert image.shape == (2, 16, 24)
    assert bool(torch.isfinite(image.abs()).all())


@every_method
def test_only_acquired_samples_are_read_and_nan_among_them_is_refused(prior: Prior, settings: DrawSettings) -> None:
    data = problem(1, 4, 32, 32)
    expected = drawn(prior, settings, data, 0)
    skipped = (~data.operator.mask)[:, None].expand_as(data.kspace)
    data.kspace[skipped] = torch.nan
    assert torch.equal(drawn(prior, settings, data, 0), expected)
    data.kspace[..., 16] = torch.nan
    with pytest.raises(InputError, match="NaN or infinite values among the acquired samples"):
        drawn(prior, settings, data, 0)


class Counting(nn.Module):
    """A denoiser that counts how often it is asked."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0
        self.sigma_data, self.iterations = torch.tensor(0.3), 6

    def forward(self, *arguments: object, **named: object) -> Tensor:
        self.calls += 1
        return self.inner(*arguments, **named)

    def refined(self, *arguments: object) -> Tensor:
        self.calls += 1
        return self.inner.refined(*arguments)


@every_method
def test_evaluations_are_counted(finished_run: Path, settings: DrawSettings) -> None:
    prior = load_prior(finished_run, "cpu")
    prior.posterior = PosteriorSampler(prior.denoiser, (0.1, 0.05), 0.05)
    prior.posterior.denoiser = prior.denoiser = teacher = Counting(prior.denoiser)
    prior.generator.denoiser = student = Counting(prior.generator.denoiser)
    drawn(prior, settings, problem(2, 4, 32, 32), 0, 1)
    shared = prior.posterior.evaluations(0) if isinstance(settings, AmortisedSettings) else 0
    assert teacher.calls + student.calls == shared + settings.evaluations
    uses_student = isinstance(settings, LatentSettings) or getattr(settings, "network", "teacher") == "generator"
    assert (student.calls > 0) == uses_student


def test_results_agree_with_the_data_within_the_noise(prior: Prior) -> None:
    data = problem(2, 4, 32, 32)
    data.sigma_y[:] = 0.01
    chosen = [*(EVERY[name] for name in ("diffpir", "proximal", "latent")), AmortisedSettings(trust=0.05)]
    images = [drawn(prior, settings, data, 0, 1) for settings in chosen]
    images.append(ambient_one_step(prior, data.measured))
    for image in images:
        assert float((data.operator.forward(image) - data.kspace).norm() / data.kspace.norm()) < 0.1


def test_mirrored_draws_take_the_noise_of_their_stream_upside_down(prior: Prior) -> None:
    data = problem(2, 4, 32, 32)
    streams = [torch_generator("draw", 0), torch_generator("draw", 0)]
    found = draw(prior, data.measured, settings=AmortisedSettings(), generators=streams, mirrored=[False, True])
    noise = unit_noise(data.kspace[:1, 0], torch_generator("draw", 0))
    scan = data.kspace, data.operator, data.sigma_y / 2**0.5
    with torch.no_grad():
        expected = prior.posterior(*scan, torch.cat([noise, -noise]))
    torch.testing.assert_close(found, expected)


def test_one_step_items_stand_alone(prior: Prior) -> None:
    data = problem(3, 4, 32, 32)
    one = data.item(1)
    together = ambient_one_step(prior, data.measured)
    alone = ambient_one_step(prior, one.measured)
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_shapes_that_do_not_fit_are_refused(prior: Prior) -> None:
    data = problem(1, 4, 32, 32)
    with pytest.raises(InputError, match="must agree"):
        Measurements(data.operator, data.kspace[:, :3], data.sigma_y)
    with pytest.raises(InputError, match="one noise level of at least 0 for each of 1 images"):
        Measurements(data.operator, data.kspace, -data.sigma_y)
    with pytest.raises(InputError, match=r"sigma_min 2: must be at most sigma_max 1"):
        drawn(prior, DiffpirSettings(sigma_min=2, sigma_max=1), data, 0)
    with pytest.raises(ValueError, match="got DrawSettings"):
        drawn(prior, DrawSettings(), data, 0)


@pytest.mark.parametrize(
    ("texts", "kind", "values"),
    [
        (["variant=latent", "rate=0.2", "start=sense"], LatentSettings, {"rate": 0.2, "start": "sense"}),
        (["variant=amortised", "trust=0"], AmortisedSettings, {"trust": 0.0}),
        (["levels=[0.2, 0.1]", "trust = 1"], ProximalSettings, {"levels": (0.2, 0.1), "trust": 1.0}),
        ([], ProximalSettings, {"levels": (0.1, 0.05)}),
    ],
)
def test_settings_from_words(texts: list[str], kind: type[MethodSettings], values: dict[str, object]) -> None:
    settings = method_settings("rsd", parse_options(texts))
    assert type(settings) is kind
    assert {name: getattr(settings, name) for name in values} == values
    with pytest.raises(InputError, match="--set-method trust: expected key=value"):
        parse_options(["trust"])


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("rsd", {"level": [0.1]}, "unknown key 'level'; did you mean 'levels'"),
        ("rsd", {"levels": []}, "levels: .* at least 1 item"),
        ("rsd", {"levels": [0.1, -1]}, "levels.1: .* greater than 0, got -1"),
        ("rsd", {"variant": "latent", "jitter": 1}, "latent: unknown key 'jitter'"),
        ("rsd", {"variant": "amortised", "start": "sense"}, "start: .*noise"),
        ("rsd", {"variant": "amortised", "trust": -1}, "trust: .* greater than or equal to 0"),
        ("adps", {"start": "sense"}, "start: .*noise"),
        ("diffpir", {"renewal": 1.5}, "renewal: .* less than or equal to 1"),
        ("tv", {"factor": float("nan")}, "factor: .*finite"),
        ("zero-filled", {"x": 1}, "unknown key 'x'"),
        ("magic", {}, "--method magic: expected one of rsd, adps"),
    ],
)
def test_settings_that_cannot_be(method: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        method_settings(method, options)


def test_the_sparsest_change_that_the_samples_ask_for():
    """Of nothing it is the L1-wavelet image; of the image itself nothing; of a shifted image what brings it back."""
    p = problem(2, 4, 32, 32)
    nothing, few = torch.zeros_like(p.image), AmortisedSettings(agree=12, factor=0.2, floor=0.002)
    strength = l1_strength(p.sigma_y, 0.2, 0.002)
    way = {"strength": strength, "iterations": 12, "generator": torch_generator("agree")}
    torch.testing.assert_close(sparse_change(p.measured, nothing, few), l1_wavelet(p.operator, p.kspace, **way))
    clean = replace(p, kspace=p.operator.forward(p.image))
    assert not sparse_change(clean.measured, p.image, few).any()
    wrong = p.image.clone()
    wrong[:, 8:16, 8:16] += 0.5
    change = sparse_change(clean.measured, wrong, few)
    before, after = ((found - p.image).norm() for found in (wrong, wrong + change))
    assert float(after) < 0.7 * float(before)
