"""DICOM series of reconstructions: MR images where the geometry is known, Secondary Capture where it is not."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.derived import acquisition_times, check_volume, digest, provenance
from rsdmri.data.scan import Geometry, Header
from rsdmri.data.stack import axes, first_pixels, stack_of
from rsdmri.errors import InputError
from rsdmri.files import atomic_folder

if TYPE_CHECKING:
    from pydicom import Dataset

PathLike = str | os.PathLike[str]

MR_IMAGE, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
_LARGEST_STORED = 4095  # 12 bits
_SERIES = {"mean": 9001, "magnitude": 9001, "std": 9002}
_MEANINGS = {
    "mean": "mean of posterior draws",
    "magnitude": "magnitude",
    "std": "standard deviation of posterior draws",
}


@dataclass(frozen=True, eq=False)
class Study:
    """What the series of one reconstruction share."""

    volumes: Mapping[str, np.ndarray]
    """``mean`` or ``magnitude``, and ``std`` where there is one: (slice, h, w) float32."""
    geometry: Geometry | None
    voxel_mm: tuple[float, float, float] | None
    header: Header | None
    facts: Mapping[str, Any]
    """Provenance, see `rsdmri.data.derived.provenance`."""
    study_uid: str
    frame_uid: str
    patient: str
    """Pseudonym."""
    power: int
    """Images are shown in units of 10^-power of the file's, so that windows are numbers that viewers can work with."""

    def uid(self, *key: object) -> str:
        """UID that depends on the images, the settings and ``key`` alone."""
        from pydicom.uid import generate_uid

        return str(generate_uid(entropy_srcs=[self.study_uid, self.fingerprint, *map(str, key)]))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what was reconstructed and how."""
        return digest(dict(self.facts), *self.volumes.values())


def study_of(
    volume: np.ndarray,
    std: np.ndarray | None = None,
    *,
    geometry: Geometry | None = None,
    voxel_mm: tuple[float, float, float] | None = None,
    header: Header | None = None,
    attrs: Mapping[str, Any] | None = None,
    source: PathLike | None = None,
) -> Study:
    """Collect what the series of one reconstruction share; arguments as for `write_dicom`."""
    from pydicom.uid import generate_uid

    name = "magnitude" if std is None else "mean"
    given = {name: volume} if std is None else {name: volume, "std": std}
    volumes = {kind: check_volume(array, kind) for kind, array in given.items()}
    if any(array.shape != volume.shape for array in volumes.values()):
        raise ValueError(f"std: expected the shape {volume.shape} of the volume, got {volumes['std'].shape}")
    if geometry is not None and len(geometry.centres) != len(volume):
        raise ValueError(f"geometry: {len(geometry.centres)} slice centres for {len(volume)} slices")
    facts = provenance(attrs or {})
    scan = facts.get("Sources", [digest(volumes[name])])[0]
    study, frame = (str(generate_uid(entropy_srcs=[word, scan])) for word in ("study", "frame of reference"))
    if source is not None:
        study, frame = source_uids(source, frame)
    largest = float(volumes[name].max())
    power = 3 - math.floor(math.log10(largest)) if largest > 0 else 0
    patient = f"anon-{digest('patient', scan)[:12]}"
    return Study(volumes, geometry, voxel_mm, header, facts, study, frame, patient, power)


def write_dicom(folder: PathLike, volume: np.ndarray, std: np.ndarray | None = None, **known: Any) -> None:
    """Write magnitudes as DICOM: one series in ``mean/`` (``magnitude/`` without ``std``), one in ``std/``.

    MR Image Storage, 12 bits stored of 16, Explicit VR Little Endian; one rescale and one window for a series, shared
    units of both series, and the real-world value mapping back to the units of ``volume``. Without a geometry the
    images are Secondary Capture and say that their orientation is not known. UIDs depend on images and settings alone:
    the same input gives the same bytes. Nothing names the patient, the institution or a date.

    Args:
        folder: written beside and renamed as a whole; a folder of that name is replaced.
        volume: (slice, h, w) magnitudes, finite.
        std: the same shape.
        known: ``geometry``; ``voxel_mm``, (z, y, x) where the size is known and the geometry is not; ``header``, whose
            times are written; ``attrs``, of the reconstruction; ``source``, a DICOM file of the same examination, whose
            Study and FrameOfReference UIDs are taken and nothing else.

    Raises:
        InputError: a source that is no DICOM file or has no valid UIDs.
    """
    study = study_of(volume, std, **known)
    with atomic_folder(folder) as temporary:
        for kind in study.volumes:
            (temporary / kind).mkdir()
            for number, dataset in enumerate(datasets(study, kind), start=1):
                dataset.save_as(temporary / kind / f"{number:04d}.dcm", enforce_file_format=True)


def datasets(study: Study, kind: str) -> "list[Dataset]":
    """DICOM images of the series ``kind``, one a slice, in the order of the volume."""
    volume = study.volumes[kind]
    shown = volume.astype(np.float64) * 10.0**study.power
    slope = float(_decimal(float(shown.max()) / _LARGEST_STORED or 1.0))
    stored = np.clip(np.round(shown / slope), 0, _LARGEST_STORED).astype(np.uint16)
    white = max(float(np.percentile(shown, 99.7)) or float(shown.max()), 1.0)  # viewers need a width of at least 1
    found = []
    for index, pixels in enumerate(stored):
        dataset = _new(study, kind, index)
        _pixels(dataset, pixels, (int(stored.min()), int(stored.max())))
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", _decimal(slope), "US"
        dataset.WindowCenter, dataset.WindowWidth = _decimal(white / 2), _decimal(white)
        dataset.RealWorldValueMappingSequence = [_real_values(slope * 10.0**-study.power)]
        _place(dataset, study, index)
        found.append(dataset)
    return found


def source_uids(source: PathLike, otherwise: str) -> tuple[str, str]:
    """Study and FrameOfReference UIDs of a DICOM file; ``otherwise`` where it has no frame of reference.

    Raises:
        InputError: no DICOM file, or UIDs that are not valid.
    """
    from pydicom import dcmread

    wanted = ["StudyInstanceUID", "FrameOfReferenceUID"]
    try:
        with dcmread(source, stop_before_pixels=True, specific_tags=wanted) as dataset:
            study = dataset.get("StudyInstanceUID")
            frame = dataset.get("FrameOfReferenceUID") or otherwise
    except OSError as error:
        raise InputError(f"{os.fspath(source)}: cannot be read ({error.strerror or 'no such file'})") from None
    except Exception:  # whatever a damaged file makes of the parser; its words may hold personal data
        raise InputError(f"{os.fspath(source)}: not a DICOM file; give an image of the same examination") from None
    for name, value in zip(wanted, (study, frame), strict=True):
        if not _valid_uid(value):
            raise InputError(f"{os.fspath(source)}: has no valid {name}; give an image of the same examination")
    return str(study), str(frame)


def _valid_uid(value: object) -> bool:
    from pydicom.uid import UID

    return isinstance(value, UID) and value.is_valid and "." in value


def _new(study: Study, kind: str, index: int) -> "Dataset":
    """Everything of one image but pixels and place."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = SECONDARY_CAPTURE if study.geometry is None else MR_IMAGE
    dataset.SOPInstanceUID = study.uid(kind, index)
    dataset.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    for name in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
        setattr(dataset, name, "")
    for name in ("PatientBirthDate", "PatientSex", "PatientOrientation", "Laterality"):
        setattr(dataset, name, "")
    dataset.PatientName, dataset.PatientID = "anonymous^", study.patient
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "rsdmri: nothing identifying is written"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study.study_uid, study.uid(kind)
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = "MR", _SERIES[kind], index + 1
    dataset.Manufacturer = dataset.ManufacturerModelName = "rsdmri"
    dataset.SoftwareVersions = __version__
    method = str(study.facts.get("ReconstructionMethod", "reconstruction"))
    dataset.SeriesDescription = f"{method} {kind}, research use only"[:64]
    dataset.DerivationDescription = _derivation(study, kind)
    dataset.ImageComments = RESEARCH_ONLY
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    return dataset


def _derivation(study: Study, kind: str) -> str:
    """How the image was made, its units, and that nobody may diagnose from it; at most 1024 characters."""
    facts = study.facts
    words = [f"rsdmri {__version__}, {facts.get('ReconstructionMethod', 'reconstruction')}: {_MEANINGS[kind]}"]
    if "Acceleration" in facts:
        words.append(f"acceleration R={facts['Acceleration']:.2f}")
    words += [f"seed {facts['Seed']}"] if "Seed" in facts else []
    words += [f"mask sha256 {facts['MaskSHA256'][:16]}"] if "MaskSHA256" in facts else []
    words.append(f"shown in units of 1e{-study.power} of the scan's")
    words += ["orientation and position are not known"] if study.geometry is None else []
    return ("; ".join(words) + f". Not for diagnostic use. {RESEARCH_ONLY}")[:1024]


def _pixels(dataset: "Dataset", pixels: np.ndarray, limits: tuple[int, int]) -> None:
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = int(pixels.min()), int(pixels.max())
    dataset.SmallestPixelValueInSeries, dataset.LargestPixelValueInSeries = limits
    dataset.PixelData = pixels.astype("<u2").tobytes()


def _real_values(slope: float) -> "Dataset":
    """Mapping of stored values to the units of the scan."""
    from pydicom import Dataset

    unit = Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "1", "UCUM", "no units"
    mapping = Dataset()
    mapping.RealWorldValueFirstValueMapped, mapping.RealWorldValueLastValueMapped = 0, _LARGEST_STORED
    mapping.RealWorldValueIntercept, mapping.RealWorldValueSlope = 0.0, slope
    mapping.LUTExplanation, mapping.LUTLabel = "magnitude in the units of the scan", "MAGNITUDE"
    mapping.MeasurementUnitsCodeSequence = [unit]
    return mapping


def _place(dataset: "Dataset", study: Study, index: int) -> None:
    """Position and acquisition of an MR image; conversion and pixel size of a secondary capture."""
    if study.geometry is None:
        dataset.ConversionType = "WSD"
        if study.voxel_mm is not None:
            dataset.PixelSpacing = [_decimal(side) for side in study.voxel_mm[1:]]
        return
    geometry = study.geometry
    x, y, normal = axes(geometry)
    corner = first_pixels(geometry, (dataset.Rows, dataset.Columns))[index]
    dataset.FrameOfReferenceUID, dataset.PositionReferenceIndicator = study.frame_uid, ""
    dataset.ImageOrientationPatient = [_decimal(value) for value in (*x, *y)]
    dataset.ImagePositionPatient = [_decimal(value) for value in corner]
    dataset.PixelSpacing = [_decimal(side) for side in geometry.spacing_mm]
    dataset.SliceThickness = _decimal(geometry.thickness_mm)
    dataset.SliceLocation = _decimal(float(np.array(geometry.centres[index]) @ normal))
    stack = stack_of(geometry)
    if stack is not None and len(stack.order) > 1:
        dataset.SpacingBetweenSlices = _decimal(float(np.linalg.norm(stack.step)))
    del dataset.PatientOrientation  # ImageOrientationPatient says it
    dataset.PatientPosition = ""
    dataset.ScanningSequence, dataset.SequenceVariant, dataset.ScanOptions = "RM", "NONE", ""  # research mode
    encoded = None if study.header is None else study.header.encoded
    dataset.MRAcquisitionType = "" if encoded is None else "3D" if encoded[2] > 1 else "2D"
    dataset.EchoTime = dataset.RepetitionTime = dataset.EchoTrainLength = ""
    for name, values in acquisition_times(study.header).items():
        if len(values) == 1:
            setattr(dataset, name, _decimal(values[0]))
    if "InversionTime" in dataset:
        dataset.ScanningSequence = ["RM", "IR"]
    if study.header is not None and study.header.field_strength_t is not None:
        dataset.MagneticFieldStrength = _decimal(study.header.field_strength_t)


def _decimal(value: float) -> str:
    """Decimal string of at most 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return format_number_as_ds(float(value))
