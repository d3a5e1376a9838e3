"""An image student in Hugging Face layout: cut from its teacher, or brought along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError, TeacherError
from compressor.recipe import ImageClassificationRecipe
from compressor.students.derive import count, derive_model
from compressor.students.on_disk import write_transformer
from compressor.tasks.image_classification import ImageClassifier
from compressor.teachers.vision import load_vision_folder

_SAMPLE, _BATCH = 128, 16  # an image has as many tokens as several sentences


def derive_vision(
    model: PreTrainedModel, recipe: ImageClassificationRecipe, images: Sequence[NDArray[np.uint8]], folder: Path
) -> Student:
    """Writes the student into `folder`: config.json, model.safetensors.

    What matters is measured on the first of the training `images`, uint8 [height, width, channels] each, normalised as
    the recipe says. Raises StudentError.
    """
    shown = ImageClassifier(model, recipe.data.mean, recipe.data.std)
    sample = [torch.from_numpy(image) for image in images[:_SAMPLE]]
    batches = (sample[start : start + _BATCH] for start in range(0, len(sample), _BATCH))
    feeds = [{"pixel_values": shown.normalised(torch.stack(batch))} for batch in batches]
    derived = derive_model(model, recipe.student, feeds)
    write_transformer(derived.model, folder)
    return Student(folder, count(derived.model), derived.notes)


def load_existing_vision(folder: Path, recipe: ImageClassificationRecipe) -> PreTrainedModel:
    """The student that is a folder, with the weights that it comes with; held against the recipe as a teacher is.

    Raises StudentError.
    """
    try:
        return load_vision_folder(folder, recipe.data)
    except TeacherError as error:
        raise StudentError(f"student.folder: {error}") from None
