"""A causal language model in a GGUF file, read by transformers into float32; quantized weights are de-quantized."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers import logging as transformers_logging

from compressor.errors import TeacherError, first_line, missing_extra
from compressor.intake import gguf as gate
from compressor.progress import without_chatter
from compressor.store import sha256_file, write_atomic
from compressor.teachers.bounds import NOT_LOADED, Weights, built_within


def load_gguf(file: Path) -> PreTrainedModel:
    """The model, float32, in evaluation mode, without gradients. Raises TeacherError, MissingDependencyError.

    In memory it takes four bytes a parameter, whatever the file took.
    """
    weights = check_gguf(file)
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    # stderr: it draws a bar of its own, which no setting silences.
    loads = _loads(file, "transformers does not load it")
    with loads, redirect_stderr(io.StringIO()), built_within(weights, file):
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    assert isinstance(model, PreTrainedModel)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    # It still says that it is quantized, and so would whatever is cut from it: neither could be loaded again.
    state: dict[str, object] = {"is_quantized": False, "hf_quantizer": None}
    vars(model).update(state)
    del model.config.quantization_config
    model.train(False).requires_grad_(False)
    return model


def gguf_config(file: Path) -> PretrainedConfig:
    """The config that the file's own metadata make. Raises TeacherError, MissingDependencyError."""
    check_gguf(file)
    with _loads(file, "transformers does not load it"):
        config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    return config


def load_gguf_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """The tokenizer that the file carries. Raises TeacherError, MissingDependencyError."""
    check_gguf(file)
    with _loads(file, "its tokenizer does not load"):
        tokenizer = AutoTokenizer.from_pretrained(
            file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
        )
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


def gguf_tokenizer_file(file: Path, cache: Path) -> Path:
    """A tokenizer.json of the tokenizer that the file carries, kept in `cache`. Raises TeacherError."""
    check_gguf(file)
    written = cache / f"tokenizer-{sha256_file(file)[:16]}.json"
    if not written.is_file():
        text = load_gguf_tokenizer(file).backend_tokenizer.to_str()
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(written, text.encode())
    return written


def check_gguf(file: Path) -> Weights:
    """What the file holds. Raises TeacherError unless it is a GGUF file that is safe to load, MissingDependencyError
    without the package that reads it.
    """
    if not file.is_file():
        raise TeacherError(f"{file}: expected a GGUF file, found none")
    tensors, numbers = gate.check_gguf(file, TeacherError)
    if find_spec("gguf") is None:
        raise missing_extra("gguf")
    return Weights(2 * tensors, 2 * numbers)  # transformers builds it twice: once for the names of its tensors


@contextmanager
def _loads(file: Path, otherwise: str) -> Iterator[None]:
    """Turns what a damaged file makes of transformers into a TeacherError of one line."""
    try:
        with without_chatter():
            yield
    except (*NOT_LOADED, struct.error) as error:
        raise TeacherError(f"{file}: {otherwise}: {first_line(error)}; if it was cut short, fetch it again") from None
