"""How a student is trained on in fewer bits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from compressor.recipe_base import Settings


class QuantizationAware(Settings):
    precision: Literal["static-int8", "weight-int8", "weight-int4"] = Field(
        "static-int8",
        description="what the student is trained in, wherever it applies; quantize.overrides says where not",
    )
    epochs: int = Field(1, ge=1, description="passes over the training data, after distill's")
    learning_rate: float = Field(4e-5, gt=0, description="peak of a linear warm-up and decay; a tenth of distill's")
    patience: int | None = Field(1, ge=1, description="stop after this many epochs without a better held-out score")
