"""What the measurement does to generated images before scores see them, where it is not part of the operator A."""

from torch import Tensor

from rsdmri.config import CorruptionConfig
from rsdmri.physics.corruptions import Blur, Downsampling
from rsdmri.physics.linop import Identity, LinearOperator


def degradation(settings: CorruptionConfig, shape: tuple[int, ...]) -> LinearOperator:
    """The known, fixed part of the corruption for images of ``shape`` [..., y, x]: blur or lower resolution.

    Acquired lines, missing pixels and noise are not in it: they are in the operators and noise levels of a batch.
    """
    match settings.kind:
        case "blur":
            return Blur(settings.blur, shape)
        case "super-resolution":
            return Downsampling(settings.factor, shape)
        case _:
            return Identity(shape)


def full_size(settings: CorruptionConfig, image: Tensor) -> Tensor:
    """Zeros of the shape (batch, y, x) and type that clean images of the measured ``image`` have."""
    factor = settings.factor if settings.kind == "super-resolution" else 1
    return image.new_zeros((*image.shape[:-2], factor * image.shape[-2], factor * image.shape[-1]))
