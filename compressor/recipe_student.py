"""Which student: how it is cut from its teacher, or which one it is.

Every kind says `folder`, `module`, `layers`, `vocab`, `max_length` and `is_cut`; None for what it cannot have.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from compressor.recipe_base import MODULE_PATTERN, FilePath, Positive, Settings

Layers = int | Annotated[tuple[int, ...], Field(strict=False, min_length=1)]
_SIZES = ("layers", "hidden", "heads", "ffn")


class TransformerStudent(Settings):
    """What stays of a teacher's layers, dimensions, heads and neurons, whatever it reads."""

    layers: Layers | None = Field(
        None, description="how many of the teacher's layers to keep, or which, from 0; null keeps all"
    )
    choose: Literal["spaced", "influence"] = Field(
        "spaced",
        description="which layers a number keeps: evenly spaced ones, or the first and those that turn the hidden state"
        " furthest on the training data",
    )
    hidden: int | None = Field(
        None, ge=8, description="hidden size; the most active dimensions are kept; null keeps all"
    )
    heads: int | None = Field(None, ge=1, description="attention heads; null keeps all, or as many as fit hidden")
    ffn: int | None = Field(None, ge=1, description="feed-forward width; the neurons that matter most; null keeps all")
    importance: Literal["activation", "gradient"] = Field(
        "activation",
        description="what dimensions, heads and neurons are chosen by: how large they are on the training data, or how"
        " much the teacher's output moves with them",
    )

    def _changed(self, names: Iterable[str]) -> list[str]:
        """Which of these settings are not at their defaults, in the order of the settings."""
        fields, wanted = type(self).model_fields, set(names)
        return [name for name in fields if name in wanted and getattr(self, name) != fields[name].default]


class TextStudent(TransformerStudent):
    layers: Layers | None = Field(
        2, description="how many of the teacher's layers to keep, or which, from 0; null keeps all"
    )
    kv_heads: int | None = Field(
        None, ge=1, description="key-value heads, of grouped-query attention alone; null keeps the teacher's ratio"
    )
    embedding: int | None = Field(
        None, ge=8, description="width of the token table, with a linear map up to hidden; null is hidden itself"
    )
    vocab: int | None = Field(
        None, ge=256, description="tokens to keep, the most frequent in the training text; null keeps all"
    )
    folder: FilePath | None = Field(
        None, description="an existing student instead: a folder in Hugging Face layout, with its tokenizer.json"
    )
    module: str | None = Field(
        None,
        pattern=MODULE_PATTERN,
        description="your own student instead, with the teacher's tokenizer: file.py:callable or"
        " package.module:callable",
    )
    max_length: int = Field(128, ge=8, description="longest input in tokens; longer ones are truncated")

    @model_validator(mode="after")
    def _one_origin(self) -> TextStudent:
        if self.folder is None and self.module is None:
            return self
        given = "folder" if self.folder is not None else "module"
        if changed := self._changed(type(self).model_fields.keys() - {given, "max_length"}):
            raise ValueError(f"student.{given} is a whole student of its own: leave out {', '.join(changed)}")
        return self

    @property
    def is_cut(self) -> bool:
        """Whether it is cut from the teacher, rather than brought along."""
        return self.folder is None and self.module is None


class DecoderStudent(TextStudent):
    max_length: int = Field(
        128,
        ge=8,
        description="longest passage in the teacher's tokens; with vocab the same text may take four times as many of"
        " the student's",
    )

    @model_validator(mode="after")
    def _known_cache(self) -> DecoderStudent:
        if self.module is not None:
            raise ValueError("a decoder's cache is known from its config.json: bring the student along as folder")
        return self


class AnsweringStudent(Settings):
    """No student can be cut from a teacher whose weights are out of reach."""

    folder: FilePath = Field(
        description="an existing decoder: a folder in Hugging Face layout, with a tokenizer.json of its own"
    )
    max_length: int = Field(
        128, ge=8, description="longest prompt with its answer, in the student's tokens; longer answers are cut off"
    )
    module: ClassVar[None] = None
    layers: ClassVar[None] = None
    vocab: ClassVar[None] = None
    is_cut: ClassVar[bool] = False


class OwnStudent(Settings):
    module: str = Field(
        pattern=MODULE_PATTERN, description="your own student: file.py:callable or package.module:callable"
    )
    folder: ClassVar[None] = None
    layers: ClassVar[None] = None
    vocab: ClassVar[None] = None
    max_length: ClassVar[None] = None
    is_cut: ClassVar[bool] = False


class ImageStudent(TransformerStudent):
    """Cut from a transformer where one of its sizes is given, else a small CNN, unless it is brought along."""

    widths: tuple[Positive, ...] = Field(
        (16, 32, 64),
        min_length=2,
        strict=False,
        description="channels of the stem, then of each depthwise-separable block",
    )
    strides: tuple[Positive, ...] = Field((2, 2), strict=False, description="stride of each block")
    folder: FilePath | None = Field(
        None, description="an existing student instead: a folder in Hugging Face layout that classifies images"
    )
    module: str | None = Field(
        None,
        pattern=MODULE_PATTERN,
        description="your own student instead: file.py:callable or package.module:callable",
    )
    vocab: ClassVar[None] = None
    max_length: ClassVar[None] = None

    @property
    def is_cut(self) -> bool:
        """Whether it is cut from the teacher, rather than built small or brought along."""
        return bool(self._changed(_SIZES))

    @model_validator(mode="after")
    def _one_origin(self) -> ImageStudent:
        given = next((name for name in ("folder", "module") if getattr(self, name) is not None), None)
        if given is not None and (changed := self._changed(type(self).model_fields.keys() - {given})):
            raise ValueError(f"student.{given} is a whole student of its own: leave out {', '.join(changed)}")
        cut, built = self._changed(TransformerStudent.model_fields), self._changed(("widths", "strides"))
        if cut and built:
            raise ValueError(
                f"{', '.join(cut)} cut the student from the teacher, {', '.join(built)} build a small CNN: leave out"
                " the one or the other"
            )
        if cut and not self.is_cut:
            raise ValueError(f"{', '.join(cut)} say what is chosen of a teacher: set one of {', '.join(_SIZES)} too")
        return self

    @model_validator(mode="after")
    def _one_stride_per_block(self) -> ImageStudent:
        if len(self.strides) != len(self.widths) - 1:
            raise ValueError(
                f"expected one stride per block, {len(self.widths) - 1} for {len(self.widths)} widths,"
                f" got {len(self.strides)}"
            )
        return self
