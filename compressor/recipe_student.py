"""Which student: how it is cut from its teacher, or which one it is."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from compressor.recipe_base import MODULE_PATTERN, FilePath, Positive, Settings


class EncoderStudent(Settings):
    layers: int | Annotated[tuple[int, ...], Field(strict=False, min_length=1)] = Field(
        2, description="how many of the teacher's layers to keep, or which, from 0"
    )
    choose: Literal["spaced", "influence"] = Field(
        "spaced",
        description="which layers a number keeps: evenly spaced ones, or the first and those that turn the hidden state"
        " furthest on the training text",
    )
    hidden: int | None = Field(
        None, ge=8, description="hidden size; the most active dimensions are kept; null keeps all"
    )
    heads: int | None = Field(None, ge=1, description="attention heads; null keeps all, or as many as fit hidden")
    kv_heads: int | None = Field(
        None, ge=1, description="key-value heads, of grouped-query attention alone; null keeps the teacher's ratio"
    )
    ffn: int | None = Field(None, ge=1, description="feed-forward width; the neurons that matter most; null keeps all")
    importance: Literal["activation", "gradient"] = Field(
        "activation",
        description="what dimensions, heads and neurons are chosen by: how large they are on the training text, or how"
        " much the teacher's output moves with them",
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
    def _one_origin(self) -> EncoderStudent:
        if self.folder is None and self.module is None:
            return self
        given = "folder" if self.folder is not None else "module"
        sizes = type(self).model_fields.keys() - {"folder", "max_length"} - ({"module"} if given == "module" else set())
        changed = [name for name in type(self).model_fields if name in sizes and self._differs(name)]
        if changed:
            raise ValueError(f"student.{given} is a whole student of its own: leave out {', '.join(changed)}")
        return self

    def _differs(self, name: str) -> bool:
        return bool(getattr(self, name) != type(self).model_fields[name].default)


class DecoderStudent(EncoderStudent):
    @model_validator(mode="after")
    def _same_tokens(self) -> DecoderStudent:
        if self.vocab is not None:
            raise ValueError(
                "a student that predicts its teacher's next token needs all of its tokens: leave out vocab"
            )
        if self.module is not None:
            raise ValueError("a decoder's cache is known from its config.json: bring the student along as folder")
        return self


class OwnStudent(Settings):
    module: str = Field(
        pattern=MODULE_PATTERN, description="your own student: file.py:callable or package.module:callable"
    )


class ImageStudent(Settings):
    widths: tuple[Positive, ...] = Field(
        (16, 32, 64),
        min_length=2,
        strict=False,
        description="channels of the stem, then of each depthwise-separable block",
    )
    strides: tuple[Positive, ...] = Field((2, 2), strict=False, description="stride of each block")
    module: str | None = Field(
        None,
        pattern=MODULE_PATTERN,
        description="your own student instead: file.py:callable or package.module:callable",
    )

    @model_validator(mode="after")
    def _one_stride_per_block(self) -> ImageStudent:
        if len(self.strides) != len(self.widths) - 1:
            raise ValueError(
                f"expected one stride per block, {len(self.widths) - 1} for {len(self.widths)} widths,"
                f" got {len(self.strides)}"
            )
        return self
