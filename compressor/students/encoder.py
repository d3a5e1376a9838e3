"""A text student on disk: the derived model, its tokenizer, and how such a folder is loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from optimum.exporters.tasks import TasksManager
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from compressor.artifacts import Student
from compressor.errors import StudentError
from compressor.preprocess import TextPreprocessor
from compressor.recipe_student import EncoderStudent
from compressor.store import write_atomic
from compressor.students.derive import count, derive_model
from compressor.students.embedding import put_parts, student_parts
from compressor.students.vocabulary import TrimmedVocabulary, for_device, trim_vocabulary
from compressor.teachers.folder import OPTIMUM_TASK, load_folder

_SAMPLE_BATCH, _SAMPLE_BATCHES = 64, 8


def derive_encoder(
    model: PreTrainedModel,
    tokenizer_file: Path,
    spec: EncoderStudent,
    training_ids: list[NDArray[np.int64]],
    folder: Path,
) -> Student:
    """Writes the student into `folder` in Hugging Face layout: config.json, model.safetensors, tokenizer.json.

    `training_ids` (under the teacher's tokenizer) decide what stays. A narrower model whose output is its hidden state
    gets a linear map to the teacher's width. Raises StudentError.
    """
    trimmed = trimmed_for(model.config, tokenizer_file, spec, training_ids)
    feeds = sample_feeds(tokenizer_file, training_ids)
    derived = derive_model(model, spec, feeds, torch.from_numpy(trimmed.kept_ids))
    renumber_config(derived.model.config, trimmed.kept_ids, model.config.vocab_size)
    write_encoder(derived.model, folder)
    write_atomic(folder / "tokenizer.json", for_device(trimmed.tokenizer, spec.max_length).encode())
    return Student(folder, count(derived.model), derived.notes)


def trimmed_for(
    config: PretrainedConfig, tokenizer_file: Path, spec: EncoderStudent, training_ids: list[NDArray[np.int64]]
) -> TrimmedVocabulary:
    """The vocabulary that `spec` asks for; the teacher's own, as long as its table, where it asks for none."""
    if spec.vocab is None:
        return TrimmedVocabulary(tokenizer_file.read_text(encoding="utf-8"), np.arange(config.vocab_size))
    needed = frozenset(i for ids in _token_ids(config).values() for i in ids)
    return trim_vocabulary(tokenizer_file, training_ids, spec.vocab, needed)


def sample_feeds(tokenizer_file: Path, training_ids: list[NDArray[np.int64]]) -> list[dict[str, torch.Tensor]]:
    """The first training examples in batches, for measuring what matters."""
    preprocessor = TextPreprocessor(tokenizer_file, 128)
    sample = training_ids[: _SAMPLE_BATCH * _SAMPLE_BATCHES]
    batches = (sample[start : start + _SAMPLE_BATCH] for start in range(0, len(sample), _SAMPLE_BATCH))
    return [{k: torch.from_numpy(v) for k, v in preprocessor.collate(batch).items()} for batch in batches]


def renumber_config(config: PretrainedConfig, kept_ids: NDArray[np.int64], old_size: int) -> None:
    """Gives the config's token ids their new numbers; None for those that lay outside of the old table anyway."""
    if len(kept_ids) == old_size:
        return
    new_id = {int(old): new for new, old in enumerate(kept_ids)}
    for name, ids in _token_ids(config).items():
        several = isinstance(getattr(config, name), list)
        found = [new_id[i] for i in ids if i in new_id]
        setattr(config, name, found if several else found[0] if found else None)


def load_student_folder(folder: Path, task: str, max_length: int | None) -> PreTrainedModel:
    """The model of a student's folder, float32, in evaluation mode, with the parts that its config notes.

    `max_length` is of text, None for images.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not student_parts(config):
        return load_folder(folder, task, max_length)
    model_class: Any = TasksManager.get_model_class_for_task(OPTIMUM_TASK[task], framework="pt")
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


def write_encoder(model: PreTrainedModel, folder: Path) -> None:
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


def _token_ids(config: PretrainedConfig) -> dict[str, list[int]]:
    """By attribute, such as pad_token_id: the ids that the config names."""
    found = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    listed = {name: value if isinstance(value, list) else [value] for name, value in found.items()}
    return {name: ids for name, ids in listed.items() if all(isinstance(i, int) for i in ids)}
