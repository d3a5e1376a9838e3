"""How a student learns: the order of training, the signals, their weights."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from compressor.recipe_base import Settings, Share, Weight, is_on


class Distillation(Settings):
    epochs: int = Field(3, ge=1, description="passes over the training data")
    batch_size: int = Field(64, ge=2, description="examples per step")
    learning_rate: float = Field(4e-4, gt=0, description="peak of a linear warm-up and decay (AdamW)")
    warmup: Share = Field(0.1, description="share of the steps that warm up")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's decoupled weight decay")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the data order and of every random draw")
    patience: int | None = Field(None, ge=1, description="stop after this many epochs without a better held-out score")
    accumulate: int = Field(
        1, ge=1, description="parts of a batch that go through the student one after the other, for less memory"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32",
        description="arithmetic of the forward pass (float16: on a GPU); weights, gradients and the loss stay float32",
    )

    @model_validator(mode="after")
    def _equal_parts(self) -> Self:
        if self.batch_size % self.accumulate or self.batch_size // self.accumulate < 2:
            raise ValueError(
                f"accumulate: expected to divide batch_size, {self.batch_size}, into parts of two or more, got"
                f" {self.accumulate}"
            )
        return self


class TokenDistillation(Distillation):
    """What a student can learn from inside a transformer, token by token; teacher and student read the same tokens."""

    hidden_weight: Weight = Field(
        0.0, description="weight of the relative squared distance between hidden states, after a learned projection"
    )
    hidden_layers: dict[int, int] | None = Field(
        None,
        min_length=1,
        description="which of the student's layers learns from which of the teacher's, from 0; null spreads them",
    )
    relation_weight: Weight = Field(
        0.0, description="weight of the relations among queries, keys and values of the last layer (MiniLMv2)"
    )
    relation_heads: int = Field(12, ge=1, description="heads that those relations are taken in")


class EmbeddingDistillation(TokenDistillation):
    cosine_weight: Weight = Field(1.0, description="weight of 1 - cosine(student, teacher)")
    mse_weight: Weight = Field(0.0, description="weight of the squared distance between the embeddings")
    similarity_weight: Weight = Field(0.0, description="weight of the difference of the in-batch similarity matrices")
    contrastive_weight: Weight = Field(
        0.0, description="weight of telling the teacher's embedding of the same text from the others in the batch"
    )
    contrastive_temperature: float = Field(0.05, gt=0, description="temperature of that choice")

    @model_validator(mode="after")
    def _something_to_learn(self) -> EmbeddingDistillation:
        weights = (
            self.cosine_weight,
            self.mse_weight,
            self.similarity_weight,
            self.contrastive_weight,
            self.hidden_weight,
            self.relation_weight,
        )
        if not any(is_on(weight) for weight in weights):
            raise ValueError(
                "every loss weight is 0: give at least one of cosine_weight, mse_weight, similarity_weight,"
                " contrastive_weight, hidden_weight, relation_weight"
            )
        return self


class ClassDistillation(Distillation):
    temperature: float = Field(
        4.0, gt=0, description="temperature of both distributions (gradients are scaled by its square)"
    )
    hard_weight: float = Field(
        0.1, ge=0, le=1, description="share of the cross-entropy with the labels; the rest is the teacher's"
    )
    control: bool = Field(False, description="also train the same student on the labels alone, and report it beside")

    @property
    def needs_labels(self) -> bool:
        """Whether anything is learnt from labels of the training data."""
        return self.hard_weight > 0 or self.control


class TextDistillation(ClassDistillation, TokenDistillation):
    pass


class OwnDistillation(Distillation):
    """The loss is the task's own."""


class NextTokenDistillation(TextDistillation):
    """The classes are the vocabulary: of the teacher's distribution over it, some tokens are kept for each position."""

    batch_size: int = Field(16, ge=2, description="passages per step")
    temperature: float = Field(
        1.0, gt=0, description="temperature of both distributions (gradients are scaled by its square)"
    )
    teacher_signal: Literal["top-k", "sampled"] = Field(
        "top-k",
        description="what is kept of the teacher's distribution: its most probable tokens, and the mass of all others"
        " together; or tokens drawn from it, which are right on average",
    )
    kept_tokens: int = Field(512, ge=1, description="how many tokens are kept for each position")
    on_policy: Weight = Field(
        0.0,
        description="share of the batches in which the student goes on itself from half of a passage, and the teacher"
        " scores that as training goes (GKD); slow: nothing of it can be kept",
    )

    @model_validator(mode="after")
    def _on_policy_is_a_share(self) -> Self:
        if max(self.on_policy if isinstance(self.on_policy, tuple) else [self.on_policy]) > 1:
            raise ValueError(f"on_policy: expected a share of the batches, at most 1, got {self.on_policy}")
        return self


class AnswerDistillation(Distillation):
    """The loss is the cross-entropy of the tokens of what the teacher wrote: nothing else of it is known."""

    batch_size: int = Field(16, ge=2, description="prompts with their answers per step")


class ImageDistillation(ClassDistillation):
    mirror: bool = Field(True, description="train on mirror images too, with the teacher's answer for each")
