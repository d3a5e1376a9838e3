"""What a causal language model's config says of its cache and its tokens, without its weights."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PretrainedConfig

from compressor.errors import TeacherError, first_line
from compressor.preprocess import CacheShape
from compressor.recipe_student import DecoderStudent, TextStudent
from compressor.recipe_teacher import FolderTeacher, GgufTeacher, HubTeacher
from compressor.teachers import teacher_folder
from compressor.teachers.bounds import NOT_LOADED
from compressor.teachers.gguf import gguf_config


def decoder_config(teacher: FolderTeacher | HubTeacher | GgufTeacher) -> PretrainedConfig:
    """The teacher's config. Raises TeacherError."""
    if isinstance(teacher, GgufTeacher):
        return _with_keys_and_values(gguf_config(teacher.gguf), teacher.gguf)
    return folder_config(teacher_folder(teacher), remote_code=teacher.trust_remote_code)


def folder_config(folder: Path, *, remote_code: bool = False) -> PretrainedConfig:
    """The config of a model's folder. Raises TeacherError."""
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=remote_code
        )
    except NOT_LOADED as error:
        raise TeacherError(f"{folder}: its config.json does not load: {first_line(error)}") from None
    return _with_keys_and_values(config, folder)


def _with_keys_and_values(config: PretrainedConfig, place: Path) -> PretrainedConfig:
    if not hasattr(config, "num_attention_heads"):
        raise TeacherError(
            f"{place}: a {config.model_type} model has no attention heads, whose keys and values a device is to keep;"
            " expected a transformer such as GPT-2, Llama or Qwen"
        )
    return config


def cache_shape(config: PretrainedConfig) -> CacheShape:
    """What a decoder of that config keeps of the tokens that it has read."""
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return CacheShape(config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, head_dim)


def most_tokens(student: TextStudent, config: PretrainedConfig) -> int:
    """How many tokens of a text a student reads, by its own config: `max_length`; where a decoder's vocabulary is
    trimmed, four times as many, for its text is cut by the teacher's tokens, or as many as it has positions.
    """
    if not isinstance(student, DecoderStudent) or student.vocab is None:
        return student.max_length
    roomy = 4 * student.max_length
    positions = getattr(config, "max_position_embeddings", None) or roomy
    return max(student.max_length, min(roomy, positions))


def start_id(config: PretrainedConfig) -> int:
    """The token that a text starts with, or else ends with; 0 where the config names neither."""
    for name in ("bos_token_id", "eos_token_id"):
        found = getattr(config, name, None)
        if isinstance(found, list):
            found = next(iter(found), None)
        if isinstance(found, int):
            return found
    return 0
