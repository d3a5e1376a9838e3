"""Students as folders in Hugging Face layout: written piece by piece, and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch
from optimum.exporters.tasks import TasksManager
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from compressor.errors import StudentError
from compressor.store import write_atomic
from compressor.students.embedding import put_parts, student_parts
from compressor.teachers.bounds import built_within
from compressor.teachers.folder import OPTIMUM_TASK, check_folder, load_folder


def load_student_folder(folder: Path, task: str, max_length: int | None) -> PreTrainedModel:
    """The model of a student's folder, float32, in evaluation mode, with the parts that its config notes.

    `max_length` is of text, None for images.
    """
    weights = check_folder(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not student_parts(config):
        return load_folder(folder, task, max_length)
    model_class: Any = TasksManager.get_model_class_for_task(OPTIMUM_TASK[task], framework="pt")
    with built_within(weights, folder):
        model: PreTrainedModel = model_class.from_config(config).float()
        put_parts(model)
    load_weights(model, folder)
    model.train(False)
    return model


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fills a model from model.safetensors; a weight that others share may stand there once. Raises StudentError."""
    own = _own_names(model)
    found = model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"), strict=False)
    if found.unexpected_keys or (own & set(found.missing_keys)):
        raise StudentError(
            f"{folder}: its weights do not fit the student that the recipe names: run with --from student"
        )


def write_transformer(model: PreTrainedModel, folder: Path) -> None:
    """config.json and model.safetensors, each replaced atomically."""
    write_atomic(folder / "config.json", model.config.to_json_string().encode())
    write_module(model, folder)


def write_module(model: nn.Module, folder: Path) -> None:
    """model.safetensors, replaced atomically; a weight that others share is written once."""
    own = _own_names(model)
    state = {n: tensor.detach().contiguous().clone() for n, tensor in model.state_dict().items() if n in own}
    write_atomic(folder / "model.safetensors", safetensors.torch.save(state, metadata={"format": "pt"}))


def _own_names(model: nn.Module) -> set[str]:
    """Of weights and buffers, shared ones once."""
    return {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
