"""Where a recipe's data come from: a file, a folder, or the Hugging Face hub; what its groups of data share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_serializer, model_validator

from compressor.recipe_base import FilePath, Settings, Share

# How an image file of another size is brought to data.size.
Resize = Literal["refuse", "stretch", "crop"]

ALTERNATIVES = "or {path, config, split} or {hub, revision, config, split}, see docs/recipes.md"


class DataSource(Settings):
    """A path, written plainly or as `path`, or a data set's name on the hub; which of its configs, which split."""

    path: FilePath | None = Field(None, description="a data file, or a folder in the layout of the hub")
    hub: str | None = Field(
        None, pattern=r"^[\w][\w.-]*(/[\w][\w.-]*)?$", description="data set on the Hugging Face hub, owner/name"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the hub; null is the newest")
    config: str | None = Field(None, description="which of its configs; null is its default, or the only one")
    split: str | None = Field(None, description="which of its splits; null is the only one")

    @model_validator(mode="before")
    @classmethod
    def _plainly(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return {"path": value}
        if not isinstance(value, dict | DataSource):
            raise ValueError(f"expected a path, or keys such as hub and split; got {value!r}")
        return value

    @model_validator(mode="after")
    def _one_place(self) -> DataSource:
        if (self.path is None) == (self.hub is None):
            raise ValueError("expected a path, or the name of a data set on the hub (hub), and not both")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision is of a data set on the hub; a folder has none")
        return self

    @model_serializer
    def _written(self) -> Path | dict[str, Any]:
        values: dict[str, Any] = {name: value for name, value in self if value is not None}
        return self.path if self.path is not None and len(values) == 1 else values

    @property
    def name(self) -> str:
        """Without the folders of this machine."""
        return self._with_parts(self.path.name if self.path else str(self.hub))

    def __str__(self) -> str:
        return self._with_parts(str(self.path or self.hub))

    def _with_parts(self, text: str) -> str:
        return " ".join(
            [text, *([f"config {self.config}"] if self.config else []), *([self.split] if self.split else [])]
        )


class Data(Settings):
    """Which settings training depends on, and which evaluation: a change re-runs only what depends on it.

    Files count by their content, which is fingerprinted, not by their path.
    """

    _only_evaluation: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="after")
    def _streaming_ends(self) -> Data:
        if getattr(self, "streaming", False) and getattr(self, "max_train", None) is None:
            raise ValueError("streaming needs to know where to stop: set data.max_train")
        return self

    def training(self) -> dict[str, object]:
        return self.model_dump(mode="json", exclude={"train", "eval", "max_bad_rows", *self._only_evaluation})

    def graph(self) -> dict[str, object]:
        """What of it is built into the exported graph."""
        return self.model_dump(mode="json", include={"size", "mean", "std"})

    def evaluation(self) -> dict[str, object]:
        return self.model_dump(mode="json", exclude={"train", "eval", "max_train", "max_bad_rows", "streaming"})


class Prompts(Data):
    train: DataSource = Field(
        description=f"training prompts, which the teacher answers: .jsonl, .csv or .parquet, {ALTERNATIVES}"
    )
    eval: DataSource = Field(description="held-out prompts in the same forms")
    text: str = Field("text", description="column with the prompt, as the student is to be given it")
    max_train: int | None = Field(None, ge=1, description="use at most this many distinct training prompts")
    max_eval: int | None = Field(None, ge=1, description="use at most this many distinct held-out prompts")
    max_bad_rows: Share = Field(
        0.01, description="rows without text, and prompts as long as student.max_length, as a share of a file's rows"
    )

    _only_evaluation: ClassVar[frozenset[str]] = frozenset({"max_eval"})
