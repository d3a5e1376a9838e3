"""A text student cut from its teacher: the derived model with its tokenizer, as a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PretrainedConfig, PreTrainedModel

from compressor.artifacts import Student
from compressor.preprocess import TextPreprocessor
from compressor.recipe_student import TextStudent
from compressor.store import write_atomic
from compressor.students.derive import count, derive_model
from compressor.students.on_disk import write_transformer
from compressor.students.vocabulary import TrimmedVocabulary, for_device, trim_vocabulary
from compressor.teachers.decoder import most_tokens

_SAMPLE_BATCH, _SAMPLE_BATCHES = 64, 8


def derive_text(
    model: PreTrainedModel,
    tokenizer_file: Path,
    spec: TextStudent,
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
    write_transformer(derived.model, folder)
    length = most_tokens(spec, derived.model.config)
    write_atomic(folder / "tokenizer.json", for_device(trimmed.tokenizer, length).encode())
    return Student(folder, count(derived.model), derived.notes)


def trimmed_for(
    config: PretrainedConfig, tokenizer_file: Path, spec: TextStudent, training_ids: list[NDArray[np.int64]]
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


def _token_ids(config: PretrainedConfig) -> dict[str, list[int]]:
    """By attribute, such as pad_token_id: the ids that the config names."""
    found = {name: value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    listed = {name: value if isinstance(value, list) else [value] for name, value in found.items()}
    return {name: ids for name, ids in listed.items() if all(isinstance(i, int) for i in ids)}
