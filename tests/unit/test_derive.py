"""Students of every family: what is kept is the teacher's, and what contributed nothing is not missed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from made_transformers import (
    FAMILIES,
    FFN,
    HEADS,
    HIDDEN,
    LAYERS,
    VOCAB,
    Family,
    inputs_of,
    output_of,
    silence_dimensions,
    silence_heads,
    silence_neurons,
)
from torch import Tensor
from transformers import (
    AlbertConfig,
    AlbertModel,
    ElectraConfig,
    ElectraModel,
    GemmaConfig,
    GemmaModel,
    GPTNeoXConfig,
    GPTNeoXModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    T5Config,
    T5Model,
)

from compressor.errors import StudentError
from compressor.recipe_student import TextStudent
from compressor.students.derive import blank_model, count, derive_model
from compressor.students.importance import measure
from compressor.students.on_disk import write_transformer
from compressor.students.structure import find_parts

METHODS = ("activation", "gradient")
DEAD_DIMENSIONS = [0, 2, 3, 7, 8, 11, 13, 14, 17, 20, 21, 25, 26, 28, 30, 31]
ALIVE_DIMENSIONS = [i for i in range(HIDDEN) if i not in DEAD_DIMENSIONS]
DEAD_NEURONS = list(range(40))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def derived(model: PreTrainedModel, **sizes: Any) -> PreTrainedModel:
    sizes.setdefault("layers", LAYERS)
    return derive_model(model, TextStudent(**sizes), [inputs_of(model)]).model


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def dead_heads(family: Family) -> list[int]:
    """Half of them; whole groups where heads share their keys and values."""
    return [0, 2] if family.kv_heads == HEADS else [0, 1]


def test_parts_are_where_the_family_keeps_them(family: Family) -> None:
    parts = find_parts(family.model())
    assert (parts.stack, parts.reads, parts.writes) == (family.stack, family.reads, family.writes)
    assert (parts.rises, parts.falls) == (family.rises, family.falls)
    assert (parts.depth, parts.hidden, parts.heads, parts.ffn) == (LAYERS, HIDDEN, HEADS, FFN)
    assert (parts.kv_heads, parts.head_dim) == (family.kv_heads, family.head_dim)


def test_keeping_everything_changes_nothing(family: Family) -> None:
    teacher = family.model()
    student = derived(teacher, hidden=HIDDEN, heads=HEADS, ffn=FFN)
    feed = inputs_of(teacher, 2)
    assert torch.equal(output_of(student, feed), output_of(teacher, feed))
    assert count(student) == count(teacher)


@pytest.mark.parametrize("method", METHODS)
def test_neurons_that_feed_nothing_are_not_missed(family: Family, method: str) -> None:
    teacher = family.model()
    silence_neurons(teacher, family, DEAD_NEURONS)
    student = derived(teacher, ffn=FFN - len(DEAD_NEURONS), importance=method)
    feed = inputs_of(teacher, 2)
    close(output_of(student, feed), output_of(teacher, feed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "vit"])
def test_heads_that_feed_nothing_are_not_missed(name: str, method: str) -> None:
    """Where fewer heads can keep their width: elsewhere they would be wider in the same hidden size."""
    family = FAMILIES[name]
    teacher = family.model()
    silence_heads(teacher, family, dead_heads(family))
    student = derived(teacher, heads=HEADS // 2, importance=method)
    feed = inputs_of(teacher, 2)
    close(output_of(student, feed), output_of(teacher, feed))
    assert count(student) < count(teacher)


@pytest.mark.parametrize("method", METHODS)
def test_dimensions_and_heads_that_are_empty_are_not_missed(family: Family, method: str) -> None:
    """Half the hidden size, and half the heads with it: where logits come out they are the teacher's, else the rest
    of the hidden state is.
    """
    teacher = family.model()
    silence_dimensions(teacher, family, DEAD_DIMENSIONS)
    silence_heads(teacher, family, dead_heads(family))
    silence_neurons(teacher, family, DEAD_NEURONS)
    student = derived(teacher, hidden=HIDDEN // 2, heads=HEADS // 2, ffn=FFN - len(DEAD_NEURONS), importance=method)
    feed = inputs_of(teacher, 2)
    expected = output_of(teacher, feed)
    assert expected.abs().max() > 0.1
    close(output_of(student, feed), expected if family.logits else expected[..., ALIVE_DIMENSIONS])


def test_the_teacher_is_left_as_it_was(family: Family) -> None:
    teacher = family.model()
    before, config = copy.deepcopy(teacher.state_dict()), teacher.config.to_dict()
    for method in METHODS:
        derived(teacher, layers=2, hidden=16, heads=2, ffn=24, importance=method, choose="influence")
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert teacher.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in teacher.modules())


def test_the_student_loads_with_its_transformers_class(family: Family, tmp_path: Path) -> None:
    teacher = family.model()
    student = derived(teacher, layers=2, hidden=16, heads=2, ffn=24)
    student.config.student_parts = None  # the map to the teacher's width, which is no part of the class
    write_transformer(student, tmp_path)
    loaded, report = type(teacher).from_pretrained(tmp_path, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"]
    assert report["unexpected_keys"] <= {"output_projection.weight"}
    feed = inputs_of(teacher, 2)
    assert torch.equal(output_of(loaded.eval(), feed), output_of(student, feed))
    assert loaded.config.hidden_size == 16
    assert loaded.config.num_attention_heads == 2
    assert loaded.config.num_hidden_layers == 2


def parameters_by_hand(family: Family, layers: int, hidden: int, heads: int, ffn: int) -> dict[str, int]:
    """Of families whose parameters are quickly counted."""
    kv, inner = heads * family.kv_heads // HEADS * family.head_dim, heads * family.head_dim
    llama = 2 * hidden * inner + 2 * hidden * kv + 3 * hidden * ffn + 2 * hidden
    bert = 4 * (hidden * hidden + hidden) + 2 * hidden * ffn + ffn + hidden + 4 * hidden
    return {
        "llama": VOCAB * hidden + hidden + layers * llama,
        "qwen3": 2 * VOCAB * hidden + hidden + layers * (llama + 2 * family.head_dim),
        "bert": (VOCAB + 64 + 2 + 2) * hidden + layers * bert + hidden * hidden + hidden,
    }


@pytest.mark.parametrize("name", ["llama", "qwen3", "bert"])
def test_parameters_are_those_of_the_sizes(name: str) -> None:
    family = FAMILIES[name]
    teacher = family.model()
    student = derived(teacher, layers=2, hidden=16, heads=2, ffn=24)
    own = count(student) - (HIDDEN * 16 if name == "bert" else 0)
    assert own == parameters_by_hand(family, 2, 16, 2, 24)[name]
    blank = blank_model(teacher, TextStudent(layers=2, hidden=16, heads=2, ffn=24), VOCAB)
    assert count(blank) == count(student)


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"vit"}))
def test_tokens_that_are_kept_have_their_rows(name: str) -> None:
    family = FAMILIES[name]
    teacher = family.model()
    kept = torch.tensor(sorted({0, 1, 2, *inputs_of(teacher)["input_ids"].flatten().tolist()}))
    student = derive_model(teacher, TextStudent(layers=LAYERS), [inputs_of(teacher)], kept).model
    feed = inputs_of(teacher)
    renamed = {**feed, "input_ids": torch.searchsorted(kept, feed["input_ids"])}
    expected = output_of(teacher, feed)
    close(output_of(student, renamed), expected[..., kept] if family.logits else expected)


def test_joined_heads_of_equal_teachers_heads_are_those_heads() -> None:
    """Two heads in one attend to the mean of their scores: of two equal heads, to the same as each."""
    family = FAMILIES["bert"]
    teacher: Any = family.model()
    with torch.no_grad():
        for layer in teacher.encoder.layer:
            for name in ("query", "key"):
                linear = getattr(layer.attention.self, name)
                for tensor in (linear.weight, linear.bias):
                    tensor[8:16], tensor[24:32] = tensor[0:8].clone(), tensor[16:24].clone()
    student = derived(teacher, heads=2)
    assert student.config.num_attention_heads == 2
    feed = inputs_of(teacher, 2)
    close(output_of(student, feed), output_of(teacher, feed))


def test_narrower_heads_keep_the_dimensions_that_are_used() -> None:
    """Half of each head's dimensions are empty, the hidden state's too: four heads of 4 answer as four of 8."""
    family = FAMILIES["bert"]
    teacher: Any = family.model()
    silence_dimensions(teacher, family, DEAD_DIMENSIONS)
    empty = [head * 8 + i for head in range(HEADS) for i in (0, 2, 3, 6)]
    with torch.no_grad():
        for layer in teacher.encoder.layer:
            for name in ("query", "key", "value"):
                linear = getattr(layer.attention.self, name)
                linear.weight[empty], linear.bias[empty] = 0, 0
    student = derived(teacher, hidden=HIDDEN // 2, heads=HEADS)
    feed = inputs_of(teacher, 2)
    close(output_of(student, feed), output_of(teacher, feed)[..., ALIVE_DIMENSIONS])


def test_influence_keeps_the_layers_that_turn_the_hidden_state() -> None:
    family = FAMILIES["llama"]
    teacher = family.model()
    silence_heads(teacher, family, list(range(HEADS)))
    with torch.no_grad():
        teacher.get_parameter("model.layers.1.mlp.down_proj.weight").zero_()  # layer 1 does nothing at all
    student = derived(teacher, layers=LAYERS - 1, choose="influence")
    feed = inputs_of(teacher, 2)
    close(output_of(student, feed), output_of(teacher, feed))
    influence = measure(teacher, find_parts(teacher), [feed], "activation").influence
    assert influence[1] == pytest.approx(0, abs=1e-6)
    assert influence[2] > 0.01


def test_padding_has_no_say() -> None:
    teacher = FAMILIES["bert"].model()
    feed = inputs_of(teacher)
    other = {**feed, "input_ids": feed["input_ids"].where(feed["attention_mask"].bool(), torch.tensor(99))}
    parts = find_parts(teacher)
    first, second = (measure(teacher, parts, [f], "activation") for f in (feed, other))
    close(first.neurons, second.neurons)
    close(first.hidden, second.hidden)


def test_a_narrow_token_table_of_full_rank_is_the_table(family: Family) -> None:
    """A table of rank 8 is factorised without loss at 8."""
    teacher = family.model()
    if teacher.main_input_name == "pixel_values" or (teacher.config.tie_word_embeddings and family.logits):
        with pytest.raises(StudentError, match=r"student\.embedding: "):
            derived(teacher, embedding=8)
        return
    table: Any = teacher.get_input_embeddings()
    with torch.no_grad():
        left, values, right = torch.linalg.svd(table.weight, full_matrices=False)
        table.weight.copy_(left[:, :8] * values[:8] @ right[:8])
    student = derived(teacher, embedding=8)
    feed = inputs_of(teacher, 2)
    close(output_of(student, feed), output_of(teacher, feed))
    assert count(student) == count(teacher) - VOCAB * HIDDEN + VOCAB * 8 + 8 * HIDDEN


IMPOSSIBLE: list[tuple[str, dict[str, Any], str]] = [
    ("bert", {"hidden": 30}, r"student\.hidden: expected a multiple of the 3 heads, got 30|student\.h"),
    ("bert", {"hidden": 20, "heads": 3}, r"student\.hidden: expected a multiple of the 3 heads, got 20"),
    ("bert", {"hidden": 64}, r"student\.hidden: expected at most 32 \(the teacher's\), got 64"),
    ("bert", {"heads": 5}, r"student\.heads: expected at most 4 \(the teacher's\), got 5"),
    ("bert", {"ffn": 65}, r"student\.ffn: expected at most 64 \(the teacher's\), got 65"),
    ("bert", {"hidden": 24, "heads": 2}, r"student\.heads: 2 heads .* are 12 wide; expected at most the teacher's 8"),
    ("bert", {"kv_heads": 2}, r"student\.kv_heads: the teacher has no grouped-query attention"),
    ("modernbert", {"hidden": 16, "heads": 4}, r"student\.heads: 4 heads .* are 4 wide; expected 8 .* rotary"),
    ("llama", {"heads": 3, "hidden": 24}, r"student\.heads: expected a multiple of 2, .* got 3"),
    ("llama", {"kv_heads": 3}, r"student\.kv_heads: expected at most 2"),
    ("llama", {"heads": 4, "kv_heads": 1}, r"student\.kv_heads: 4 heads in 1 groups"),
    ("qwen2", {"layers": 5}, r"student\.layers: expected 1 to 4"),
    ("modernbert", {"layers": (1, 2)}, r"student\.layers: layer 1 .* cannot be layer 0"),
    ("bert", {"embedding": 32}, r"student\.embedding: expected less than hidden, 32, got 32"),
]


@pytest.mark.parametrize(("name", "sizes", "message"), IMPOSSIBLE, ids=str)
def test_what_is_impossible_is_refused_in_one_line(name: str, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudentError, match=message) as raised:
        derived(FAMILIES[name].model(), **sizes)
    assert "\n" not in str(raised.value)


SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        (lambda: GPTNeoXModel(GPTNeoXConfig(**SMALL)), {}, "keeps its heads or neurons in an order that is not known"),
        (lambda: T5Model(T5Config(vocab_size=VOCAB, d_model=16, num_heads=2, num_layers=2)), {}, "one stack of 2"),
        (lambda: AlbertModel(AlbertConfig(**SMALL, embedding_size=8)), {}, "expected one stack of 2 layers"),
        (lambda: ResNetModel(ResNetConfig(hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)), {}, "is unknown"),
        (lambda: GemmaModel(GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8)), {"hidden": 8}, "neither a Layer"),
        (lambda: MPNetModel(MPNetConfig(**SMALL)), {"hidden": 8}, r"relative_attention_bias.* cannot be cut"),
        (lambda: ElectraModel(ElectraConfig(**SMALL, embedding_size=16)), {"hidden": 8}, "keep student.hidden"),
    ],
    ids=["gpt-neox", "t5", "albert", "resnet", "gemma", "mpnet", "electra"],
)  # fmt: skip
def test_what_is_built_otherwise_is_refused_in_one_line(model: Any, sizes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudentError, match=message) as raised:
        derived(model().eval(), layers=1, **sizes)
    assert "\n" not in str(raised.value)
