"""What fewer bits a student may have, and how they are looked for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from compressor.recipe_base import FilePath, Settings, Share, distinct

Precision = Literal["dynamic-int8", "static-int8", "static-int16", "weight-int8", "weight-int4", "float16", "bfloat16"]
NodePrecision = Literal[Precision, "float32"]
RangeMethod = Literal["minmax", "percentile", "entropy", "mse"]


class Search(Settings):
    hours: float = Field(0.25, gt=0, description="no trial begins after so long; the best until then go on")
    trials: int = Field(40, ge=1, description="mixtures to try at most")
    max_mb: float | None = Field(None, gt=0, description="megabytes that what ships may weigh; null: any")
    max_ms: float | None = Field(
        None, gt=0, description="milliseconds that an inference of what ships may take (median); null: any"
    )
    seed: int = Field(0, ge=0, description="of what is tried next")
    study: FilePath | None = Field(
        None, description="folder of the trials, which several runs may share; null: in the run folder's cache"
    )

    def objection(self, size: int, p50_ms: float) -> str | None:
        """Why a model of so many bytes and that median may not ship; None where it may."""
        if self.max_mb is not None and size > self.max_mb * 1e6:
            return f"weighs {size:,} bytes; quantize.search.max_mb permits {self.max_mb:g} MB"
        if self.max_ms is not None and p50_ms > self.max_ms:
            return f"takes {p50_ms:.4g} ms; quantize.search.max_ms permits {self.max_ms:g} ms"
        return None


class QuantizationAware(Settings):
    precision: Literal["static-int8", "weight-int8", "weight-int4"] = Field(
        "static-int8",
        description="what the student is trained in, wherever it applies; quantize.overrides says where not",
    )
    epochs: int = Field(1, ge=1, description="passes over the training data, after distill's")
    learning_rate: float = Field(4e-5, gt=0, description="peak of a linear warm-up and decay; a tenth of distill's")
    patience: int | None = Field(1, ge=1, description="stop after this many epochs without a better held-out score")


class Quantization(Settings):
    precisions: Annotated[tuple[Precision, ...], AfterValidator(distinct)] = Field(
        ("dynamic-int8", "static-int8"),
        strict=False,
        description="candidates beside float32; all are measured, the best ships",
    )
    overrides: dict[str, NodePrecision] = Field(
        {}, description="precision of an operator (Gather) or of one node, by its name, in every candidate"
    )
    block: Literal[16, 32, 64, 128] = Field(
        32, description="how many weights share a scale in weight-int8 and weight-int4"
    )
    search: Search | None = Field(
        None, description="look for the best precision of every node, beside the candidates above; null: do not"
    )
    qat: QuantizationAware | None = Field(
        None, description="train the distilled student on in fewer bits, as one more candidate; null: do not"
    )
    calibration_samples: int = Field(
        128, ge=8, description="training examples that set the ranges of static precisions and try integer products"
    )
    calibration: RangeMethod = Field("minmax", description="how ranges follow from what the examples gave")
    max_bad_batches: Share = Field(
        0.0, description="calibration examples with NaN or infinity, all zero, or far beyond the others, as a share"
    )
    migrate: Literal["auto", "off"] = Field(
        "auto", description="move scales between layers before int8, where that brings its answers nearer to float32's"
    )
    correct_bias: Literal["auto", "off"] = Field(
        "auto", description="take out of biases what static-int8 adds to the mean of a product, where that does so too"
    )
    same_everywhere: bool = Field(True, description="weights that saturate on x86 without VNNI get a wider step")
