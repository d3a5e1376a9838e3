"""An image classifier in a Hugging Face folder, held against what the recipe says of the images and their classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from compressor.errors import TeacherError, first_line
from compressor.recipe import LabelledImages
from compressor.teachers.folder import check_classes, load_folder

PROCESSOR = "preprocessor_config.json"


def load_vision_folder(path: Path, data: LabelledImages, *, remote_code: bool = False) -> PreTrainedModel:
    """The model of a folder, float32, in evaluation mode: float32 `pixel_values` [batch, channels, height, width] ->
    `logits` [batch, classes].

    Raises TeacherError, also where classes, normalisation, channels or size of the images are not those of `data`.
    """
    model = load_folder(path, "image-classification", None, remote_code=remote_code)
    check_classes(path, model, data.classes, "data.classes", "write its classes there, in its order")
    _check_normalisation(path, data)
    _check_images(path, model, data)
    return model


def _check_normalisation(path: Path, data: LabelledImages) -> None:
    found = _normalisation(path / PROCESSOR)
    if found is None:
        return
    if not all(_equal(theirs, ours) for theirs, ours in zip(found, (data.mean, data.std), strict=True)):
        mean, std = (f"[{', '.join(f'{value:.6g}' for value in values)}]" for values in found)
        raise TeacherError(
            f"{path}: its {PROCESSOR} normalises by mean {mean} and std {std}, the recipe by {list(data.mean)} and"
            f" {list(data.std)}; set data.mean: {mean} and data.std: {std}"
        )


def _normalisation(file: Path) -> tuple[list[float], list[float]] | None:
    """Mean and deviation, of pixels scaled to 0..1, as the file of an image processor says; None where it does not.

    The processor gives (x f - m) / s of a pixel x in 0..255, which is (x / 255 - m') / s' of m' = m / (255 f) and
    s' = s / (255 f).
    """
    if not file.is_file():
        return None
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        scale = 255 * float(settings.get("rescale_factor", 1 / 255)) if settings.get("do_rescale", True) else 255.0
        if settings.get("do_normalize") is False:
            return [0.0], [1 / scale]
        if settings.get("image_mean") is None or settings.get("image_std") is None:
            return None
        mean, std = (np.atleast_1d(np.asarray(settings[name], float)) for name in ("image_mean", "image_std"))
        return list(mean / scale), list(std / scale)
    except (OSError, ValueError, TypeError, AttributeError, ZeroDivisionError):
        raise TeacherError(f"{file}: expected a JSON object as Hugging Face writes it") from None


def _equal(theirs: Sequence[float], ours: Sequence[float]) -> bool:
    """One value of the processor's is for all channels."""
    return len(theirs) in (1, len(ours)) and bool(np.allclose(theirs, ours, rtol=0, atol=1e-3))


def _check_images(path: Path, model: PreTrainedModel, data: LabelledImages) -> None:
    """Tried out, for many models read images of other sizes than their config names."""
    config: Any = model.config
    (height, width), channels = data.size, len(data.mean)
    try:
        with torch.inference_mode():
            model(pixel_values=torch.zeros(1, channels, height, width))
    except (ValueError, RuntimeError) as error:
        size, depth = getattr(config, "image_size", None), getattr(config, "num_channels", None)
        if isinstance(size, int):
            size = (size, size)
        if size is not None and tuple(size) != (height, width):
            raise TeacherError(
                f"{path}: reads images of {size[0]} by {size[1]} pixels (image_size in its config.json), but data.size"
                f" is [{height}, {width}]"
            ) from None
        if depth is not None and depth != channels:
            raise TeacherError(
                f"{path}: reads images of {depth} channels, but data.mean has {channels} values: one for each channel"
            ) from None
        reason = first_line(error)
        raise TeacherError(f"{path}: does not read images of {height} by {width} pixels: {reason}") from None
