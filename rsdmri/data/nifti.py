"""NIfTI images with BIDS-derivative names and sidecars; honest about an orientation that is not known."""

import gzip
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rsdmri import RESEARCH_ONLY, __version__
from rsdmri.data.derived import acquisition_times, check_volume
from rsdmri.data.scan import Geometry, Header
from rsdmri.data.stack import axes, first_pixels, stack_of
from rsdmri.errors import InputError
from rsdmri.files import atomic_path, write_text

PathLike = str | os.PathLike[str]

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def write_nifti(
    path: PathLike,
    volume: np.ndarray,
    *,
    geometry: Geometry | None = None,
    voxel_mm: tuple[float, float, float] | None = None,
    sidecar: Mapping[str, Any] | None = None,
) -> None:
    """Write magnitudes as NIfTI-1 float32 with a JSON sidecar beside it; the same input gives the same bytes.

    Axes of the image: x (w), y (h), slice. With a geometry, affine = [x dx, y dy, step, first pixel] with the first
    two coordinates negated (LPS -> RAS), in qform and sform with code 1 (scanner). Without one, or where the slices are
    no regular stack, the affine is the diagonal of the voxel size with code 0, and the sidecar says
    ``"OrientationKnown": false``.

    Args:
        path: ``.nii`` or ``.nii.gz``; each file is replaced atomically.
        volume: (slice, h, w) magnitudes, finite.
        geometry: where the slices lie. Slices that are stored out of order are sorted; ``SliceOrder`` says how.
        voxel_mm: (z, y, x), where the size is known and the geometry is not.
        sidecar: more for the JSON, such as `sidecar_of` gives; the note on research use is always added.

    Raises:
        InputError: a name with another suffix.
    """
    target = Path(path)
    if not target.name.endswith((".nii", ".nii.gz")):
        raise InputError(f"{target.name}: expected a name that ends in .nii or .nii.gz")
    images = check_volume(volume)
    if geometry is not None and len(geometry.centres) != len(images):
        raise ValueError(f"geometry: {len(geometry.centres)} slice centres for {len(images)} slices")
    affine, order, facts = _placed(geometry, voxel_mm, (images.shape[1], images.shape[2]))
    data = _encoded(images[list(order)] if order else images, affine, known=facts["OrientationKnown"])
    with atomic_path(target) as temporary:
        temporary.write_bytes(gzip.compress(data, 6, mtime=0) if target.suffix == ".gz" else data)
    text = json.dumps({**(sidecar or {}), **facts, "Note": RESEARCH_ONLY}, indent=2, allow_nan=False)
    write_text(sidecar_path(target), text + "\n")


def sidecar_path(path: PathLike) -> Path:
    """JSON beside a ``.nii`` or ``.nii.gz``."""
    target = Path(path)
    return target.with_name(re.sub(r"\.nii(\.gz)?$", ".json", target.name))


def sidecar_of(provenance: Mapping[str, Any], header: Header | None, description: str) -> dict[str, Any]:
    """BIDS sidecar: what the image is and how it was made; times in seconds, as BIDS has them."""
    found: dict[str, Any] = {"Description": description, "Units": "arbitrary", **provenance}
    if header is not None and header.field_strength_t is not None:
        found["MagneticFieldStrength"] = header.field_strength_t
    for name, values in acquisition_times(header).items():
        scaled = values if name == "FlipAngle" else [value / 1000 for value in values]
        found[name] = scaled[0] if len(scaled) == 1 else scaled
    return found


def bids_path(subject: str, method: str, desc: str, suffix: str | None) -> Path:
    """``sub-XX/anat/sub-XX_rec-METHOD_desc-DESC_SUFFIX.nii.gz``; labels keep letters and digits alone.

    BIDS has no suffix for a contrast that is not known (None): such images end in ``MRI``.
    """
    label = bids_label(subject)
    name = f"sub-{label}_rec-{bids_label(method)}_desc-{bids_label(desc)}_{suffix or 'MRI'}.nii.gz"
    return Path(f"sub-{label}", "anat", name)


def bids_label(text: str) -> str:
    """Letters and digits of ``text``, ``x`` where it has none."""
    return re.sub(r"[^A-Za-z0-9]", "", text) or "x"


def dataset_description() -> dict[str, Any]:
    """Contents of ``dataset_description.json`` of a folder of reconstructions."""
    return {
        "Name": "Reconstructions by rsdmri",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "rsdmri", "Version": __version__, "Description": RESEARCH_ONLY}],
        "SourceDatasets": [{"Version": "not recorded; Sources of each image names its scan by hash"}],
    }


def _placed(
    geometry: Geometry | None, voxel_mm: tuple[float, float, float] | None, size: tuple[int, int]
) -> tuple[np.ndarray, tuple[int, ...], dict[str, Any]]:
    """Affine (RAS), slices in the order of the stack (empty: as they are) and what the sidecar says of them."""
    stack = None if geometry is None else stack_of(geometry)
    if geometry is None or stack is None:
        facts: dict[str, Any] = {
            "OrientationKnown": False,
            "SpacingKnown": voxel_mm is not None or geometry is not None,
        }
        if geometry is not None:
            voxel_mm = (geometry.thickness_mm, *geometry.spacing_mm)
            facts["OrientationNote"] = "the slices are not evenly spaced along their normal: no affine places them"
        return np.diag([*reversed(voxel_mm or (1.0, 1.0, 1.0)), 1.0]), (), facts
    x, y, _ = axes(geometry)
    dy, dx = geometry.spacing_mm
    corner = first_pixels(geometry, size)[stack.order[0]]
    affine = np.eye(4)
    affine[:3] = _LPS_TO_RAS @ np.column_stack([dx * x, dy * y, stack.step, corner])
    facts = {"OrientationKnown": True, "SpacingKnown": True, "SliceThickness": geometry.thickness_mm}
    if stack.order != tuple(range(len(stack.order))):
        facts["SliceOrder"] = list(stack.order)
    return affine, stack.order, facts


def _encoded(images: np.ndarray, affine: np.ndarray, known: bool) -> bytes:
    import nibabel as nib

    image = nib.Nifti1Image(np.ascontiguousarray(images.transpose(2, 1, 0)), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = f"rsdmri {__version__}. {RESEARCH_ONLY}".encode()
    image.set_qform(affine, code=int(known))
    image.set_sform(affine, code=int(known))
    data: bytes = image.to_bytes()
    return data
