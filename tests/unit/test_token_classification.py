"""Token classification: what is read, which token answers for a word, what counts, what the student learns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

import compressor
from compressor import learning, stages
from compressor.artifacts import Interval, Provenance, Quality
from compressor.bundle.build import Contents, write_bundle
from compressor.bundle.verify import verify_bundle
from compressor.distill import TrainingData
from compressor.errors import BundleError, DataError, TeacherError
from compressor.materials import Materials
from compressor.onnx_file import describe_onnx
from compressor.preprocess import WordPreprocessor
from compressor.progress import SILENT, Progress
from compressor.recipe import Recipe
from compressor.recipe_file import recipe_from_values
from compressor.tasks import TaskData, task_for
from compressor.tasks.token_classification import TokenClassification

Make = Callable[..., Recipe]
TAGS = ["O", "B-PER", "I-PER", "B-LOC"]
GOOD = {"tokens": ["the", "cat", "runs"], "tags": ["O", "B-PER", "I-PER"]}


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def set_classes(teacher_folder: Path, classes: list[str]) -> None:
    config = json.loads((teacher_folder / "config.json").read_text())
    config["id2label"] = {str(i): name for i, name in enumerate(classes)}
    (teacher_folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def tagging(text_recipe: Make, teacher_folder: Path) -> Make:
    set_classes(teacher_folder, TAGS)
    return lambda **groups: text_recipe("token-classification", **groups)


class Told(Progress):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def log(self, message: str) -> None:
        self.lines.append(message)


def loaded(recipe: Recipe, progress: Progress = SILENT) -> TaskData:
    return task_for(recipe).load_data(recipe.out / "cache", progress)


def write(folder: Path, train: list[Any], held_out: list[Any]) -> None:
    write_rows(folder / "train.jsonl", train)
    write_rows(folder / "eval.jsonl", held_out)


def test_tags_are_names_or_numbers(tagging: Make, tmp_path: Path) -> None:
    write(tmp_path, [GOOD] * 4, [{"tokens": ["a", "b"], "tags": [3, 0]}])
    data = loaded(tagging())
    assert data.train == [GOOD["tokens"]] * 4
    assert [tags.tolist() for tags in data.train_tags] == [[0, 1, 2]] * 4
    assert [tags.tolist() for tags in data.eval_tags] == [[3, 0]]
    assert data.truth.tolist() == [2], "a row of truth is a sentence"
    assert data.described["evaluation"] == "1 sentences of eval.jsonl, 2 words and 1 entities, 4 classes"


def test_columns_have_the_names_that_the_recipe_gives(tagging: Make, tmp_path: Path) -> None:
    rows = [{"words": GOOD["tokens"], "ner": GOOD["tags"]}] * 4
    write(tmp_path, rows, rows[:3])
    assert len(loaded(tagging(data={"tokens": "words", "tags": "ner"})).train) == 4
    with pytest.raises(DataError, match="missing column tokens, tags; it has words, ner"):
        loaded(tagging())


@pytest.mark.parametrize("streaming", [False, True])
def test_classes_that_a_data_set_numbers_count_by_their_names(tagging: Make, tmp_path: Path, streaming: bool) -> None:
    """In the hub's layout, as CoNLL 2003 lies there: numbers of the data set's own, in another order."""
    names = ["B-LOC", "I-PER", "B-PER", "O"]
    folder = tmp_path / "data"
    for split, count in (("train", 20), ("test", 5)):
        rows = [{"tokens": [f"w{i}", "x"], "ner_tags": [i % 4, 3]} for i in range(count)]
        table = datasets.Dataset.from_list(rows)
        path = folder / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.cast_column("ner_tags", datasets.List(datasets.ClassLabel(names=names))).to_parquet(path)
    where = {split: {"path": folder, "split": found} for split, found in (("train", "train"), ("eval", "test"))}
    data = loaded(tagging(data={**where, "tags": "ner_tags", "streaming": streaming, "max_train": 12}))
    assert len(data.train) == len({words[0] for words in data.train}) == 12
    for words, tags in zip(data.train, data.train_tags, strict=True):
        assert TAGS[tags[0]] == names[int(words[0][1:]) % 4]
        assert TAGS[tags[1]] == "O"


@pytest.mark.parametrize("others", [{}, {"tags": None}, {"tags": ["of another task"]}], ids=str)
def test_sentences_need_tags_where_they_are_learnt_from_alone(
    tagging: Make, tmp_path: Path, others: dict[str, Any]
) -> None:
    """Those of the training data; what is judged needs them."""
    words = GOOD["tokens"]
    write(tmp_path, [*[{"tokens": words, **others}] * 6, {"tokens": [], **others}], [GOOD])
    unlabelled, told = tagging(data={"max_bad_rows": 0.2}, distill={"hard_weight": 0.0}), Told()
    data = loaded(unlabelled, told)
    assert data.train == [words] * 6
    assert "  train.jsonl: left out 1 of 7 rows without words (row 7)" in told.lines
    task = task_for(unlabelled)
    assert task.labels(data, task.preprocessor(None).encode(data.train)) is None
    with pytest.raises(DataError, match=r"no labels are needed$" if not others else "no row has a list of words"):
        loaded(tagging())
    write(tmp_path, [GOOD] * 6, [{"tokens": words}])
    with pytest.raises(DataError, match=r"missing column tags; it has tokens: name yours under data$"):
        loaded(unlabelled)


BAD = [
    {"tokens": [], "tags": []},
    {"tokens": None, "tags": None},
    {"tokens": ["a", "b"], "tags": [0]},
    {"tokens": [" ", ""], "tags": [0, 0]},
]


def test_bad_rows_are_counted_named_and_bounded(tagging: Make, tmp_path: Path) -> None:
    write(tmp_path, [BAD[0], *[GOOD] * 6, *BAD[1:]], [GOOD])
    told = Told()
    assert len(loaded(tagging(data={"max_bad_rows": 0.4}), told).train) == 6
    assert "  train.jsonl: left out 4 of 10 rows without words and a tag for each (row 1, 8, 9, 10)" in told.lines
    with pytest.raises(DataError, match=r"4 of 10 rows without words .* expected at most 39.0%.*data\.max_bad_rows"):
        loaded(tagging(data={"max_bad_rows": 0.39}))


@pytest.mark.parametrize("tag", ["B-ORG", 4, -1, None])
def test_a_tag_that_is_no_class(tagging: Make, tmp_path: Path, tag: Any) -> None:
    write(tmp_path, [GOOD, {"tokens": ["a"], "tags": [tag]}] * 3, [GOOD])
    with pytest.raises(
        DataError, match=rf"tags, row 2: expected one of O, B-PER, .* or its number from 0, got {tag!r}"
    ):
        loaded(tagging(data={"train": write_rows(tmp_path / "odd.jsonl", rows_of(tag))}))


def rows_of(tag: Any) -> list[dict[str, Any]]:
    """Numbers and names do not stand in one column of a table."""
    good = GOOD if isinstance(tag, str) else {**GOOD, "tags": [0, 1, 2]}
    return [good, {"tokens": ["a"], "tags": [tag]}, good, good]


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        ([GOOD] * 3, [GOOD], "at least two batches of sentences, got 3"),
        ([GOOD] * 4, BAD[:1], "no row has a list of words in tokens and as many tags in tags"),
        ([GOOD] * 4, [{"tokens": ["a", "b"], "tags": ["O", "I-PER"]}], "no entity in it; expected tags in IOB2"),
    ],
)
def test_data_that_teach_or_judge_nothing(
    tagging: Make, tmp_path: Path, train: list[Any], held_out: list[Any], words: str
) -> None:
    write(tmp_path, train, held_out)
    with pytest.raises(DataError, match=words):
        loaded(tagging())


WORDS = [["the", "walking", "cat."], ["Dog"], [], ["", "\u200d", "mat"], ["rare7", "house"] * 20]


def test_the_first_token_of_a_word_answers_for_it(tokenizer_file: Path) -> None:
    """Against transformers, whose pipelines do the same."""
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    preprocessor = WordPreprocessor(tokenizer_file, 16)
    for words, example in zip(WORDS, preprocessor.encode(WORDS), strict=True):
        expected = reference(words, is_split_into_words=True, truncation=True, max_length=16)
        assert preprocessor.ids(example).tolist() == expected["input_ids"]
        assert len(example) == len(expected["input_ids"])
        numbers = expected.word_ids()
        first = [n if n is not None and n not in numbers[:i] else -1 for i, n in enumerate(numbers)]
        assert example[:, 1].tolist() == first
        assert set(example[:, 2]) == {len(words)}
    feed = preprocessor.collate(preprocessor.encode(WORDS))
    assert feed["input_ids"].shape == feed["attention_mask"].shape == (len(WORDS), 16)


def test_a_text_is_split_at_white_space(tokenizer_file: Path) -> None:
    preprocessor = WordPreprocessor(tokenizer_file, 16)
    text, words = preprocessor.encode(["the  cat\nruns ", ["the", "cat", "runs"]])
    np.testing.assert_array_equal(text, words)


@pytest.mark.parametrize("inputs", [[3], [["a", None]], [[["a"]]], [None]])
def test_what_is_no_text(tokenizer_file: Path, inputs: list[Any]) -> None:
    with pytest.raises(DataError, match="expected a text or a list of words"):
        WordPreprocessor(tokenizer_file, 16).encode(inputs)


def byte_level(path: Path, *, add_prefix_space: bool) -> Path:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["one two the cat runs"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet)
    )
    tokenizer.save(str(path))
    return path


def test_byte_level_words_need_the_space_before_them(tmp_path: Path) -> None:
    """Without it "two" within a text and "two" given alone are other tokens; and a text of nothing has one token."""
    with pytest.raises(DataError, match="of byte-level BPE its pre_tokenizer needs add_prefix_space: true"):
        WordPreprocessor(byte_level(tmp_path / "without.json", add_prefix_space=False), 16)
    path = byte_level(tmp_path / "with.json", add_prefix_space=True)
    example, nothing = WordPreprocessor(path, 16).encode([["the", "cat"], []])
    assert example[:, 0].tolist() == Tokenizer.from_file(str(path)).encode("the cat").ids
    assert example[example[:, 1] >= 0, 1].tolist() == [0, 1]
    assert nothing.tolist() == [[0, -1, 0]]


def logits_for(task: Any, words: list[str], classes: list[int], length: int = 16) -> np.ndarray:
    """What is judged of a model that gives these classes to the words that it reads, and class 3 to other tokens."""
    (example,) = task.preprocessor(None).encode([words])
    output = np.zeros((length + 3, len(task.classes())), np.float32)  # padded
    output[:, -1] = 1
    for place, word in zip(np.flatnonzero(example[:, 1] >= 0), example[example[:, 1] >= 0, 1], strict=True):
        output[place] = np.eye(len(task.classes()), dtype=np.float32)[classes[word]]
    rows: np.ndarray = task.judged(output, example)
    return rows


def judged_on(task: Any, sentences: list[tuple[list[str], list[int], list[int]]]) -> tuple[float, TaskData, np.ndarray]:
    """The metric of (words, true, predicted), the data, and the judged rows."""
    words, true, predicted = zip(*sentences, strict=True)
    data = TaskData([], None, 0, words, np.array([len(w) for w in words]), {}, eval_tags=[np.array(t) for t in true])
    rows = np.concatenate([logits_for(task, w, p) for w, p in zip(words, predicted, strict=True)])
    return task.metric(task.answers(rows, data), data.truth), data, rows


def test_entities_are_judged(tagging: Make) -> None:
    """By hand: of 3 entities 2 are predicted, one of them right: F1 = 2 * 1 / (3 + 2)."""
    task = task_for(tagging())
    assert task.metric_name == "entity F1"
    value, data, rows = judged_on(
        task,
        [
            (["the", "cat", "runs"], [1, 2, 0], [1, 2, 0]),
            (["the", "walking", "dog"], [1, 0, 3], [1, 2, 0]),  # another end, and one missed
        ],
    )
    assert value == pytest.approx(2 / 5)
    assert task.answers(rows, data).tolist() == [[1, 1, 1], [0, 1, 2]]
    assert task.agreement(rows, rows) == 1


def test_words_are_judged_where_classes_are_no_iob2(tagging: Make, teacher_folder: Path) -> None:
    set_classes(teacher_folder, ["NOUN", "VERB", "DET"])
    task = task_for(tagging())
    assert task.metric_name == "word accuracy"
    value, *_ = judged_on(task, [(["the", "cat"], [2, 0], [2, 1]), (["walking"], [1], [1])])
    assert value == pytest.approx(2 / 3)


def test_what_is_cut_off_is_answered_wrong(tagging: Make, teacher_folder: Path) -> None:
    """16 tokens hold 14 words of one token: the entity at the 15th is missed, and the word counts as a wrong one."""
    words, true = ["cat"] * 16, [0] * 14 + [1, 0]
    task = task_for(tagging())
    value, data, rows = judged_on(task, [(["the"], [3], [3]), (words, true, true)])
    assert task.answers(rows, data).tolist() == [[1, 1, 1], [0, 0, 1]]
    assert value == pytest.approx(2 / 3)
    other = rows.copy()
    other[-3] = [0, 1, 0, 0]  # the last word that was read
    assert task.agreement(other, rows) == pytest.approx(14 / 15), "of those that the teacher answers"
    set_classes(teacher_folder, ["NOUN", "VERB", "DET", "ADJ"])
    task = task_for(tagging())
    value, *_ = judged_on(task, [(["the"], [3], [3]), (words, true, true)])
    assert value == pytest.approx(15 / 17)


def test_parity_compares_what_answers_for_words(tagging: Make) -> None:
    task = task_for(tagging())
    examples = task.preprocessor(None).encode([["walking", "cat"], []])
    output = np.arange(40, dtype=np.float32).reshape(10, 4)
    assert task.compared(output, examples[0]).tolist() == [output[1].tolist(), output[3].tolist()], "walk ##ing cat"
    assert task.compared(output, examples[1]).shape == (0, 4)


def small_tagger(vocabulary: list[str]) -> BertForTokenClassification:
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(TAGS)),
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    model.train(False)
    return model


def test_teacher_and_student_line_up_word_by_word(
    tagging: Make, teacher_folder: Path, vocabulary: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student's smaller vocabulary writes rare words in several pieces, so it cuts texts off earlier: it learns
    where both answer, from what the teacher says of the same word, and it learns that.
    """
    model = small_tagger(vocabulary)
    model.save_pretrained(teacher_folder)
    generator = np.random.default_rng(0)
    frequent = ["the", "cat", "sat", "on", "mat", "dog", "house", "green", "river"]
    rows = []
    for number in range(240):
        words = [str(word) for word in generator.choice(frequent, 8)]
        words[3] = f"rare{number}"  # each of them once, more than there is room for
        rows.append({"tokens": words, "tags": [int(tag) for tag in generator.integers(0, 4, 8)]})
    write(tmp_path, rows, [GOOD] * 40)
    recipe = tagging(
        student={"layers": 2, "vocab": 256, "max_length": 10},
        distill={"batch_size": 8, "epochs": 20, "learning_rate": 5e-3},
    )
    told = Told()
    at = Materials(recipe, told)
    seen: list[TrainingData] = []
    train = learning.train

    def watched(module: Any, task: Any, preprocessor: Any, data: TrainingData, *rest: Any) -> Any:
        seen.append(data)
        return train(module, task, preprocessor, data, *rest)

    monkeypatch.setattr(learning, "train", watched)
    for name in ("student", "signals", "distill"):
        (tmp_path / name).mkdir()
    start = stages.student(at, tmp_path / "student")
    recorded = learning.signals(at, start, tmp_path / "signals")
    learnt = learning.distill(at, start, recorded, tmp_path / "distill")
    (data,) = seen
    assert data.recorded is not None
    assert any("of what the teacher answers, the student answers too" in line for line in told.lines)

    reference = PreTrainedTokenizerFast(tokenizer_file=str(teacher_folder / "tokenizer.json"))
    own = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "student" / "tokenizer.json"))
    shorter = 0
    for row, words in enumerate(at.data.train):
        theirs = reference(words, is_split_into_words=True, truncation=True, max_length=10, return_tensors="pt")
        mine = own(words, is_split_into_words=True, truncation=True, max_length=10)
        both = [w for w in range(8) if w in theirs.word_ids() and w in mine.word_ids()]
        shorter += len(both) < 8
        with torch.inference_mode():
            logits = model(input_ids=theirs["input_ids"], attention_mask=theirs["attention_mask"]).logits[0]
        expected = logits[[theirs.word_ids().index(w) for w in both]]
        taught = data.taught(np.array([row]))
        assert isinstance(taught, torch.Tensor)
        torch.testing.assert_close(taught, expected, atol=1e-4, rtol=1e-4)
        assert data.positions is not None
        assert data.positions[row].tolist() == [mine.word_ids().index(w) for w in both]
        labels = data.labels_of(np.array([row]))
        assert labels is not None
        assert labels.tolist() == [int(at.data.train_tags[row][w]) for w in both]
    assert shorter >= 20
    scores = [point.score for point in learnt.history.scores]
    assert max(scores) > scores[0] / 2, "minus the divergence from the teacher, at least halved"


def test_a_student_learns_from_sentences_without_tags(
    tagging: Make, teacher_folder: Path, vocabulary: list[str], tmp_path: Path
) -> None:
    small_tagger(vocabulary).save_pretrained(teacher_folder)
    generator = np.random.default_rng(0)
    write(
        tmp_path, [{"tokens": list(generator.choice(["the", "cat", "sat", "dog"], 5))} for _ in range(80)], [GOOD] * 9
    )
    at = Materials(tagging(student={"layers": 2}, distill={"batch_size": 8, "epochs": 6, "hard_weight": 0.0}), SILENT)
    for name in ("student", "signals", "distill"):
        (tmp_path / name).mkdir()
    start = stages.student(at, tmp_path / "student")
    recorded = learning.signals(at, start, tmp_path / "signals")
    history = learning.distill(at, start, recorded, tmp_path / "distill").history
    assert history.losses[-1].loss < history.losses[0].loss / 2


def test_sentences_without_an_answer_teach_nothing(
    tagging: Make, teacher_folder: Path, vocabulary: list[str], tmp_path: Path
) -> None:
    """A batch may be of words that the tokenizer leaves nothing of: the loss stays a number."""
    small_tagger(vocabulary).save_pretrained(teacher_folder)
    empty = {"tokens": ["\u200d"], "tags": ["O"]}
    write(tmp_path, [*[GOOD] * 20, *[empty] * 8], [GOOD] * 40)
    at = Materials(tagging(student={"layers": 2}, distill={"batch_size": 2, "epochs": 1}), SILENT)
    for name in ("student", "signals", "distill"):
        (tmp_path / name).mkdir()
    start = stages.student(at, tmp_path / "student")
    recorded = learning.signals(at, start, tmp_path / "signals")
    history = learning.distill(at, start, recorded, tmp_path / "distill").history
    assert all(np.isfinite(point.loss) for point in history.losses)


def test_a_bundle_tags_words(
    make_onnx: Callable[..., Path], tokenizer_file: Path, vocabulary: list[str], tmp_path: Path
) -> None:
    """Hand-made: the probabilities of a word are those that a table has for its first token."""
    table = np.random.default_rng(0).standard_normal((len(vocabulary), 4)).astype(np.float32)
    tokens: list[int | str] = ["batch", "sequence"]
    file = make_onnx(
        tmp_path / "student.onnx",
        [
            helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
            helper.make_node("Mul", ["rows", "column"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        dict.fromkeys(("input_ids", "attention_mask"), (TensorProto.INT64, tokens)),
        {name: (TensorProto.FLOAT, [*tokens, 4]) for name in ("logits", "probabilities")},
        {"table": table, "last": np.array([2])},
    )
    interval = Interval(0.9, 0.8, 1.0)
    contents = Contents(
        task="token-classification",
        teacher=None,
        answer={"max_length": 8, "classes": TAGS},
        golden_inputs=[["the", "cat"], []],
        tokenizer=tokenizer_file,
        lineage=Provenance("tiny", "f" * 64, "MIT", "license-permits"),
        data={},
        recipe={},
        quality=Quality("student", "entity F1", interval, interval, 0.97, 100),
    )
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_bundle(describe_onnx(file, "student", "float32"), contents, WordPreprocessor(tokenizer_file, 8), folder)
    assert json.loads((folder / "golden_texts.json").read_text()) == [["the", "cat"], []]
    assert verify_bundle(folder).cases == 2
    predictor = compressor.load(folder)
    words = ["the", "walking", "\u200d", "cat", "sat", "on", "mat"]
    found = predictor.tag(words)
    assert [one.word for one in found] == words
    # [CLS] the walk ##ing cat sat on [SEP]: the joiner has no token, and there is no room for the mat.
    assert [one.label is None for one in found] == [False, False, True, False, False, False, True]
    for one, token in zip(found, ("the", "walk", "", "cat", "sat", "on", ""), strict=True):
        if not token:
            assert (one.probability, one.probabilities) == (0.0, {})
            continue
        row = table[vocabulary.index(token)].astype(np.float64)
        expected = np.exp(row) / np.exp(row).sum()
        np.testing.assert_allclose(list(one.probabilities.values()), expected, rtol=1e-5)
        assert (one.label, one.probability) == (TAGS[row.argmax()], pytest.approx(expected.max()))
    assert predictor("the cat") == predictor.tag(["the", "cat"])
    assert predictor(["the cat", ["dog"]]) == [predictor.tag("the cat"), predictor.tag("dog")]
    assert predictor.tag([]) == []
    with pytest.raises(BundleError, match="task is token-classification; this call needs sentence-embedding"):
        predictor.embed("the cat")


def onnx_tagger(make: Callable[..., Path], path: Path, columns: int, vocabulary: list[str]) -> Path:
    """The logits of a token are a row of a table: input_ids -> logits [batch, sequence, columns]."""
    table = np.random.default_rng(0).standard_normal((len(vocabulary), columns)).astype(np.float32)
    return make(
        path,
        [helper.make_node("Gather", ["table", "input_ids"], ["logits"])],
        {"input_ids": (TensorProto.INT64, ["batch", "sequence"])},
        {"logits": (TensorProto.FLOAT, ["batch", "sequence", columns])},
        {"table": table},
    )


def test_an_onnx_file_teaches(
    make_onnx: Callable[..., Path], tokenizer_file: Path, vocabulary: list[str], tmp_path: Path
) -> None:
    def at_file(columns: int) -> Materials:
        file = onnx_tagger(make_onnx, tmp_path / f"{columns}.onnx", columns, vocabulary)
        teacher = {"onnx": file, "tokenizer": tokenizer_file, "classes": TAGS, "permission": "own-model"}
        data = {"train": tmp_path / "a.jsonl", "eval": tmp_path / "b.jsonl"}
        values = {"task": "token-classification", "teacher": teacher, "data": data, "student": {"max_length": 16}}
        return Materials(recipe_from_values(values, "test"), SILENT)

    at = at_file(4)
    assert isinstance(at.task, TokenClassification)
    table = np.random.default_rng(0).standard_normal((len(vocabulary), 4)).astype(np.float32)
    examples = at.teacher_inputs([["the", "walking", "cat"], ["dog"]])
    logits = at.logits(examples)
    assert logits.shape == (2, 6, 4)
    rows = at.task.judged(logits[0].numpy(), examples[0])
    np.testing.assert_array_equal(rows, table[[vocabulary.index(word) for word in ("the", "walk", "cat")]])
    with pytest.raises(TeacherError, match=r"to be \[rows, sequence, 4\], one column for each class, got \[2, 6, 3\]"):
        at_file(3).answers(examples)
