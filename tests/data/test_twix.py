"""Siemens twix: what is read of heads and protocol, on made readouts and on measured files where they are at hand."""

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rsdmri.data import twix
from rsdmri.data.fastmri import read_scan
from rsdmri.data.twix import read_twix
from rsdmri.errors import InputError
from rsdmri.runtime import numpy_generator

SHARED = Path(os.environ.get("RSDMRI_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))
COILS, Y, X = 2, 32, 12  # 32 samples with the twofold oversampling of 16 pixels
NORMAL, READ, PHASE = np.array([0, 0.6, 0.8]), np.array([-1.0, 0, 0]), np.array([0, 0.8, -0.6])
CANARY = "DOE^JOHN"


def quaternion(phase, read, normal):
    """(w, x, y, z) of the rotation with these columns."""
    r = np.stack([phase, read, normal], axis=1)
    w = np.sqrt(1 + np.trace(r)) / 2
    return np.array([w, *(np.array([r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]]) / (4 * w))])


class Block(SimpleNamespace):
    """One readout as twixtools hands it out."""

    def is_flag_set(self, name):
        return name in self.flags

    def is_image_scan(self):
        return not {"NOISEADJSCAN", "PHASCOR"} & set(self.flags)


def block(samples, lin=0, *, sli=0, flags=(), position=(0.0, 0.0, 0.0), center_lin=X // 2):
    counter = SimpleNamespace(Lin=lin, Par=0, Sli=sli, Eco=0, Rep=0, Set=0, Phs=0)
    head = SimpleNamespace(
        SamplesInScan=samples.shape[1],
        UsedChannels=samples.shape[0],
        CutOff=[0, 0],
        CenterCol=samples.shape[1] // 2,
        CenterLin=center_lin,
        CenterPar=0,
        Counter=counter,
        SliceData=SimpleNamespace(SlicePos=list(position), Quaternion=quaternion(PHASE, READ, NORMAL)),
    )
    return Block(mdh=head, data=samples, flags=flags)


def protocol(**meas):
    return {
        "Meas": {"iPEFTLength": X, "iRoFTLength": float(Y), "flReadoutOSFactor": 2.0, "tPatientName": CANARY, **meas},
        "Dicom": {"flMagneticFieldStrength": 2.89, "tPatientID": CANARY},
        "MeasYaps": {
            "sKSpace": {"ucTrajectory": 1},
            "sSliceArray": {"asSlice": [{"dReadoutFOV": 160.0, "dPhaseFOV": 240.0, "dThickness": 5.0}]},
            "alTE": [3500, 7000, 9000],
            "alTR": [500000],
            "adFlipAngleDegree": [15.0],
            "lContrasts": 2,
            "sRXSPEC": {"alDwellTime": [5000]},
            "tProtocolName": CANARY,
        },
    }


@pytest.fixture
def made(monkeypatch):
    """A function that makes `read_twix` see these measurements, each (blocks, protocol)."""

    def make(*measurements):
        found = [{"mdb": blocks, "hdr": hdr} for blocks, hdr in measurements]
        monkeypatch.setattr(twix, "_open", lambda path, where: found)
        return read_twix("made.dat")

    return make


def points(centre, sign):
    """Samples (COILS, Y, X) of two unequal points at (i, j) pixels of 10 x 20 mm along READ and PHASE of ``centre``."""
    ky = (np.arange(Y) - Y // 2)[:, None] / (Y * 10.0)
    kx = (np.arange(X) - X // 2)[None] / (X * 20.0)
    total = np.zeros((COILS, Y, X), complex)
    for value, i, j in ((1.0, 3, 1), (0.6, -5, 4)):
        r = centre + 10.0 * i * READ + 20.0 * j * PHASE - centre
        total += value * np.exp(sign * 2j * np.pi * (ky * (r @ READ) + kx * (r @ PHASE)))
    return total.astype(np.complex64)


def test_slices_lie_where_the_geometry_says(made):
    """Siemens samples have the sign exp(+2 pi i k r); slices are measured 1, 0 and come in spatial order."""
    offsets = {0: 4.0, 1: -4.0}
    blocks = []
    for sli in (1, 0):
        centre = np.array([1.0, 2.0, 3.0]) + offsets[sli] * NORMAL
        samples = points(centre, +1) * (1 + sli)
        blocks += [block(samples[:, :, x], x, sli=sli, position=centre) for x in range(X)]
    scan = made((blocks, protocol()))
    assert scan.kspace.shape == (2, COILS, 16, X)
    assert scan.crop == (16, X)
    geometry = scan.geometry
    assert geometry.spacing_mm == (10.0, 20.0)
    image = np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(scan.kspace[:, 0], (-2, -1))), (-2, -1)))
    assert image[0].max() > 1.5 * image[1].max()
    for index, offset in enumerate((-4.0, 4.0)):
        centre = np.array([1.0, 2.0, 3.0]) + offset * NORMAL
        np.testing.assert_allclose(geometry.centres[index], centre, atol=1e-5)
        row, column = np.unravel_index(int(np.argmax(image[index])), image[index].shape)
        found = centre + 10 * (row - 8) * np.array(geometry.y_direction)
        found += 20 * (column - X // 2) * np.array(geometry.x_direction)
        np.testing.assert_allclose(found, centre + 30.0 * READ + 20.0 * PHASE, atol=1e-4)


def test_flags_noise_and_timing(made):
    generator = numpy_generator("twix")
    noise = (generator.standard_normal((COILS, 4096)) + 1j * generator.standard_normal((COILS, 4096))) / np.sqrt(2)
    samples = points(np.zeros(3), 1)
    adjustment = protocol()
    adjustment["MeasYaps"]["sRXSPEC"]["alDwellTime"] = [2500]
    other = [block(noise.astype("c8"), flags=("NOISEADJSCAN",)), block(samples[:, :7, 0], 500)]
    blocks = [
        block(samples[:, :, 0], 90, flags=("PHASCOR", "REFLECT")),
        block(samples[:, :, 0], 3, flags=("PATREFSCAN",)),
    ]
    blocks += [block(samples[:, :, x], x, flags=("PATREFANDIMASCAN",) if x == 6 else ()) for x in range(0, X, 2)]
    scan = made((other, adjustment), (blocks, protocol()))
    assert np.flatnonzero(scan.mask[0]).tolist() == list(range(0, X, 2))
    assert scan.warnings[0].startswith("readouts left out, by their flags: 1 phase-correction, 1 calibration-only")
    np.testing.assert_allclose(scan.noise_cov, np.eye(COILS) * 0.5 / 0.79, atol=0.06)
    known = scan.header
    assert (known.echo_times_ms, known.repetition_times_ms, known.flip_angles_deg) == ((3.5, 7.0), (500.0,), (15.0,))
    assert known.field_strength_t == 2.89
    assert CANARY not in repr((scan, known, scan.warnings, scan.acquisition))


def test_a_protocol_that_does_not_fit_is_not_followed(made):
    samples = points(np.zeros(3), 1)
    blocks = [block(samples[:, :, x], x, center_lin=0) for x in range(X)]
    scan = made((blocks, protocol(iPEFTLength=4, iRoFTLength=64)))
    assert scan.kspace.shape == (1, COILS, Y, X)
    assert scan.geometry is None
    assert any("does not describe" in words for words in scan.warnings)


def test_what_is_no_twix_is_refused(tmp_path):
    pytest.importorskip("twixtools", reason="parses twix")
    for name, content, words in (
        ("missing.dat", None, "no such file"),
        ("text.dat", CANARY.encode() * 500, "is not a twix file with readouts, or is damaged"),
        ("empty.dat", b"", "has 0 bytes"),
        ("plain", b"1", "no suffix"),
    ):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            read_twix(path)
        assert str(caught.value).startswith(str(path))
        assert CANARY not in str(caught.value)


def test_without_twixtools_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "twixtools", None)
    with pytest.raises(InputError, match=r"pip install 'rsdmri\[twix\]'"):
        read_twix("a.dat")


needs_files = pytest.mark.skipif(
    not (SHARED / "twix").is_dir(), reason="real scans are not here (set RSDMRI_SHARED_DATA)"
)


def rss(kspace):
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (-2, -1)), norm="ortho"), (-2, -1))
    return np.sqrt((np.abs(image) ** 2).sum(1))[0]


@needs_files
@pytest.mark.external
@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("brain16ch_pulseq_gre", "brain16ch_pulseq_gre_128x128"),
        ("phantom2ch_gre", "phantom2ch_twixtools_gre_160x160"),
    ],
)
def test_a_measured_scan_is_the_same_as_its_conversion_by_others(name, same):
    """The conversions are stored as (phase encode, readout): transposed, and in other units."""
    pytest.importorskip("twixtools", reason="parses twix")
    ours = read_twix(SHARED / "twix" / f"{name}.dat")
    theirs = read_scan(SHARED / "kspace" / f"{same}.h5")
    image, other = rss(ours.kspace).T, rss(theirs.kspace)
    assert np.corrcoef(image.ravel(), other.ravel())[0, 1] > 1 - 1e-9
    assert ours.mask.all()
    assert (ours.geometry is None) == (name == "brain16ch_pulseq_gre")  # its protocol is not that of its sequence


@needs_files
@pytest.mark.external
def test_a_twix_file_that_is_cut_short_is_refused(tmp_path):
    pytest.importorskip("twixtools", reason="parses twix")
    content = (SHARED / "twix" / "phantom2ch_gre.dat").read_bytes()
    for size in (1000, 20_000, 300_000, len(content) - 6000):
        path = tmp_path / "cut.dat"
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=rf"file is cut short \({size:,} of 1,656,864 bytes\)"):
            read_twix(path)
