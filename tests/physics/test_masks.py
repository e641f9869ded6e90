import numpy as np
import pytest
import torch

from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.runtime import torch_generator

# Acquired lines drawn by fastmri 0.3.0's RandomMaskFunc and EquispacedMaskFractionFunc, seeded with the file's name.
FASTMRI = [
    ("random", 64, 4, 0.08, "file1000000.h5", "4 9 10 14 23 24 28 29 30 31 32 33 34 35 41 51 60"),
    ("random", 57, 8, 0.04, "file_brain_AXT2_200_6002441.h5", "11 21 28 29 36 37 47 55"),
    (
        "random", 372, 8, 0.04, "file1000001.h5",
        "3 6 7 11 31 57 72 82 89 95 112 114 115 124 129 177 179 180 181 182 183 184 185 186 187 188 189 190 191 192"
        " 193 195 217 219 221 236 248 266 297 313 326 333 334 345 354 369",
    ),
    ("equispaced_fraction", 64, 4, 0.08, "file1000000.h5", "1 6 12 17 22 28 30 31 32 33 34 39 44 49 55 60"),
    ("equispaced_fraction", 67, 8, 0.04, "file_brain_AXT2_200_6002441.h5", "5 17 29 32 33 34 41 53 65"),
    (
        "equispaced_fraction", 372, 4, 0.08, "file1000001.h5",
        "3 8 14 19 25 30 36 41 46 52 57 63 68 74 79 84 90 95 101 106 112 117 122 128 133 139 144 150 155 160 166 171"
        " 172 173 174 175 176 177 178 179 180 181 182 183 184 185 186 187 188 189 190 191 192 193 194 195 196 197 198"
        " 199 200 204 209 215 220 226 231 236 242 247 253 258 264 269 274 280 285 291 296 302 307 312 318 323 329 334"
        " 340 345 350 356 361 367",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("family", "width", "acceleration", "fraction", "filename", "lines"), FASTMRI)
def test_masks_of_fastmri_bit_for_bit(family, width, acceleration, fraction, filename, lines):
    mask = masks.fastmri_mask(family, width, acceleration=acceleration, center_fraction=fraction, filename=filename)
    assert mask.dtype == torch.bool
    assert mask.nonzero()[:, 0].tolist() == [int(line) for line in lines.split()]


def test_drawing_masks_leaves_the_global_random_state_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    masks.fastmri_mask("random", 64, acceleration=4, center_fraction=0.08, filename="a.h5")
    masks.draw_mask("random", 64, acceleration=4, center_fraction=0.08, key=("a", 0))
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize(("fraction", "acceleration"), [(0.25, 4), (0.125, 8)])
def test_where_fastmri_divides_by_zero_the_error_names_the_cure(fraction, acceleration):
    for draw in (
        lambda: masks.fastmri_mask(
            "equispaced_fraction", 368, acceleration=acceleration, center_fraction=fraction, filename="a.h5"
        ),
        lambda: masks.draw_mask(
            "equispaced_fraction", 368, acceleration=acceleration, center_fraction=fraction, key=("a",)
        ),
        lambda: masks.inclusion("equispaced_fraction", 368, acceleration=acceleration, center_fraction=fraction),
    ):
        with pytest.raises(InputError, match="lower the acceleration or the center fraction"):
            draw()


@pytest.mark.parametrize("family", masks.FAMILIES)
@pytest.mark.parametrize(("width", "acceleration", "fraction"), [(64, 4, 0.08), (67, 3.5, 0.1), (128, 8, 0.04)])
def test_inclusion_is_the_frequency_of_each_line(family, width, acceleration, fraction):
    if family in ("equispaced", "magic"):
        acceleration = int(acceleration)  # their spacing is whole
    law = {"acceleration": acceleration, "center_fraction": fraction}
    probability = masks.inclusion(family, width, **law)
    draws = 2000
    drawn = torch.stack([masks.draw_mask(family, width, **law, key=("scan", i, 0)) for i in range(draws)])
    frequency = drawn.double().mean(0)
    error = (probability * (1 - probability) / draws).sqrt()
    assert bool(((frequency - probability).abs() <= 5 * error).all())
    centre = masks.acs_block(drawn)[1]
    assert centre.stop - centre.start >= round(width * fraction)
    assert bool((probability[centre] == 1).all())


@pytest.mark.parametrize("family", ["random", "variable-density"])
@pytest.mark.parametrize(("width", "acceleration", "fraction"), [(320, 4, 0.08), (57, 2, 0.1), (368, 8, 0.04)])
def test_expected_number_of_lines_is_exact_and_every_line_has_a_chance(family, width, acceleration, fraction):
    probability = masks.inclusion(family, width, acceleration=acceleration, center_fraction=fraction)
    assert float(probability.sum()) == pytest.approx(width / acceleration, rel=1e-9)
    assert float(probability.min()) > 0


def test_variable_density_falls_with_distance_from_the_centre():
    probability = masks.inclusion("variable-density", 128, acceleration=6, center_fraction=0.05)
    right = probability[64:]
    assert bool((right.diff() <= 1e-12).all())
    torch.testing.assert_close(probability[1:61].flip(0), probability[68:])


def test_equispaced_inclusion_says_which_lines_are_never_acquired():
    probability = masks.inclusion("equispaced_fraction", 128, acceleration=4, center_fraction=0.08)
    drawn = torch.stack(
        [
            masks.draw_mask("equispaced_fraction", 128, acceleration=4, center_fraction=0.08, key=(i,))
            for i in range(200)
        ]
    )
    assert torch.equal(drawn.any(0), probability > 0)
    assert bool((probability == 0).any())


@pytest.mark.parametrize("family", masks.FAMILIES)
def test_masks_depend_on_the_key_alone(family):
    law = {"acceleration": 4, "center_fraction": 0.08}
    first = masks.draw_mask(family, 128, **law, key=("file.h5", 3, 0))
    assert torch.equal(first, masks.draw_mask(family, 128, **law, key=("file.h5", 3, 0)))
    others = [masks.draw_mask(family, 128, **law, key=("file.h5", 3, seed)) for seed in range(1, 12)]
    assert any(not torch.equal(first, other) for other in others)


def test_a_drawn_mask_stays_what_it_was():
    mask = masks.draw_mask("random", 32, acceleration=4, center_fraction=0.1, key=("file.h5", 0, 0))
    assert mask.nonzero()[:, 0].tolist() == [15, 16, 17, 24, 27]


@pytest.mark.parametrize("family", masks.FAMILIES)
def test_acceleration_one_is_full_sampling(family):
    assert bool(masks.draw_mask(family, 33, acceleration=1, center_fraction=0.08, key=(0,)).all())
    assert bool((masks.inclusion(family, 33, acceleration=1, center_fraction=0.08) == 1).all())


@pytest.mark.parametrize(
    ("width", "acceleration", "fraction", "message"),
    [
        (128, 0.5, 0.08, "acceleration 0.5: expected 1"),
        (128, float("nan"), 0.08, "expected 1"),
        (128, float("inf"), 0.08, "expected 1"),
        (128, 4, -0.1, "center fraction -0.1"),
        (128, 4, 1.1, "center fraction 1.1"),
        (0, 4, 0.1, "width 0"),
        (128, 8, 0.25, r"fewer than the 32 ACS lines .*use at most 4 or a center fraction of at most 0.125"),
    ],
)
def test_impossible_accelerations_are_refused(width, acceleration, fraction, message):
    with pytest.raises(InputError, match=message):
        masks.check_acceleration(width, acceleration, fraction)
    with pytest.raises(InputError, match=message):
        masks.draw_mask("random", width, acceleration=acceleration, center_fraction=fraction, key=(0,))


def test_unknown_families_are_refused():
    with pytest.raises(InputError, match="expected one of random, equispaced_fraction, variable-density"):
        masks.draw_mask("poisson", 64, acceleration=4, center_fraction=0.08, key=(0,))
    with pytest.raises(InputError, match="fastMRI masks here"):
        masks.fastmri_mask("variable-density", 64, acceleration=4, center_fraction=0.08, filename="a")


def lines(width, *acquired):
    mask = torch.zeros(width, dtype=torch.bool)
    mask[list(acquired)] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "start", "stop"),
    [
        (lines(8, 3, 4), 3, 5),
        (lines(8, 3, 4, 5), 3, 6),
        (lines(8, 4, 5, 6, 7), 4, 5),
        (lines(9, 3, 4, 5, 7), 3, 6),
        (lines(8, 1, 2), 4, 4),
        (torch.ones(7, dtype=torch.bool), 0, 7),
        (torch.ones(8, dtype=torch.bool), 0, 8),
    ],
)
def test_acs_of_lines_is_the_largest_full_centre(mask, start, stop):
    for form in (mask, mask[None], mask[None, None].expand(3, 1, -1)):
        rows, columns = masks.acs_block(form)
        assert rows == slice(None)
        assert (columns.start, columns.stop) == (start, stop)
        assert masks.acs_lines(form) == stop - start


@pytest.mark.parametrize("width", [8, 9, 64, 67])
def test_acs_finds_what_fastmri_puts_there(width):
    for n in range(1, width // 2):
        mask = torch.zeros(width, dtype=torch.bool)
        start = (width - n + 1) // 2
        mask[start : start + n] = True
        assert masks.acs_block(mask)[1] == slice(start, start + n)


def test_acs_of_points_is_a_centred_full_rectangle():
    mask = torch.rand(40, 50, generator=torch_generator(0)) < 0.2
    mask[11:29, 17:33] = True
    mask[10, 17:33:2] = False
    mask[:, 16], mask[:, 33] = False, False
    assert masks.acs_block(mask) == (slice(11, 29), slice(17, 33))
    batch = torch.stack([mask, torch.ones_like(mask)])
    assert masks.acs_block(batch) == (slice(11, 29), slice(17, 33))
    mask[20, 25] = False
    rows, columns = masks.acs_block(mask)
    assert rows.stop - rows.start == columns.stop - columns.start == 0


def test_achieved_acceleration_ignores_absent_positions():
    mask = lines(10, 2, 4, 5, 6)
    assert masks.achieved_acceleration(mask) == 2.5
    assert masks.achieved_acceleration(mask, lines(10, 0, 9)) == 2.0
    assert masks.achieved_acceleration(mask[None, None].expand(3, 1, -1), lines(10, 0, 9)) == 2.0
    with pytest.raises(InputError, match="no sample was acquired"):
        masks.achieved_acceleration(lines(10))


def test_description_is_one_line():
    assert masks.describe(lines(10, 2, 4, 5, 6), nominal=2) == (
        "4 of 10 lines, acceleration 2.50 (nominal 2), ACS 3 lines"
    )
    assert masks.describe(lines(10, 2, 4, 5, 6), lines(10, 0, 9)) == "4 of 8 lines, acceleration 2.00, ACS 3 lines"
    points = torch.zeros(6, 6, dtype=torch.bool)
    points[2:5, 2:5] = True
    assert masks.describe(points) == "9 of 36 points, acceleration 4.00, ACS 3 x 3"


@pytest.mark.parametrize(("acceleration", "drop"), [(2, 54), (4, 16), (6, 8), (8, 5)])
def test_published_further_drops(acceleration, drop):
    assert masks.further_drop(320, acceleration) == drop


def test_further_drop_is_at_least_one_line():
    assert masks.further_drop(8, 8) == 1


@pytest.mark.parametrize("shape", [(64,), (1, 64), (5, 1, 64), (30, 40), (4, 30, 40)])
@pytest.mark.parametrize("drop", [0, 1, 5, 10_000])
def test_further_masks_drop_outer_samples_only(shape, drop):
    generator = torch_generator("further", *shape)
    mask = torch.rand(shape, generator=generator) < 0.4
    acs = slice(12, 18), slice(28, 36) if shape[-1] == 64 else slice(17, 23)
    inside = torch.zeros(shape, dtype=torch.bool)
    points = len(shape) > 1 and shape[-2] > 1
    inside[(..., *((acs[0],) if points else ()), acs[1])] = True
    mask |= inside
    before = mask.clone()
    further = masks.further_mask(mask, drop, acs=acs, generator=generator)
    assert torch.equal(mask, before)
    assert further.shape == mask.shape
    assert not bool((further & ~mask).any())
    assert bool(further[inside].all())
    axes = (-2, -1) if len(shape) > 1 else (-1,)
    outer = (mask & ~inside).sum(axes)
    assert torch.equal((mask & ~further).sum(axes), outer.clamp(max=drop))


def test_further_masks_of_a_batch_differ_and_follow_their_generator():
    mask = torch.ones(4, 1, 64, dtype=torch.bool)
    first = masks.further_mask(mask, 20, acs=8, generator=torch_generator(1))
    assert torch.equal(first, masks.further_mask(mask, 20, acs=8, generator=torch_generator(1)))
    assert not torch.equal(first, masks.further_mask(mask, 20, acs=8, generator=torch_generator(2)))
    assert len({tuple(row.tolist()) for row in first[:, 0]}) == 4
    assert masks.acs_lines(first) >= 8


def test_each_mask_of_a_batch_may_lose_a_number_of_its_own():
    mask = torch.ones(4, 1, 16, dtype=torch.bool)
    drops = torch.tensor([0, 3, 7, 30])
    further = masks.further_mask(mask, drops, acs=4, generator=torch_generator(1))
    assert (mask & ~further).sum((1, 2)).tolist() == [0, 3, 7, 12]
    alike = masks.further_mask(mask, torch.full((4,), 5), acs=4, generator=torch_generator(1))
    assert torch.equal(alike, masks.further_mask(mask, 5, acs=4, generator=torch_generator(1)))
    with pytest.raises(ValueError, match="drop: expected 0 or more lines, got -1"):
        masks.further_mask(mask, torch.tensor([1, -1, 1, 1]), acs=4, generator=torch_generator(1))


def test_every_outer_line_is_equally_likely_to_go():
    mask = lines(20, *range(0, 20, 2), 9, 11)
    draws = 3000
    further = masks.further_mask(mask[None, None].expand(draws, 1, -1), 3, acs=3, generator=torch_generator("uniform"))
    gone = (mask & ~further)[:, 0].double().mean(0)
    outer = mask.clone()
    outer[9:12] = False
    expected = 3 / int(outer.sum())
    assert bool(((gone[outer] - expected).abs() < 5 * (expected / draws) ** 0.5).all())
    assert bool((gone[~outer] == 0).all())


def test_further_mask_refuses():
    with pytest.raises(ValueError, match="drop"):
        masks.further_mask(lines(8, 4), -1, acs=1, generator=torch_generator(0))
    with pytest.raises(ValueError, match="bool"):
        masks.further_mask(torch.ones(8), 1, acs=1, generator=torch_generator(0))


def test_the_pattern_of_a_mask_tells_equispaced_lines_from_others_and_from_points():
    def drawn(family, key):
        rows = 48 if family == "poisson" else 1
        return masks.SamplingLaw(family, (rows, 96), acceleration=4.3).draw(key).acquired

    for key in "abc":
        assert masks.pattern(drawn("equispaced_fraction", key)) == "equispaced lines"
        assert masks.pattern(drawn("random", key)) == "irregular lines"
        assert masks.pattern(drawn("poisson", key)) == "points"
    lines = drawn("random", "a")
    assert masks.pattern(lines.expand(48, 96)) == "irregular lines"  # lines, written out for each row
    assert masks.pattern(torch.ones(1, 96, dtype=torch.bool)) == ""
