"""Features of the Inception network, for the Frechet Inception distance (FID) as it is published.

The network is torch-fidelity's port of the one that FID was defined with. Its feature extractor alone is imported: the
package around it imports torchvision, which is not needed. Weights come from a file and are never downloaded.
"""

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsdmri.errors import InputError
from rsdmri.metrics.features import Array, checked_magnitudes
from rsdmri.runtime import select_device

WHITE = 1.5  # magnitude that becomes 255, in the package's units
_BATCH = 16
_LAYER = "2048"  # the pool after the last block, that of FID and KID
_CONVERT = (
    "from safetensors.torch import save_file; import torch; "
    "save_file(torch.load('in.pth', weights_only=True), 'out.safetensors')"
)


class InceptionFeatures:
    """The 2048 pooled features of FID of MR magnitude images.

    Magnitudes are clipped to [0, `WHITE`], scaled to 0 to 255, rounded to 8 bits, repeated in three channels, and
    resized by the network's own bilinear rule to 299 x 299. One window for all images, so brightness counts.

    Args:
        weights: torch-fidelity's ``weights-inception-2015-12-05-6726825d.pth`` converted to safetensors.
        device: ``auto``, or a torch device.

    Errors:
        InputError: no torch-fidelity, no such file, another format, other weights.
    """

    name = "inception-v3-2048"
    dimensions = 2048
    standardise = False

    def __init__(self, weights: Path, device: str = "auto") -> None:
        self._device = select_device(device)
        self._network = _network(weights).to(self._device)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:16]
        self.preprocessing = (
            f"pool after the last block, weights sha256 {digest}; magnitudes 0 to {WHITE:g} of the package's units as"
            " 8 bits, three equal channels, bilinear to 299x299 as TensorFlow 1"
        )

    def __call__(self, magnitudes: ArrayLike) -> Array:
        """Features of magnitudes (n, y, x): (n, 2048)."""
        x = eight_bits(checked_magnitudes(magnitudes, smallest=1))
        parts = [self._features(x[i : i + _BATCH]) for i in range(0, len(x), _BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, self.dimensions))

    def _features(self, x: NDArray[np.uint8]) -> Array:
        import torch

        with torch.no_grad():
            images = torch.from_numpy(x)[:, None].expand(-1, 3, -1, -1).to(self._device)
            return np.asarray(self._network(images)[0].cpu().numpy(), dtype=np.float64)


def eight_bits(magnitudes: NDArray[Any]) -> NDArray[np.uint8]:
    """Magnitudes with 0 to `WHITE` as 0 to 255, rounded; brighter pixels are 255."""
    return np.round(255 * np.clip(magnitudes / WHITE, 0, 1)).astype(np.uint8)


def _network(weights: Path) -> Any:
    """Extractor with the weights of a safetensors file.

    Its constructor opens a pickle or downloads; it is handed the tensors where it would download, and does neither.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    library = _library()
    if not weights.is_file():
        raise InputError(f"features inception: {weights}: no such file; give the path of the weights")
    try:
        tensors = load_file(weights)
    except SafetensorError:
        raise InputError(
            f'features inception: {weights}: not safetensors; convert it once: python -c "{_CONVERT}"'
        ) from None
    download = library.load_state_dict_from_url
    library.load_state_dict_from_url = lambda *_, **__: tensors
    try:
        return library.FeatureExtractorInceptionV3("inception", [_LAYER])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(f"features inception: {weights}: weights of another network ({reason})") from None
    finally:
        library.load_state_dict_from_url = download


def _library() -> Any:
    """torch-fidelity's module of the network, imported without running the package's ``__init__``."""
    known = "torch_fidelity" in sys.modules
    if not known:
        spec = find_spec("torch_fidelity")
        if spec is None:
            raise InputError(
                "features inception: torch-fidelity is missing; pip install --no-deps torch-fidelity (its torchvision"
                " is not needed), or take the extra rsdmri[inception]"
            )
        bare = ModuleType("torch_fidelity")
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["torch_fidelity"] = bare
    try:
        from torch_fidelity import feature_extractor_inceptionv3

        return feature_extractor_inceptionv3
    finally:
        if not known:  # so that others still find the whole package
            for name in [n for n in sys.modules if n.partition(".")[0] == "torch_fidelity"]:
                del sys.modules[name]
