"""What a user may ask for: frozen, strict models. Every field is documented here, once.

There is one recipe class per task (of text generation two: of an endpoint there is less to learn from), so that a
setting which means nothing for a task is an unknown key there. `recipe_file` reads these from YAML and turns every
violation into one line with its place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from compressor.recipe_base import MODULE_PATTERN, FilePath, Positive, Settings, Share, distinct, is_on
from compressor.recipe_data import ALTERNATIVES, Data, DataSource, Prompts, Resize
from compressor.recipe_distill import (
    AnswerDistillation,
    EmbeddingDistillation,
    ImageDistillation,
    NextTokenDistillation,
    OwnDistillation,
    TextDistillation,
    TokenDistillation,
)
from compressor.recipe_quantize import Quantization
from compressor.recipe_student import AnsweringStudent, DecoderStudent, ImageStudent, OwnStudent, TextStudent
from compressor.recipe_teacher import (
    ClassifierTeacher,
    EmbeddingTeacher,
    EndpointTeacher,
    EndpointWriter,
    GenerativeTeacher,
    ImageTeacher,
    ModuleTeacher,
    OnnxTeacher,
    TaggerTeacher,
)


class TextPairs(Data):
    _only_evaluation: ClassVar[frozenset[str]] = frozenset({"first", "second", "label", "positive", "negative"})

    train: DataSource = Field(
        description=f"training sentences, no labels needed: .jsonl, .csv or .parquet, {ALTERNATIVES}"
    )
    eval: DataSource = Field(description="held-out pairs with a label, in the same forms")
    text: tuple[str, ...] = Field(("text",), min_length=1, strict=False, description="training columns with sentences")
    first: str = Field("sentence1", description="evaluation column with the first sentence of a pair")
    second: str = Field("sentence2", description="evaluation column with the second sentence of a pair")
    label: str = Field("label", description="evaluation column that tells whether the two mean the same")
    positive: str | int = Field(1, description="its value for pairs that mean the same")
    negative: str | int = Field(0, description="its value for pairs that do not; rows with other values are left out")
    max_train: int | None = Field(None, ge=1, description="use at most this many distinct training sentences")
    streaming: bool = Field(
        False, description="read training rows one by one, shuffled, only until max_train are found; no converted copy"
    )
    max_bad_rows: Share = Field(0.01, description="rows without text that may be left out of a file, as a share of it")


class LabelledText(Data):
    train: DataSource = Field(
        description=f"training texts, with labels if distill learns from them: .jsonl, .csv or .parquet, {ALTERNATIVES}"
    )
    eval: DataSource = Field(description="held-out texts with labels, in the same forms")
    text: str = Field("text", description="column with the text")
    label: str = Field("label", description="column with the class: its name in the teacher's config, or its number")
    max_train: int | None = Field(None, ge=1, description="use at most this many training rows")
    streaming: bool = Field(
        False, description="read training rows one by one, shuffled, only until max_train are found; no converted copy"
    )
    max_bad_rows: Share = Field(0.01, description="rows without text that may be left out of a file, as a share of it")


class TaggedWords(Data):
    train: DataSource = Field(
        description="training sentences, word by word, with tags if distill learns from them: .jsonl or .parquet,"
        f" {ALTERNATIVES}"
    )
    eval: DataSource = Field(description="held-out sentences with tags, in the same forms")
    tokens: str = Field("tokens", description="column with the list of a sentence's words")
    tags: str = Field(
        "tags", description="column with the list of their classes: names in the teacher's config, or numbers"
    )
    max_train: int | None = Field(None, ge=1, description="use at most this many training sentences")
    streaming: bool = Field(
        False, description="read training rows one by one, shuffled, only until max_train are found; no converted copy"
    )
    max_bad_rows: Share = Field(
        0.01, description="rows without words and a tag for each that may be left out of a file, as a share of it"
    )


class Documents(Data):
    train: DataSource = Field(description=f"training texts, no labels needed: .jsonl, .csv or .parquet, {ALTERNATIVES}")
    eval: DataSource = Field(description="held-out texts in the same forms")
    text: str = Field("text", description="column with the text; it is cut into passages of student.max_length tokens")
    max_train: int | None = Field(None, ge=1, description="use at most this many training passages")
    max_eval: int | None = Field(None, ge=1, description="use at most this many held-out passages")
    max_bad_rows: Share = Field(0.01, description="rows without text that may be left out of a file, as a share of it")

    _only_evaluation: ClassVar[frozenset[str]] = frozenset({"max_eval"})


class LabelledImages(Data):
    train: DataSource = Field(
        description="training images: a folder with a folder for each class, or .npz with `images` uint8 [N,H,W] or"
        f" [N,H,W,C] and `labels` [N] if distill learns from them, {ALTERNATIVES}"
    )
    eval: DataSource = Field(description="held-out images with labels, in the same forms")
    size: tuple[Positive, Positive] = Field(strict=False, description="height and width of the images in pixels")
    resize: Resize = Field(
        "refuse", description="image files of another size: refuse, stretch to size, or crop the middle and scale"
    )
    classes: Annotated[tuple[str, ...], AfterValidator(distinct)] = Field(
        min_length=2, strict=False, description="class names, those of the folders; in the order of the labels"
    )
    image: str = Field("image", description="column with the image, in data with columns")
    label: str = Field("label", description="column with the class in such data: its name, or its number")
    mean: tuple[float, ...] = Field((0.5,), strict=False, description="per channel, of pixels scaled to 0..1")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.5,), strict=False, description="per channel, of pixels scaled to 0..1"
    )
    max_train: int | None = Field(None, ge=1, description="use at most this many training images")
    streaming: bool = Field(
        False,
        description="read training images one by one, shuffled, only until max_train are found; no converted copy",
    )
    max_bad_rows: Share = Field(
        0.01, description="images that may be left out because they cannot be used, as a share of those read"
    )


class Export(Settings):
    opset: int = Field(20, ge=18, le=23, description="ONNX operator set")


class Gate(Settings):
    max_drop: Share = Field(
        0.02, description="largest loss of the teacher's metric that may ship, as a share of it: 2% or 0.02"
    )
    judge: Literal["lower-bound", "value"] = Field(
        "lower-bound", description="what must stay within max_drop: the lower 95% bound of the share kept, or its value"
    )


class Benchmark(Settings):
    threads: int = Field(1, ge=1, description="intra-operator threads of each session")
    min_samples: int = Field(
        500, ge=459, description="timed inferences per model; 459 is the fewest that support a p99"
    )
    budget_s: float = Field(40.0, gt=0, description="time for the whole comparison")


_REFERENCE = "another model, of which nothing is learnt: how far it agrees with teacher and student is told; null: none"


class EmbeddingVerify(Settings):
    reference: EmbeddingTeacher | None = Field(None, description=_REFERENCE)


class ClassifierVerify(Settings):
    reference: ClassifierTeacher | None = Field(None, description=_REFERENCE)


class TaggerVerify(Settings):
    reference: TaggerTeacher | None = Field(None, description=_REFERENCE)


class ImageVerify(Settings):
    reference: ImageTeacher | None = Field(None, description=_REFERENCE)


class _Recipe(Settings):
    export: Export = Field(Export(), description="the ONNX graph")
    quantize: Quantization = Field(Quantization(), description="the int8 candidates")
    gate: Gate = Field(Gate(), description="what may ship")
    benchmark: Benchmark = Field(Benchmark(), description="timing on this machine, batch 1")
    out: FilePath = Field(Path("out"), description="run folder: stages, result.json, report.html, bundle")
    cache: FilePath | None = Field(
        None, description="folder where run folders share what was recorded of their teachers; null keeps it in out"
    )

    @model_validator(mode="after")
    def _inside_is_in_reach(self) -> Self:
        teacher, settings = getattr(self, "teacher", None), getattr(self, "distill", None)
        inside = isinstance(settings, TokenDistillation) and (
            is_on(settings.hidden_weight) or is_on(settings.relation_weight)
        )
        if inside and isinstance(teacher, OnnxTeacher | EndpointTeacher):
            raise ValueError(
                "a black box shows nothing of its inside: set distill.hidden_weight and distill.relation_weight to 0"
            )
        return self


class SentenceEmbeddingRecipe(_Recipe):
    task: Literal["sentence-embedding"]
    teacher: EmbeddingTeacher = Field(description="the model to learn from")
    data: TextPairs = Field(description="what to learn on, and what to be judged on")
    student: TextStudent = Field(TextStudent(), description="cut from the teacher's own weights")
    distill: EmbeddingDistillation = Field(EmbeddingDistillation(), description="how to learn")
    verify: EmbeddingVerify = Field(EmbeddingVerify(), description="what else judges")


class TextClassificationRecipe(_Recipe):
    task: Literal["text-classification"]
    teacher: ClassifierTeacher = Field(description="the model to learn from")
    data: LabelledText = Field(description="what to learn on, and what to be judged on")
    student: TextStudent = Field(TextStudent(), description="cut from the teacher's own weights")
    distill: TextDistillation = Field(TextDistillation(), description="how to learn")
    verify: ClassifierVerify = Field(ClassifierVerify(), description="what else judges")


class TokenClassificationRecipe(_Recipe):
    task: Literal["token-classification"]
    teacher: TaggerTeacher = Field(description="the model to learn from")
    data: TaggedWords = Field(description="what to learn on, and what to be judged on")
    student: TextStudent = Field(TextStudent(), description="cut from the teacher's own weights")
    distill: TextDistillation = Field(TextDistillation(), description="how to learn")
    verify: TaggerVerify = Field(TaggerVerify(), description="what else judges")


class TextGenerationRecipe(_Recipe):
    task: Literal["text-generation"]
    teacher: GenerativeTeacher = Field(description="the model to learn from")
    data: Documents = Field(description="what to learn on, and what to be judged on")
    student: DecoderStudent = Field(DecoderStudent(), description="cut from the teacher's own weights")
    distill: NextTokenDistillation = Field(NextTokenDistillation(), description="how to learn")
    quantize: Quantization = Field(Quantization(precisions=("dynamic-int8",)), description="the int8 candidates")

    @model_validator(mode="after")
    def _whole_teacher_in_training(self) -> TextGenerationRecipe:
        if self.teacher.shard and is_on(self.distill.on_policy):
            raise ValueError(
                "distill.on_policy asks the teacher during training, where it is not shared: set"
                " teacher.shard to false, or distill.on_policy to 0"
            )
        return self


class AnsweredGenerationRecipe(_Recipe):
    """Text generation by a student of a black box: of the teacher there is what it writes, and nothing else."""

    task: Literal["text-generation"]
    teacher: EndpointWriter = Field(description="the model to learn from")
    data: Prompts = Field(description="what to learn on, and what to be judged on")
    student: AnsweringStudent = Field(description="one that exists already, with a tokenizer of its own")
    distill: AnswerDistillation = Field(AnswerDistillation(), description="how to learn")
    quantize: Quantization = Field(Quantization(precisions=("dynamic-int8",)), description="the int8 candidates")


class ImageClassificationRecipe(_Recipe):
    task: Literal["image-classification"]
    teacher: ImageTeacher = Field(description="the model to learn from")
    data: LabelledImages = Field(description="what to learn on, and what to be judged on")
    student: ImageStudent = Field(
        ImageStudent(),
        description="a depthwise-separable CNN (widths); or cut from a transformer (layers, hidden, heads, ffn)",
    )
    distill: ImageDistillation = Field(ImageDistillation(), description="how to learn")
    verify: ImageVerify = Field(ImageVerify(), description="what else judges")


class OwnData(Data):
    train: DataSource = Field(description="training data: a path that the definition's `read` is given")
    eval: DataSource = Field(description="held-out data in the same form")
    max_train: int | None = Field(None, ge=1, description="use at most this many training examples")


class OwnTaskRecipe(_Recipe):
    task: Literal["own"]
    definition: str = Field(
        pattern=MODULE_PATTERN,
        description="file.py:callable or package.module:callable that returns a compressor.OwnTask",
    )
    teacher: ModuleTeacher = Field(description="the model to learn from")
    data: OwnData = Field(description="what to learn on, and what to be judged on")
    student: OwnStudent = Field(description="what is to learn")
    distill: OwnDistillation = Field(OwnDistillation(), description="how to learn")
    quantize: Quantization = Field(Quantization(precisions=("static-int8",)), description="the int8 candidates")


TextRecipe = (
    SentenceEmbeddingRecipe
    | TextClassificationRecipe
    | TokenClassificationRecipe
    | TextGenerationRecipe
    | AnsweredGenerationRecipe
)
Recipe = TextRecipe | ImageClassificationRecipe | OwnTaskRecipe
# Of these tasks, models that read and write otherwise can be compared.
ComparableRecipe = (
    SentenceEmbeddingRecipe | TextClassificationRecipe | TokenClassificationRecipe | ImageClassificationRecipe
)

RECIPES: dict[str, type[Recipe]] = {
    "sentence-embedding": SentenceEmbeddingRecipe,
    "text-classification": TextClassificationRecipe,
    "token-classification": TokenClassificationRecipe,
    "text-generation": TextGenerationRecipe,
    "image-classification": ImageClassificationRecipe,
    "own": OwnTaskRecipe,
}
# Where a teacher that is an endpoint makes it another recipe.
ENDPOINT_RECIPES: dict[str, type[Recipe]] = {"text-generation": AnsweredGenerationRecipe}


def recipe_class(task: str, teacher: object) -> type[Recipe]:
    """Which recipe is meant, by its task and its `teacher` as it is written."""
    recipes = {**RECIPES, **ENDPOINT_RECIPES} if isinstance(teacher, dict) and "endpoint" in teacher else RECIPES
    return recipes[task]
