"""What every group of a recipe's settings is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MODULE_PATTERN = r"^[\w./-]+:\w+$"


def _share(value: object) -> object:
    """Accepts 0.02 and "2%"."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            return value
    return value


def _path(value: object) -> object:
    return Path(value) if isinstance(value, str) and value else value


FilePath = Annotated[Path, BeforeValidator(_path)]
Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, BeforeValidator(_share), Field(ge=0, lt=1)]
NotNegative = Annotated[float, Field(ge=0)]
# One weight throughout, or where it begins and where it ends: it goes straight from the one to the other.
Weight = NotNegative | Annotated[tuple[NotNegative, NotNegative], Field(strict=False)]


def is_on(weight: Weight) -> bool:
    """Whether the weight is above 0 at any time."""
    return weight not in (0, (0, 0))


class Settings(BaseModel):
    """Unknown keys and wrong types are refused; nothing changes after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    """The same values. Raises ValueError where one is named twice."""
    if repeated := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise ValueError(f"{repeated[0]!r} is named twice")
    return values
