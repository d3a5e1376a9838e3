"""Tasks: one file each. `task_for` picks by the recipe's class."""

from __future__ import annotations

from compressor.recipe import (
    AnsweredGenerationRecipe,
    OwnTaskRecipe,
    Recipe,
    SentenceEmbeddingRecipe,
    TextClassificationRecipe,
    TextGenerationRecipe,
    TokenClassificationRecipe,
)
from compressor.tasks.answered_generation import AnsweredGeneration
from compressor.tasks.base import Task, TaskData
from compressor.tasks.image_classification import ImageClassification
from compressor.tasks.own import Own
from compressor.tasks.sentence_embedding import SentenceEmbedding
from compressor.tasks.text_classification import TextClassification
from compressor.tasks.text_generation import TextGeneration
from compressor.tasks.token_classification import TokenClassification

__all__ = ["Task", "TaskData", "task_for"]


def task_for(recipe: Recipe) -> Task:
    """The task that a recipe describes."""
    if isinstance(recipe, SentenceEmbeddingRecipe):
        return SentenceEmbedding(recipe)
    if isinstance(recipe, TextClassificationRecipe):
        return TextClassification(recipe)
    if isinstance(recipe, TokenClassificationRecipe):
        return TokenClassification(recipe)
    if isinstance(recipe, TextGenerationRecipe):
        return TextGeneration(recipe)
    if isinstance(recipe, AnsweredGenerationRecipe):
        return AnsweredGeneration(recipe)
    if isinstance(recipe, OwnTaskRecipe):
        return Own(recipe)
    return ImageClassification(recipe)
