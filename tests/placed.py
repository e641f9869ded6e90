"""Volumes with known points in the patient, and the readers that tell where a file says they are."""

import numpy as np

from rsdmri.data.scan import Geometry

MARKS = {(0, 2, 1): 9.0, (1, 3, 6): 8.0, (2, 7, 4): 7.0}
"""(slice, y, x) of bright pixels and their values: no symmetry maps them onto themselves."""


def oblique(slices: int = 3, gap: float = 5.0, turn: int = 0, left_handed: bool = False) -> Geometry:
    """A stack that lies askew to all axes."""
    q, _ = np.linalg.qr(np.random.default_rng(turn).normal(size=(3, 3)))
    x, y = q[0], q[1]
    normal = np.cross(x, y) * (-1 if left_handed else 1)
    centres = [np.array([11.0, -23.0, 37.0]) + gap * k * normal for k in range(slices)]
    return Geometry((1.25, 0.8), 4.0, tuple(y.tolist()), tuple(x.tolist()), tuple(tuple(c.tolist()) for c in centres))


def position(geometry: Geometry, index: tuple[int, int, int], size: tuple[int, int]) -> np.ndarray:
    """LPS millimetres of pixel ``index`` (slice, y, x) of images of ``size`` whose centre is n // 2."""
    k, i, j = index
    down = (i - size[0] // 2) * geometry.spacing_mm[0] * np.array(geometry.y_direction)
    across = (j - size[1] // 2) * geometry.spacing_mm[1] * np.array(geometry.x_direction)
    return np.array(geometry.centres[k]) + down + across


def volume(size: tuple[int, int] = (9, 8), scale: float = 1.0) -> np.ndarray:
    """(3, y, x) with `MARKS` over a weak ramp."""
    ramp = np.linspace(0.5, 1, 3 * size[0] * size[1], dtype=np.float32).reshape(3, *size)
    for index, value in MARKS.items():
        ramp[index] = value
    return ramp * np.float32(scale)


def brightest(image, count: int = 3) -> dict[float, np.ndarray]:
    """Value and LPS position of the brightest pixels of a SimpleITK image."""
    import SimpleITK as sitk

    array = sitk.GetArrayFromImage(image)
    found = {}
    for flat in np.argsort(array, axis=None)[-count:]:
        k, i, j = (int(n) for n in np.unravel_index(flat, array.shape))
        found[float(array[k, i, j])] = np.array(image.TransformIndexToPhysicalPoint((j, i, k)))
    return found


def read_series(folder):
    """A DICOM folder as a SimpleITK volume."""
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def source_file(path, **replace):
    """A DICOM image of John Doe, whose Study and FrameOfReference UIDs are 1.2.3 and 1.2.5."""
    import pydicom

    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "1.2.3.4"
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientID = "DOE^JOHN", "19600101", "MRN-778899"
    dataset.StudyInstanceUID, dataset.FrameOfReferenceUID = "1.2.3", "1.2.5"
    for name, value in replace.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)
    return path
