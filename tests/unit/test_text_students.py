"""Cutting a student out of a teacher: the weights are the teacher's own, and a cut equals a mask."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModel,
    BertForSequenceClassification,
    BertModel,
    ElectraConfig,
    ElectraModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from compressor.errors import StudentError
from compressor.recipe_student import TextStudent
from compressor.students.sizes import chosen_layers
from compressor.students.text import derive_text

TEXTS = ["the cat sat on the mat", "the dog runs", "a green house", "walking on the river", "?"]


@pytest.fixture
def training_ids(tokenizer_file: Path) -> list[NDArray[np.int64]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    return [np.asarray(tokenizer.encode(text).ids, dtype=np.int64) for text in TEXTS]


def hidden(model: PreTrainedModel, ids: NDArray[np.int64]) -> Tensor:
    batch = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
    with torch.inference_mode():
        output: Tensor = model(input_ids=batch, attention_mask=torch.ones_like(batch)).last_hidden_state
    return output


def derived(model: PreTrainedModel, tokenizer: Path, spec: TextStudent, ids: Any, folder: Path) -> PreTrainedModel:
    """Derives the student, then loads it as anybody would: with transformers, from its folder."""
    folder.mkdir(exist_ok=True)
    made = derive_text(model, tokenizer, spec, ids, folder)
    student: PreTrainedModel = type(model).from_pretrained(folder, local_files_only=True)
    assert sum(p.numel() for p in student.parameters()) == made.parameters
    return student.eval()


def test_keeping_everything_changes_nothing(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    student = derived(bert, tokenizer_file, TextStudent(layers=4), training_ids, tmp_path)
    for ids in training_ids:
        assert torch.equal(hidden(student, ids), hidden(bert, ids))


@pytest.mark.parametrize("layers", [(0, 3), (1,), (1, 2, 3), 2, 1])
def test_chosen_layers_are_the_teachers(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path, layers: Any
) -> None:
    student = derived(bert, tokenizer_file, TextStudent(layers=layers), training_ids, tmp_path)
    numbers = chosen_layers(layers, 4)
    assert student.config.num_hidden_layers == len(numbers)
    reference = copy.deepcopy(bert)
    reference.encoder.layer = torch.nn.ModuleList([reference.encoder.layer[i] for i in numbers])
    for ids in training_ids:
        torch.testing.assert_close(hidden(student, ids), hidden(reference, ids), rtol=0, atol=0)


def test_a_narrower_feed_forward_is_the_teacher_with_neurons_silenced(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    student: Any = derived(bert, tokenizer_file, TextStudent(layers=4, ffn=24), training_ids, tmp_path)
    masked: Any = copy.deepcopy(bert)
    with torch.no_grad():
        for cut, whole in zip(student.encoder.layer, masked.encoder.layer, strict=True):
            assert cut.intermediate.dense.weight.shape == (24, 32)
            rows = whole.intermediate.dense.weight
            kept = [i for i in range(64) if (cut.intermediate.dense.weight == rows[i]).all(dim=1).any()]
            assert len(kept) == 24
            gone = [i for i in range(64) if i not in kept]
            whole.output.dense.weight[:, gone] = 0
    for ids in training_ids:
        torch.testing.assert_close(hidden(student, ids), hidden(masked, ids), rtol=1e-5, atol=1e-6)


def test_the_neurons_that_matter_are_kept(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    """Eight neurons are made the only ones that feed anything: with eight kept, nothing is lost."""
    teacher: Any = copy.deepcopy(bert)
    alive = [3, 9, 17, 28, 33, 41, 50, 63]
    with torch.no_grad():
        for layer in teacher.encoder.layer:
            layer.output.dense.weight[:, [i for i in range(64) if i not in alive]] = 0
    student = derived(teacher, tokenizer_file, TextStudent(layers=4, ffn=8), training_ids, tmp_path)
    for ids in training_ids:
        torch.testing.assert_close(hidden(student, ids), hidden(teacher, ids), rtol=1e-5, atol=1e-6)


def test_a_smaller_vocabulary_answers_alike_on_words_that_are_kept(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    student = derived(bert, tokenizer_file, TextStudent(layers=4, vocab=256), training_ids, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert student.config.vocab_size == tokenizer.get_vocab_size() <= 256
    assert student.config.pad_token_id == tokenizer.token_to_id("[PAD]")
    for text, ids in zip(TEXTS, training_ids, strict=True):
        assert torch.equal(hidden(student, np.asarray(tokenizer.encode(text).ids)), hidden(bert, ids))


def test_the_teacher_is_left_as_it_was(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    before = copy.deepcopy(bert.state_dict())
    derived(bert, tokenizer_file, TextStudent(layers=1, ffn=8, vocab=256), training_ids, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bert.state_dict().items())
    assert bert.config.num_hidden_layers == 4
    handles = [len(module._forward_pre_hooks) for module in bert.modules()]
    assert not any(handles), "no hook stays behind"


def test_the_folder_holds_what_it_should_and_no_path_of_this_machine(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    loaded = AutoModel.from_pretrained(saved(bert, tmp_path / "teacher"), local_files_only=True)
    derived(loaded, tokenizer_file, TextStudent(layers=1), training_ids, tmp_path / "student")
    assert sorted(p.name for p in (tmp_path / "student").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    for path in (tmp_path / "student").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()
    assert json.loads((tmp_path / "student" / "config.json").read_text())["num_hidden_layers"] == 1
    assert safetensors.torch.load_file(tmp_path / "student" / "model.safetensors")


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def test_a_classifier_keeps_its_head(
    bert: BertModel, tokenizer_file: Path, training_ids: list[NDArray[np.int64]], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = copy.deepcopy(bert.config)
    config.num_labels = 3
    teacher: Any = BertForSequenceClassification(config).eval()
    student: Any = derived(teacher, tokenizer_file, TextStudent(layers=(0, 2), ffn=16), training_ids, tmp_path)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert torch.equal(student.bert.pooler.dense.weight, teacher.bert.pooler.dense.weight)
    assert student.config.num_labels == 3


SIZES: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 80,
}


@pytest.mark.parametrize("vocab", [None, 256])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (RobertaModel, lambda n: RobertaConfig(vocab_size=n, pad_token_id=0, **SIZES)),
        (ElectraModel, lambda n: ElectraConfig(vocab_size=n, embedding_size=32, **SIZES)),
        (ElectraModel, lambda n: ElectraConfig(vocab_size=n, embedding_size=16, **SIZES)),
        (MPNetModel, lambda n: MPNetConfig(vocab_size=n, pad_token_id=0, **SIZES)),
    ],
    ids=["roberta", "electra", "electra-small-embedding", "mpnet"],
)
def test_other_encoders_of_the_same_structure(
    kind: Any,
    config: Any,
    vocab: int | None,
    vocabulary: list[str],
    tokenizer_file: Path,
    training_ids: Any,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    teacher = kind(config(len(vocabulary))).eval()
    spec = TextStudent(layers=(0, 2), ffn=64, vocab=vocab)
    student = derived(teacher, tokenizer_file, spec, training_ids, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    reference = copy.deepcopy(teacher)
    reference.encoder.layer = torch.nn.ModuleList([reference.encoder.layer[i] for i in (0, 2)])
    for text, ids in zip(TEXTS, training_ids, strict=True):
        new = hidden(student, np.asarray(tokenizer.encode(text).ids))
        torch.testing.assert_close(new, hidden(reference, ids), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("wanted", "depth", "expected"),
    [(1, 6, (0,)), (2, 6, (0, 5)), (3, 6, (0, 2, 5)), (6, 6, (0, 1, 2, 3, 4, 5)), ((0, 5), 6, (0, 5)), ((4,), 6, (4,))],
)
def test_chosen_layers(wanted: Any, depth: int, expected: tuple[int, ...]) -> None:
    assert chosen_layers(wanted, depth) == expected


@pytest.mark.parametrize("depth", range(1, 13))
def test_evenly_spaced_layers_are_distinct_and_hold_both_ends(depth: int) -> None:
    for wanted in range(1, depth + 1):
        layers = chosen_layers(wanted, depth)
        assert len(set(layers)) == wanted
        assert layers[0] == 0
        assert wanted == 1 or layers[-1] == depth - 1


@pytest.mark.parametrize("wanted", [0, 7, -1, (), (0, 6), (-1, 0), (3, 1), (2, 2)])
def test_layers_that_are_not_there(wanted: Any) -> None:
    with pytest.raises(StudentError, match=r"student\.layers: expected"):
        chosen_layers(wanted, 6)


def test_a_wider_feed_forward_than_the_teachers_is_refused(
    bert: BertModel, tokenizer_file: Path, training_ids: Any, tmp_path: Path
) -> None:
    with pytest.raises(StudentError, match=r"student\.ffn: expected at most 64"):
        derive_text(bert, tokenizer_file, TextStudent(ffn=65), training_ids, tmp_path)
    assert not list(tmp_path.iterdir()), "nothing half-written"
