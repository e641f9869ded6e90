"""What every section of the configuration is."""

from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, non-finite numbers refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


AnySection = TypeVar("AnySection", bound=Section)
Level = Annotated[float, Field(gt=0, le=80)]  # standard deviation of noise per real number
