"""The kinds of teacher that a recipe may name, and whose they are.

A key that only one kind has (path, hub, module, onnx, endpoint) tells which is meant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from compressor.recipe_base import MODULE_PATTERN, FilePath, Settings, distinct

Permission = Literal["own-model", "license-permits", "written-permission"]
Shared = Annotated[
    bool,
    Field(
        description="share its weights among the processes of torchrun or accelerate launch while its outputs are"
        " recorded, for a teacher that is too large for one GPU"
    ),
]
Classes = Annotated[tuple[str, ...], AfterValidator(distinct), Field(min_length=2, strict=False)]


class TeacherRights(Settings):
    """Whose weights these are; each kind of teacher adds where they lie."""

    license: str | None = Field(None, description="licence of the teacher's weights, as an SPDX identifier")
    permission: Permission | None = Field(
        None,
        description="what permits distilling this teacher: own-model, license-permits or written-permission;"
        " null when a permissive licence does, set here or read from the model card in its folder",
    )
    reference: str | None = Field(None, description="where that permission can be read: a file, a URL, a contract")
    terms: str | None = Field(None, description="terms of service that apply to the teacher: a URL, or their text")

    @model_validator(mode="after")
    def _evidence(self) -> TeacherRights:
        if self.permission == "license-permits" and not (self.license or "").strip():
            raise ValueError("permission license-permits needs the licence: set teacher.license, such as Apache-2.0")
        if self.permission == "written-permission" and not (self.reference or "").strip():
            raise ValueError("permission written-permission needs where it can be read: set teacher.reference")
        return self


class FolderTeacher(TeacherRights):
    path: FilePath = Field(
        description="folder in Hugging Face or sentence-transformers layout: config.json, *.safetensors, and of text"
        " tokenizer.json"
    )
    trust_remote_code: bool = Field(
        False, description="run Python code that the folder brings along; recorded in the bundle's lineage"
    )
    shard: Shared = False


class ModuleTeacher(TeacherRights):
    module: str = Field(
        pattern=MODULE_PATTERN, description="file.py:callable or package.module:callable that returns a torch module"
    )
    weights: FilePath = Field(description="its state dict (safetensors)")


class HubTeacher(TeacherRights):
    hub: str = Field(
        pattern=r"^[\w][\w.-]*(/[\w][\w.-]*)?$",
        description="repository on the Hugging Face hub, such as sentence-transformers/all-MiniLM-L6-v2",
    )
    revision: str | None = Field(None, description="branch, tag or commit; null is the newest")
    trust_remote_code: bool = Field(
        False, description="run Python code that the repository brings along; recorded in the bundle's lineage"
    )
    shard: Shared = False


class GgufTeacher(TeacherRights):
    gguf: FilePath = Field(description="a causal language model in a GGUF file, de-quantized into float32")
    shard: Shared = False


class OnnxTeacher(TeacherRights):
    onnx: FilePath = Field(description="an ONNX file, run by onnxruntime; only its outputs are used")
    output: str | None = Field(None, description="the output to learn from; null where its name leaves no choice")


class OnnxImageTeacher(OnnxTeacher):
    gives: Literal["logits", "probabilities"] = Field("logits", description="what that output holds")


class OnnxEmbeddingTeacher(OnnxTeacher):
    tokenizer: FilePath = Field(description="its tokenizer.json")


class OnnxClassifierTeacher(OnnxTeacher):
    tokenizer: FilePath = Field(description="its tokenizer.json")
    classes: Classes = Field(description="class names, in the order of the outputs")
    gives: Literal["logits", "probabilities"] = Field("logits", description="what that output holds")


def _plain_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected a URL such as https://host/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("expected a URL without user, password or query; a key goes into the variable of key_env")
    return value.rstrip("/")


def _with_text(value: str) -> str:
    if "{text}" not in value:
        raise ValueError("expected {text} where the text goes, and {classes} where their names go")
    return value


def _with_prompt(value: str) -> str:
    if "{text}" not in value:
        raise ValueError("expected {text} where the row's text goes")
    return value


class EndpointTeacher(TeacherRights):
    """What every endpoint is asked by; `EndpointClassifier` and `EndpointWriter` say what its answers are."""

    endpoint: Annotated[str, AfterValidator(_plain_url)] = Field(
        description="base URL of an OpenAI-compatible API, such as https://host/v1; only its answers are used"
    )
    model: str = Field(min_length=1, description="the model's name there")
    max_tokens: int = Field(16, ge=1, description="longest answer in tokens")
    key_env: str = Field(
        "COMPRESSOR_TEACHER_KEY", pattern=r"^[A-Za-z_]\w*$", description="environment variable that holds the key"
    )
    requests_per_minute: float | None = Field(None, gt=0, description="at most so many; null sets no limit")
    max_requests: int | None = Field(
        None, ge=1, description="budget of one run; it stops there and keeps what it has; null sets none"
    )
    concurrency: int = Field(4, ge=1, le=64, description="requests under way at once")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for an answer")
    retries: int = Field(5, ge=0, description="further tries of a request that failed for a passing reason")

    @model_validator(mode="after")
    def _terms_of_the_service(self) -> EndpointTeacher:
        if self.permission == "license-permits" and not (self.terms or "").strip():
            raise ValueError("a licence covers weights, not a service: set teacher.terms to the terms that apply")
        return self


class EndpointClassifier(EndpointTeacher):
    """An endpoint whose answers name a class."""

    classes: Classes = Field(description="class names; the answer must be one of them")
    prompt: Annotated[str, AfterValidator(_with_text)] = Field(
        "Classify the text. Answer with one of: {classes}. Answer with nothing else.\n\nText: {text}",
        description="what is asked for each text",
    )
    top_logprobs: int = Field(
        0, ge=0, le=20, description="log-probabilities to ask for, for soft labels; 0 takes the label alone"
    )
    label_probability: float = Field(
        0.9, gt=0, lt=1, description="probability that a label without log-probabilities stands for"
    )
    max_unmatched: int = Field(
        0, ge=0, description="answers that may name no class: for these all classes are equally likely"
    )

    @model_validator(mode="after")
    def _classes_are_told_apart(self) -> EndpointClassifier:
        if len({name.strip().casefold() for name in self.classes}) < len(self.classes):
            raise ValueError("expected classes that differ in more than case: answers are compared without it")
        return self


class EndpointWriter(EndpointTeacher):
    """An endpoint whose answers are texts, which the student learns to write."""

    max_tokens: int = Field(256, ge=1, description="longest answer in the teacher's tokens; a longer one is cut off")
    prompt: Annotated[str, AfterValidator(_with_prompt)] = Field(
        "{text}", description="what is asked for each text; the student is given the text alone"
    )
    max_unusable: int = Field(
        0, ge=0, description="training prompts, and held-out ones, that may be left out for an answer without text"
    )


# The tasks of the kinds that are not for all.
_TEACHES = {
    "gguf": "text-generation alone",
    "module": "image-classification and own alone",
    "endpoint": "text-classification and text-generation alone",
    "onnx": "all tasks but text-generation and own",
}


def _kind_by_key(first: str, *others: str) -> Callable[[Any], str]:
    """Which kind is meant: by the first of its keys that is there. Tags are in <> so that no key looks like one."""

    def kind(value: Any) -> str:
        has = value.__contains__ if isinstance(value, dict) else lambda key: hasattr(value, key)
        return f"<{next((key for key in others if has(key)), first)}>"

    return kind


def _taken(*kinds: str) -> BeforeValidator:
    """Refuses the other kinds of teacher in one line, rather than key by key."""

    def only(value: Any) -> Any:
        for key, teaches in _TEACHES.items():
            if isinstance(value, dict) and key in value and key not in kinds:
                raise ValueError(f"{key} teaches {teaches}; this task takes {', '.join(kinds)}")
        return value

    return BeforeValidator(only)


EmbeddingTeacher = Annotated[
    Annotated[FolderTeacher, Tag("<path>")]
    | Annotated[HubTeacher, Tag("<hub>")]
    | Annotated[OnnxEmbeddingTeacher, Tag("<onnx>")],
    Discriminator(_kind_by_key("path", "hub", "onnx")),
    _taken("path", "hub", "onnx"),
]
ClassifierTeacher = Annotated[
    Annotated[FolderTeacher, Tag("<path>")]
    | Annotated[HubTeacher, Tag("<hub>")]
    | Annotated[OnnxClassifierTeacher, Tag("<onnx>")]
    | Annotated[EndpointClassifier, Tag("<endpoint>")],
    Discriminator(_kind_by_key("path", "hub", "onnx", "endpoint")),
    _taken("path", "hub", "onnx", "endpoint"),
]
TaggerTeacher = Annotated[
    Annotated[FolderTeacher, Tag("<path>")]
    | Annotated[HubTeacher, Tag("<hub>")]
    | Annotated[OnnxClassifierTeacher, Tag("<onnx>")],
    Discriminator(_kind_by_key("path", "hub", "onnx")),
    _taken("path", "hub", "onnx"),
]
GenerativeTeacher = Annotated[
    Annotated[FolderTeacher, Tag("<path>")]
    | Annotated[HubTeacher, Tag("<hub>")]
    | Annotated[GgufTeacher, Tag("<gguf>")],
    Discriminator(_kind_by_key("path", "hub", "gguf")),
    _taken("path", "hub", "gguf"),
]
ImageTeacher = Annotated[
    Annotated[FolderTeacher, Tag("<path>")]
    | Annotated[HubTeacher, Tag("<hub>")]
    | Annotated[ModuleTeacher, Tag("<module>")]
    | Annotated[OnnxImageTeacher, Tag("<onnx>")],
    Discriminator(_kind_by_key("path", "hub", "module", "onnx")),
    _taken("path", "hub", "module", "onnx"),
]
