"""A teacher in a Hugging Face folder: config.json, *.safetensors, tokenizer.json. No pickles, no remote code.

The tokenizer is of text alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from optimum.exporters.tasks import TasksManager
from torch import nn
from transformers import PreTrainedModel
from transformers import logging as transformers_logging

from compressor.errors import TeacherError, first_line
from compressor.intake.files import check_within, read_bounded
from compressor.intake.json_text import check_json, strict_json
from compressor.intake.safetensors import check_safetensors
from compressor.intake.yaml_text import front_matter
from compressor.preprocess import TextPreprocessor
from compressor.teachers.bounds import NOT_LOADED, Weights, built_within

_MOST_JSON_BYTES = 1 << 27  # a tokenizer of 262,000 tokens has 33 MB
_MOST_COUNT = 1 << 20  # what a model is built of, the weights bound
_INDEX = ".safetensors.index.json"
# The task names of optimum's TasksManager, which knows the model class for each.
OPTIMUM_TASK = {
    "sentence-embedding": "feature-extraction",
    "text-classification": "text-classification",
    "token-classification": "token-classification",
    "text-generation": "text-generation",
    "image-classification": "image-classification",
}


def check_folder(path: Path) -> Weights:
    """What lies in the folder's safetensors. Raises TeacherError unless it can hold a teacher that is safe to load."""
    if not path.is_dir():
        found = "a file" if path.exists() else "nothing"
        raise TeacherError(f"{path}: expected a folder in Hugging Face layout, found {found}")
    if not (path / "config.json").is_file():
        raise TeacherError(f"{path}: expected a Hugging Face folder with a config.json, found none in it")
    if not any(path.glob("*.safetensors")):
        pickles = any(any(path.glob(f"*.{kind}")) for kind in ("bin", "pt", "pth", "ckpt", "pkl"))
        remedy = "it holds pickles only, which can run code: convert them to safetensors" if pickles else "found none"
        raise TeacherError(f"{path}: expected weights as *.safetensors; {remedy}")
    tensors = content_bytes = 0
    for file in sorted(path.iterdir()):
        if file.suffix in (".json", ".safetensors"):
            check_within(file, path, TeacherError)
        if file.suffix == ".safetensors":
            tensors += check_safetensors(file, TeacherError)
            content_bytes += file.stat().st_size
        elif file.suffix == ".json":
            check_json(file, _MOST_JSON_BYTES, TeacherError)
    for index in sorted(path.glob(f"*{_INDEX}")):
        _check_index(index)
    _check_config(path / "config.json")
    return Weights(tensors, 2 * content_bytes)  # of the smallest that there are, half a byte each


def _check_index(file: Path) -> None:
    """transformers opens whatever it names, what is no safetensors file with torch.load. Raises TeacherError."""
    found = _json(file)
    shards = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise TeacherError(f"{file}: expected a weight_map of tensor names and files; save the model anew")
    for shard in set(shards.values()):
        if Path(shard).name != shard or Path(shard).suffix != ".safetensors":
            raise TeacherError(
                f"{file}: names the weights {shard[:200]!r}; expected names of *.safetensors files in its folder; save"
                " the model there anew"
            )


def _check_config(file: Path) -> None:
    """Raises TeacherError where the model is to be read from files that `check_folder` does not look at, and where
    reading the settings alone would make a list of too many layers or classes.
    """
    found = _json(file)
    if not isinstance(found, dict):
        raise TeacherError(f"{file}: expected a JSON object, got {type(found).__name__}")
    weights = found.get("transformers_weights", "model.safetensors")
    if not isinstance(weights, str) or Path(weights).name != weights or not weights.endswith((".safetensors", _INDEX)):
        raise TeacherError(
            f"{file}: names the weights {str(weights)[:200]!r} (transformers_weights); expected a *.safetensors file in"
            " its folder; save the model there anew"
        )
    if (file.parent / "adapter_config.json").exists():
        raise TeacherError(f"{file.parent}: holds an adapter (adapter_config.json); merge it into its model")

    for name, value in _numbers(found):
        if value > _MOST_COUNT and ("layer" in name or "label" in name):
            raise TeacherError(f"{file}: {name[:80]} is {str(value)[:40]}; expected at most {_MOST_COUNT:,}")


def _numbers(settings: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Each number, those of settings in settings too."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int | float):
            yield name, value


def _json(file: Path) -> Any:
    return strict_json(read_bounded(file, _MOST_JSON_BYTES, TeacherError), str(file), TeacherError, constants=True)


def card_licenses(path: Path) -> tuple[str, ...]:
    """The licences that the front matter of the folder's model card (README.md) states, if it can be read. Raises
    TeacherError where it is too much to read.
    """
    card = path / "README.md"
    if not card.is_file():
        return ()
    try:
        stated = front_matter(card, TeacherError)
    except ValueError:
        return ()
    found = stated.get("license") if isinstance(stated, dict) else None
    return tuple(one for one in (found if isinstance(found, list) else [found]) if isinstance(one, str) and one)


def load_folder(path: Path, task: str, max_length: int | None, *, remote_code: bool = False) -> PreTrainedModel:
    """The model of a folder, float32, in evaluation mode. Raises TeacherError, also when `max_length` is too long or
    its tokenizer.json has tokens that the model does not know.

    `max_length` is of text, None for images. `remote_code` lets code in the folder run. Weights are read from
    safetensors alone.
    """
    weights = check_folder(path)
    model_class: Any = TasksManager.get_model_class_for_task(OPTIMUM_TASK[task], framework="pt")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with built_within(weights, path):
            model, loading = model_class.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=remote_code,
                output_loading_info=True,
            )
    except NOT_LOADED as error:
        raise TeacherError(f"{path}: transformers does not load it: {first_line(error)}") from None
    absent = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    if absent:
        raise TeacherError(
            f"{path}: its weights lack {len(absent)} tensors that a model for {task} needs, such as {absent[0]}:"
            " it was trained for something else"
        )
    if model.config.problem_type == "multi_label_classification":
        raise TeacherError(f"{path}: gives several labels to an input; expected a teacher that gives one")
    if max_length is not None and (limit := _longest_input(model)) is not None and max_length > limit:
        raise TeacherError(f"{path}: reads at most {limit} tokens, but student.max_length is {max_length}; lower it")
    if max_length is not None and (path / "tokenizer.json").is_file():
        check_tokens(path, model, path / "tokenizer.json")
    model = model.float().eval()
    assert isinstance(model, PreTrainedModel)
    return model


def check_tokens(path: Path, model: PreTrainedModel, tokenizer: Path) -> None:
    """Raises TeacherError where the table of the model at `path` has no row for a token of its tokenizer."""
    rows, last = getattr(model.config, "vocab_size", None), TextPreprocessor(tokenizer, 1).last_id
    if rows is not None and last >= rows:
        raise TeacherError(
            f"{path}: its tokenizer numbers tokens up to {last}, but its table has {rows} rows (vocab_size); expected"
            " the tokenizer of that model, with no token that it has no row for"
        )


def check_classes(path: Path, model: PreTrainedModel, classes: Sequence[str], place: str, remedy: str) -> None:
    """Raises TeacherError where the classes of the model at `path` are not `classes`, which stand at `place`."""
    named = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    own = [named[number] for number in sorted(named)]
    if len(own) != len(classes):
        raise TeacherError(f"{path}: tells {len(own)} classes apart, but {place} names {len(classes)}")
    if own == [f"LABEL_{number}" for number in range(len(own))]:
        return  # what transformers writes where nobody named them
    for number, (mine, name) in enumerate(zip(own, classes, strict=True)):
        if mine != name:
            raise TeacherError(
                f"{path}: its class {number} is {mine!r} (id2label in its config.json), but {name!r} in {place};"
                f" {remedy}"
            )


def _longest_input(model: PreTrainedModel) -> int | None:
    """Tokens that the table of learned positions has room for; None where there is no such table."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa's positions start behind the padding index.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None
