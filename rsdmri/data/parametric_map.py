"""DICOM Parametric Maps: magnitudes and their spread as floating-point numbers, through highdicom."""

import os
from typing import Any

import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.dicom import datasets, study_of
from rsdmri.errors import InputError
from rsdmri.files import atomic_folder

_NO_DATE, _NO_TIME = "19000101", "000000"  # a Parametric Map has to have them
_SERIES = {"mean": 9003, "magnitude": 9003, "std": 9004}


def write_parametric_maps(
    folder: str | os.PathLike[str], volume: np.ndarray, std: np.ndarray | None = None, **known: Any
) -> None:
    """Write ``mean.dcm`` (``magnitude.dcm`` without ``std``) and ``std.dcm``: float32 in the units of ``volume``.

    Arguments are those of `rsdmri.data.dicom.write_dicom`; UIDs refer to the images that it writes.

    Raises:
        InputError: highdicom is not installed, or the geometry is not known, which a Parametric Map has to state.
    """
    try:
        from highdicom import VOILUTTransformation
        from highdicom.pm import ParametricMap, RealWorldValueMapping
        from pydicom.sr.codedict import codes
    except ImportError:
        raise InputError(
            "parametric-map: highdicom is not installed; python -m pip install 'rsdmri[parametric-map]'"
        ) from None
    study = study_of(volume, std, **known)
    if study.geometry is None:
        raise InputError("parametric-map: the scan does not say where its slices lie; write --format dicom instead")
    with atomic_folder(folder) as temporary:
        for kind, array in study.volumes.items():
            images = datasets(study, kind)
            top = float(array.max()) or 1.0
            window = VOILUTTransformation(window_center=top / 2, window_width=top, voi_lut_function="LINEAR_EXACT")
            mapping = RealWorldValueMapping(
                lut_label="MAGNITUDE",
                lut_explanation="magnitude in the units of the scan",
                unit=codes.UCUM.NoUnits,
                value_range=(0.0, top),
                intercept=0,
                slope=1,
            )
            image = ParametricMap(
                source_images=images,
                pixel_array=array,
                series_instance_uid=study.uid("parametric map", kind),
                series_number=_SERIES[kind],
                sop_instance_uid=study.uid("parametric map", kind, "instance"),
                instance_number=1,
                manufacturer="rsdmri",
                manufacturer_model_name="rsdmri",
                software_versions=__version__,
                device_serial_number="none",
                contains_recognizable_visual_features=False,
                real_world_value_mappings=[mapping],
                voi_lut_transformations=[window],
                content_date=_NO_DATE,
                content_time=_NO_TIME,
                content_description=f"{kind}. {RESEARCH_ONLY}",
            )
            image.Laterality = images[0].Laterality
            _without_chance(image, study.uid("parametric map", kind, "dimensions"))
            image.save_as(temporary / f"{kind}.dcm", enforce_file_format=True)


def _without_chance(image: Any, uid: str) -> None:
    """Take clock and random UIDs out of what highdicom made: the same input gives the same bytes."""
    del image.InstanceCreationDate, image.InstanceCreationTime
    for equipment in image.get("ContributingEquipmentSequence", []):
        if "ContributionDateTime" in equipment:
            del equipment.ContributionDateTime
    for element in image.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = uid
