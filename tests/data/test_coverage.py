"""Coverage of training sets: counts, table, refusals, for masks of the scans and drawn ones, lines and points."""

import numpy as np
import pytest
import torch

from rsdmri.config import load_config
from rsdmri.data.coverage import listed
from rsdmri.data.fastmri_write import write_scan
from rsdmri.data.simulate import simulate_scan
from rsdmri.errors import InputError
from rsdmri.physics import masks
from rsdmri.workflows.plan import check_coverage, open_slices
from rsdmri.workflows.train import train

ACS = [14, 15, 16, 17]


def mask_of(*outer: int, size: int = 32) -> np.ndarray:
    return np.isin(np.arange(size), [*(line + (size - 32) // 2 for line in ACS), *outer])


@pytest.fixture(scope="module")
def write(tmp_path_factory):
    """``write(name, masks)`` writes one scan of 2 slices for each mask and returns the folder."""

    def write(name, given, size=32):
        folder = tmp_path_factory.getbasetemp() / "coverage" / name
        folder.mkdir(parents=True, exist_ok=True)
        kspace = simulate_scan(0, slices=2, size=size, coils=2, noise=0.02, seed=5).kspace
        for number, mask in enumerate(given):
            acquired = np.broadcast_to(mask, kspace.shape[-2:])
            write_scan(folder / f"{size}-{number}.h5", np.where(acquired, kspace, 0), mask=mask)
        return folder

    return write


def coverage_of(folder, *settings):
    config = load_config(None, [f"data.path={folder}", *settings])
    return config, open_slices(config, folder).coverage()


def refused(folder, *settings) -> str:
    config, coverage = coverage_of(folder, *settings)
    with pytest.raises(InputError) as caught:
        check_coverage(config, coverage)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_counts_of_scans_slices_and_held_out_lines(write):
    given = [mask_of(2, 9), mask_of(2, 20, 21, 22), mask_of(30)]
    _, (found,) = coverage_of(write("counts", given), "acquisition.further_drop=2")
    stack = np.stack(given)
    assert found.scans[0].tolist() == stack.sum(0).tolist()
    assert found.slices[0].tolist() == (2 * stack.sum(0)).tolist()
    assert (found.n_scans, found.n_slices, len(found.masks), found.drop) == (3, 6, 3, 2)
    assert found.kept[0].nonzero().flatten().tolist() == ACS
    expected = {2: 2 * (1 + 2 / 4), 9: 2, 20: 1, 21: 1, 22: 1, 30: 2}
    assert found.held_out[0].tolist() == [expected.get(line, 0) for line in range(32)]
    assert found.never[0].tolist() == (~stack.any(0)).tolist()
    text = "\n".join(found.table())
    assert "coverage of 32 lines (as acquired): 3 scans, 6 slices, 3 different masks, together 10 of 32" in text
    rows = {row.split()[0]: row.split()[1:] for row in found.table()[2:6]}
    assert rows["ACS"] == ["4", "3", "6", "0", "14-17"]
    assert " ".join(rows["outside"]) == "6 1 to 2 2 to 4 1 to 3 2, 9, 20-22, 30"
    assert " ".join(rows["never"]).startswith("22 0 0 0 0-1, 3-8, 10-13,")
    assert found.table()[-1].split()[1] == "".join(
        "#" if n == 3 else "!" if n == 0 else str(10 * n // 3) for n in stack.sum(0).tolist()
    )


def test_widths_and_kinds_of_masks_have_parts_of_their_own(write, tmp_path):
    folder = write("mixed", [mask_of(2, 9), mask_of(3)])
    write("mixed", [mask_of(3, size=36), mask_of(9, 4, size=36)], size=36)
    write_scan(folder / "full.h5", simulate_scan(1, slices=2, size=32, coils=2, noise=0.02, seed=5).kspace)
    config, found = coverage_of(folder)
    parts = {(tuple(p.masks.shape[1:]), p.given): p for p in found}
    assert parts.keys() == {((1, 32), True), ((1, 36), True), ((1, 32), False)}
    assert [parts[key].n_scans for key in sorted(parts)] == [1, 2, 2]
    assert parts[(1, 32), True].gap() is None  # lines are drawn at random for the full scan of this width
    assert parts[(1, 36), True].gap() is not None
    with pytest.raises(InputError, match="of 36 are acquired in no scan"):
        check_coverage(config, found)


def test_drawn_masks_lack_lines_by_chance_only(simulated):
    config, (found,) = coverage_of(simulated)
    assert not found.given
    assert (found.n_scans, found.n_slices, len(found.masks)) == (2, 4, 4)
    assert bool(found.never.any())
    (line,) = check_coverage(config, [found])
    assert line == f"{int(found.never.sum())} lines are in none of these masks by chance; add scans"
    assert "(drawn)" in found.table()[0]


def test_points(write):
    rng = np.random.default_rng(0)
    given = rng.random((3, 32, 32)) < 0.4
    given[:, 12:20, 12:20] = True
    given[:, :, 31] = False
    config, (found,) = coverage_of(write("points", given))
    assert found.scans.tolist() == given.sum(0).tolist()
    assert int(found.kept.sum()) >= 64
    assert "coverage of 32 x 32 points (as acquired): 3 scans" in found.table()[0]
    never = int((~given.any(0)).sum())
    with pytest.raises(InputError, match=f"points {never} of 1024 are acquired in no scan"):
        check_coverage(config, [found])


def test_a_shared_mask_is_refused_with_lines_reason_and_way_out(write):
    folder = write("shared", [mask_of(2, 9, 20, 30)] * 3)
    text = refused(folder)
    assert text.startswith("lines 0-1, 3-8, 10-13, 18-19, 21-29, 31 of 32 are acquired in no scan")
    assert "(all 3 scans share one mask)" in text
    assert text.endswith("add scans with other masks, or train with --equivariance")
    config, coverage = coverage_of(folder, "teacher.equivariance=1")
    (line,) = check_coverage(config, coverage)
    assert line.endswith("the equivariant term alone teaches what they hold")
    config, coverage = coverage_of(folder, "data.allow_gaps=true")
    (line,) = check_coverage(config, coverage)
    assert line.startswith("warning: lines 0-1, 3-8")
    config, coverage = coverage_of(folder, "teacher.objective=edm")  # takes zero-filled images as they are
    assert check_coverage(config, coverage) == []


def test_masks_that_tell_each_other_apart_are_refused(write):
    offsets = [mask_of(*range(k, 32, 4)) for k in range(4)]
    text = refused(write("grids", offsets * 2))
    assert text.startswith("lines 0-13, 18-31 of 32 can be known to be unacquired")
    assert "tells which of 4 masks it is of" in text
    config, coverage = coverage_of(write("grids", offsets * 2), "acquisition.further_drop=7")
    assert check_coverage(config, coverage) == []


def test_a_shared_drawn_mask_is_one_for_all_and_refused(simulated):
    config, (found,) = coverage_of(simulated, "acquisition.shared_mask=true")
    assert len(found.masks) == 1
    assert "(as acquired): 2 scans, 4 slices, 1 mask" in found.table()[0]
    assert "of 32 are acquired in no scan" in refused(simulated, "acquisition.shared_mask=true")
    for family in ("equispaced", "magic"):
        with pytest.raises(InputError, match="or --equivariance"):
            coverage_of(simulated, f"acquisition.mask={family}")
        config, coverage = coverage_of(simulated, f"acquisition.mask={family}", "teacher.equivariance=1")
        check_coverage(config, coverage)


def test_a_refused_training_says_the_table_and_leaves_nothing(write, tmp_path, tiny_settings):
    config = load_config(None, [*tiny_settings, f"data.path={write('shared', [mask_of(2, 9, 20, 30)] * 3)}"])
    said = []
    with pytest.raises(InputError, match="--equivariance"):
        train(config, tmp_path / "run", device="cpu", say=said.append)
    assert any("coverage of 32 lines" in line for line in said)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="--equivariance"):
        train(config, tmp_path / "run", device="cpu", dry_run=True, draw=True, say=said.append)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["coverage.png"]


def test_a_shared_mask_trains_with_the_term(write, tmp_path, tiny_settings):
    folder = write("shared", [mask_of(2, 9, 20, 30)] * 3)
    config = load_config(None, [*tiny_settings, "steps=2", "teacher.equivariance=1", f"data.path={folder}"])
    said = []
    train(config, tmp_path / "run", device="cpu", say=said.append)
    assert any("the equivariant term alone teaches" in line for line in said)
    assert (tmp_path / "run" / "prior" / "config.json").exists()
    assert (tmp_path / "run" / "coverage.png").exists()


def test_listed_ranges():
    flags = torch.zeros(3, 40, dtype=torch.bool)
    assert listed(flags) == ""
    flags[0, [0, 1, 2, 7]] = flags[2, [7, 39]] = True
    assert listed(flags) == "0-2, 7, 39"
    assert listed(torch.arange(40) % 2 == 0, most=3) == "0, 2, 4, ... (17 more ranges)"


def test_further_masks_hold_lines_out_as_often_as_the_table_says(write):
    given = [mask_of(2, 9), mask_of(2, 20, 21, 22), mask_of(30)]
    _, (found,) = coverage_of(write("counts", given), "acquisition.further_drop=2")
    stack = torch.as_tensor(np.stack(given))[:, None].repeat(2, 1, 1)
    acs = (slice(None), slice(14, 18))
    passes = 400
    held = torch.zeros(32)
    for index in range(passes):
        shown = masks.further_mask(stack, 2, acs=acs, generator=torch.Generator().manual_seed(index))
        held += (stack & ~shown).sum(dim=(0, 1))
    torch.testing.assert_close(held / passes, found.held_out[0], atol=0.15, rtol=0)
