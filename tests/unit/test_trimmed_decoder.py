"""A student that writes in a part of its teacher's tokens: what it is taught, and how it is judged beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from compressor import learning, stages
from compressor.artifacts import Student, TrainingHistory
from compressor.distill import SignalReader, outputs_of
from compressor.distill.positions import teacher_at
from compressor.distill.respelled import of_own_words, of_texts, respelled
from compressor.errors import StudentError
from compressor.kernels import SparseTeacher
from compressor.materials import Materials
from compressor.preprocess import TextPreprocessor, answers_in_order
from compressor.progress import SILENT
from compressor.recipe_file import recipe_from_values
from compressor.tasks import TaskData
from compressor.tasks.text_generation import TextGeneration
from compressor.token_map import begins, map_tokens, token_bytes
from compressor.verify.same_text import same_text

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "the",
    "mat",
    "while",
    "a",
    "dog",
    "runs",
    "through",
    "the",
    "green",
    "house",
    "and",
    "sings",
    "loudly",
    "about",
    "café",
    "life",
    "数字",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
KINDS = ("llama", "gpt2", "begins", "bytes")
VOCAB = 300


def texts(count: int, seed: int) -> list[str]:
    draws = np.random.default_rng(seed)
    return [" ".join(draws.choice(WORDS, draws.integers(5, 12))) for _ in range(count)]


def byte_level(begins: bool) -> Tokenizer:
    """As GPT-2 and Llama 3 have it; `begins`: with a token that begins every text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts(60, 0), trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return made


def with_bytes() -> Tokenizer:
    """As Llama 2 has it: characters, and bytes for those that the vocabulary lacks."""
    marked = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence(marked)
    single = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL, *single])
    made.train_from_iterator([text.replace("数字", "") for text in texts(60, 0)], trainer)
    definition = json.loads(made.to_str())
    definition["added_tokens"] = definition["added_tokens"][: len(SPECIAL)]
    return Tokenizer.from_str(json.dumps(definition))


def teacher_of(kind: str, tokens: int) -> PreTrainedModel:
    """That of "llama" has rows that no token has, as Qwen's have; that of "gpt2" ends texts with another token."""
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    model: PreTrainedModel
    if kind == "gpt2":
        ids = {"bos_token_id": 2, "eos_token_id": 2}
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
        model = GPT2LMHeadModel(GPT2Config(vocab_size=tokens, **sizes, **ids))
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        grouped = {"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": kind == "bytes"}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=tokens + 6 * (kind == "llama"), **sizes, **grouped, **ids))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    return model.eval()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for kind in KINDS:
        folders[kind] = tmp_path_factory.mktemp(kind)
        tokenizer = with_bytes() if kind == "bytes" else byte_level(kind == "begins")
        tokenizer.save(str(folders[kind] / "tokenizer.json"))
        teacher_of(kind, tokenizer.get_vocab_size()).save_pretrained(folders[kind])
    return folders


Made = Callable[..., Materials]


@pytest.fixture
def made(teachers: dict[str, Path], tmp_path: Path) -> Made:
    """Materials of a recipe whose student is its teacher, but for its vocabulary, and its layers if they are given."""

    def build(
        kind: str, vocab: int | None = VOCAB, max_length: int = 32, layers: int | None = None, **distill: Any
    ) -> Materials:
        for name, rows in (("train", texts(24, 1)), ("eval", [*texts(12, 2), "xyz café 数字 ÄÖ", "zebra"])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
        values = {
            "task": "text-generation",
            "teacher": {"path": teachers[kind], "permission": "own-model"},
            "data": {"train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl"},
            "student": {"layers": layers, "vocab": vocab, "max_length": max_length},
            "distill": {"batch_size": 4, "epochs": 1, "kept_tokens": 500, "hard_weight": 0.0, **distill},
            "out": tmp_path / "out",
        }
        return Materials(recipe_from_values(values, "test"), SILENT)

    return build


def student_of(at: Materials, folder: Path) -> Student:
    folder.mkdir()
    return stages.student(at, folder)


def ids_of(at: Materials, student: Student) -> NDArray[np.int64]:
    """Which of the teacher's tokens the student's are, by the two files."""
    mine = Tokenizer.from_file(str(student.folder / "tokenizer.json")).get_vocab()
    theirs = Tokenizer.from_file(str(Path(at.recipe.teacher.path) / "tokenizer.json")).get_vocab()  # type: ignore[union-attr]
    return np.array([theirs[token] for token, _ in sorted(mine.items(), key=lambda item: item[1])])


def exact(at: Materials, ids: NDArray[np.int64], columns: NDArray[np.int64]) -> torch.Tensor:
    """The teacher's float64 log-probabilities after each of its tokens `ids`, given that one of `columns` follows."""
    teacher: Any = type(at.teacher).from_pretrained(at.recipe.teacher.path).double().eval()  # type: ignore[union-attr]
    with torch.inference_mode():
        logits: torch.Tensor = teacher(input_ids=torch.from_numpy(ids)[None]).logits[0]
    return logits[:, torch.from_numpy(columns)].log_softmax(-1)


def test_token_bytes_by_hand() -> None:
    tokens = ["<s>", "a", "é", "", "<0x0A>"]
    assert token_bytes(tokens) == (b"<s>", b"a", b"\xc3\xa9", b"", b"<0x0A>"), "a text like any other"
    falls_back = ["é", *(f"<0x{byte:02X}>" for byte in range(256))]
    assert token_bytes(falls_back) == (b"\xc3\xa9", *(bytes([byte]) for byte in range(256)))
    assert begins([b"ab", b"\xc3", b"c"]).tolist() == [0, 2, 3]


def characters(folder: Path, name: str, tokens: list[str], merges: list[tuple[str, str]]) -> TextPreprocessor:
    Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges)).save(str(folder / name))
    return TextPreprocessor(folder / name, 12)


@pytest.fixture
def two(tmp_path: Path) -> tuple[TextPreprocessor, TextPreprocessor]:
    """A student without "cd", whose merges so go another way: it cuts abcd to abc d, its teacher to ab cd."""
    mine = characters(tmp_path, "mine", ["a", "b", "c", "d", "ab", "abc"], [("a", "b"), ("ab", "c")])
    merges = [("a", "b"), ("c", "d"), ("ab", "c")]
    return mine, characters(tmp_path, "theirs", ["a", "b", "c", "d", "ab", "cd", "abc"], merges)


def test_tokens_by_hand(two: tuple[TextPreprocessor, TextPreprocessor], tmp_path: Path) -> None:
    mine, theirs = two
    found = map_tokens(mine, theirs)
    assert found.ids.tolist() == [0, 1, 2, 3, 4, 6]
    assert found.first.tolist() == [0, 1, 2, 3, 4, 2, 5], "cd begins with c"
    assert (found.my_bytes[5], found.their_bytes[5]) == (b"abc", b"cd")
    with pytest.raises(StudentError, match=r"1 of the student's 7 tokens are none of its teacher's, such as 'cd'"):
        map_tokens(theirs, mine)
    shuffled = characters(tmp_path, "shuffled", ["ab", "b", "a"], [("a", "b")])
    assert map_tokens(shuffled, theirs).ids.tolist() == [4, 1, 0]
    assert map_tokens(shuffled, theirs).first.tolist() == [2, 1, -1, -1, 0, -1, 0], "what cannot be written"


def test_what_a_teacher_says_by_hand(two: tuple[TextPreprocessor, TextPreprocessor]) -> None:
    """Of cdabcd: to the teacher cd|ab|cd, to the student c|d|abc|d."""
    mine, theirs = two
    tokens = map_tokens(mine, theirs)
    (my_ids,), (their_ids,) = mine.encode(["cdabcd"]), theirs.encode(["cdabcd"])
    text = respelled(my_ids, their_ids, tokens)
    assert text.next.tolist() == [3, 5, 3]
    assert text.after.tolist() == [-1, 0, -1], "d lies within cd, abc begins with ab, d lies within cd again"
    shares = np.array([[0.1, 0.2, 0.05, 0.15, 0.25, 0.2, 0.05], [1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    padded = np.pad(np.log(np.maximum(shares, 1e-30)), ((0, 0), (0, 2)), constant_values=5.0)  # rows without a token

    def logits(batch: list[Any]) -> torch.Tensor:
        assert [ids.tolist() for ids in batch] == [their_ids.tolist()]
        return torch.from_numpy(padded)[None] + 3

    (found,) = of_texts(logits, tokens)([text])
    expected = [[0, 0, 0, 1, 0, 0], [0.1, 0.2, 0.25, 0.15, 0.25, 0.05], [0, 0, 0, 1, 0, 0]]
    np.testing.assert_allclose(found.exp().numpy(), expected, atol=1e-6)


def test_the_same_text_by_hand(two: tuple[TextPreprocessor, TextPreprocessor]) -> None:
    """Before the first common beginning one is given what the other predicts; then what lies within a token adds up."""
    mine, theirs = two
    #             theirs: ab|cd|ab    cd|ab|cd     ab|cd    c|ab|ab
    #             mine:   abc|d|ab    c|d|abc|d    abc|d    c|ab|ab
    passages = ["abcdab", "cdabcd", "abcd", "cabab"]
    cut = [[tokens[i] for i in ids] for tokens, ids in zip([mine.tokens()] * 4, mine.encode(passages), strict=True)]
    assert cut == [["abc", "d", "ab"], ["c", "d", "abc", "d"], ["abc", "d"], ["c", "ab", "ab"]]
    found = same_text(passages, mine, theirs, map_tokens(mine, theirs))
    assert found.truth.tolist() == [1, 2, 2], "the third has no common beginning"
    assert found.tokens_of_mine == 12
    # Of each token but a passage's first: log-probability, and most probable token.
    by_teacher = np.array([[-1, 4], [-2, 4], [-3, 6], [-4, 1], [-5, 0], [-6, 4], [-7, 3]], np.float32)
    by_student = np.array([[-10, 0], [-20, 4], [-30, 0], [-40, 5], [-50, 3], [-60, 0], [-70, 5], [-80, 2]], np.float32)
    rows = found.rows({"teacher": by_teacher, "student": by_student})
    assert rows["teacher"].tolist() == [[-2, 4], [-3, 6], [-4, 1], [-6, 4], [-7, 3]]
    assert rows["student"].tolist() == [[-20, 4], [-40, 6], [-50, -1], [-70, 6], [-80, 2]]


def test_agreement_counts_where_both_begin_a_token(made: Made) -> None:
    student = np.array([[-20, 4], [-40, 6], [-50, -1], [-70, 6], [-80, 2]], np.float32)
    teacher = np.array([[-2, 4], [-3, 6], [-4, 1], [-6, 4], [-7, 3]], np.float32)
    assert made("llama").task.agreement(student, teacher) == 2 / 4


def test_what_is_not_read_whole_is_refused(two: tuple[TextPreprocessor, TextPreprocessor]) -> None:
    mine, theirs = two
    tokens = map_tokens(mine, theirs)
    same_text(["dcdcdcdcdcab"], mine, theirs, tokens)
    with pytest.raises(
        StudentError, match=r"passage 2 has 7 of the teacher's tokens and more than 12 of the student's"
    ):
        same_text(["abab", "cdcdcdcdcdcdcd"], mine, theirs, tokens)
    with pytest.raises(StudentError, match="begin no token at the same place"):
        same_text(["abcd"], mine, theirs, tokens)


def test_text_that_is_lost_is_refused(two: tuple[TextPreprocessor, TextPreprocessor], tmp_path: Path) -> None:
    """A tokenizer that leaves out what it has no token for would be judged on the rest."""
    deaf = characters(tmp_path, "deaf", ["a", "b"], [])
    with pytest.raises(StudentError, match="of held-out passage 1 the trimmed tokenizer loses text"):
        same_text(["abcab"], deaf, two[1], map_tokens(deaf, two[1]))


def summed(at: Materials, student: Student, ids: NDArray[np.int64]) -> torch.Tensor:
    """The teacher's float64 probabilities after each of its tokens `ids`, added up token by token to the student's."""
    columns, names = ids_of(at, student), at.teacher_preprocessor.tokens()  # type: ignore[attr-defined]
    own = {theirs: i for i, theirs in enumerate(columns)}
    model = Tokenizer.from_file(str(student.folder / "tokenizer.json")).model
    first = [own[i] if i in own else model.tokenize(str(name))[0].id for i, name in enumerate(names)]
    said = exact(at, ids, np.arange(len(names))).exp()
    return torch.zeros(len(ids), len(columns), dtype=torch.float64).index_add_(1, torch.tensor(first), said)


@pytest.mark.parametrize("kind", KINDS)
def test_signals_are_the_teachers_in_the_students_tokens(made: Made, kind: str, tmp_path: Path) -> None:
    """Of each text, at temperature 2, as they are written and read again."""
    at = made(kind, temperature=2.0)
    student = student_of(at, tmp_path / "student")
    (tmp_path / "signals").mkdir()
    reader = SignalReader(learning.signals(at, student, tmp_path / "signals"))
    columns, mine = ids_of(at, student), at.task.preprocessor(student.folder)
    names = at.teacher_preprocessor.tokens()  # type: ignore[attr-defined]
    assert len(columns) == VOCAB
    spelled = 0
    for row, (example, theirs) in enumerate(zip(mine.encode(at.data.train), at.teacher_examples, strict=True)):
        shares, after = summed(at, student, theirs), {end: i for i, end in enumerate(ends(theirs, names))}
        found = teacher_at(reader, np.array([row]))
        assert isinstance(found, SparseTeacher)
        assert len(found.values) == len(example) - 1
        for place, end in enumerate(ends(columns[example], names)[:-1]):
            dense = torch.zeros(VOCAB).double().scatter(0, found.indices[place], found.values[place].double().exp())
            if end in after:
                expected = (shares[after[end]].log() / 2).softmax(-1)
            else:
                expected, spelled = torch.eye(VOCAB).double()[example[place + 1]], spelled + 1
            # What is kept is within 1/255 of the range of the logarithms.
            torch.testing.assert_close(dense, expected, rtol=0.06, atol=1e-6)
    assert spelled, "all was cut alike"


def test_of_its_own_words_a_student_hears_the_same(made: Made, tmp_path: Path) -> None:
    """Words that no tokenizer would cut so, half a character among them."""
    at = made("llama")
    student = student_of(at, tmp_path / "student")
    tokens = at.token_map(at.task.preprocessor(student.folder))
    assert tokens is not None
    said = np.array([40, 290, 7, 130, 299, 12])
    (found,) = of_own_words(at.logits, tokens)([said])
    expected = summed(at, student, ids_of(at, student)[said])
    np.testing.assert_allclose(found.exp().numpy(), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("kind", "vocab"), [*((kind, VOCAB) for kind in KINDS), ("llama", 5000)])
def test_a_student_that_is_its_teacher_by_hand(made: Made, kind: str, vocab: int, tmp_path: Path) -> None:
    """Its score is that of the teacher's conditional distribution over the student's reading of the passages. 5000 are
    more than there are tokens, but the teacher's table has more rows than that.
    """
    at = made(kind, vocab)
    student = student_of(at, tmp_path / "student")
    columns, preprocessor = ids_of(at, student), at.task.preprocessor(student.folder)
    same = at.same_text(preprocessor)
    assert same is not None
    rows = same.rows({"teacher": teacher_rows(at), "student": student_rows(at, student)})
    data = TaskData([], None, 0, at.data.eval_inputs, same.truth, {})

    theirs, mine, tokens, counted = [], [], 0, 0
    teacher_tokens = at.teacher_preprocessor.tokens()  # type: ignore[attr-defined]
    everything = np.arange(at.teacher.config.vocab_size)  # type: ignore[union-attr, arg-type]
    for own, read in zip(at.teacher_inputs(at.data.eval_inputs), preprocessor.encode(at.data.eval_inputs), strict=True):
        both = set(ends(own, teacher_tokens)[:-1]) & set(ends(columns[read], teacher_tokens)[:-1])
        if not both:
            continue
        for ids, among, sums in ((own, everything, theirs), (columns[read], columns, mine)):
            said = exact(at, ids, among).numpy()
            number = {token: i for i, token in enumerate(among)}
            first = ends(ids, teacher_tokens).index(min(both)) + 1
            sums.append(sum(said[i - 1, number[ids[i]]] for i in range(first, len(ids))))
            tokens += (len(ids) - first) * (ids is own)
        counted += 1
    assert counted == len(same.truth) >= 12
    for name, expected in (("teacher", theirs), ("student", mine)):
        answers = at.task.answers(rows[name], data)
        np.testing.assert_allclose(answers[:, 0], expected, rtol=2e-5)
        assert at.task.metric(answers, data.truth) == pytest.approx(np.exp(sum(expected) / tokens), rel=1e-5)
    if kind == "begins":
        assert tokens == at.data.truth.sum(), "all of the text"
    assert 0 < at.task.agreement(rows["student"], rows["teacher"]) < 1


def ends(ids: NDArray[np.int64], tokens: NDArray[np.str_]) -> list[int]:
    """After how many bytes each token ends."""
    text, found = b"", []
    for token in tokens[ids]:
        byte = token.startswith("<0x") and len(token) == 6
        text += bytes([int(token[3:5], 16)]) if byte else token.encode()
        found.append(len(text))
    return found


def teacher_rows(at: Materials) -> NDArray[np.float32]:
    examples = at.teacher_inputs(at.data.eval_inputs)
    return answers_in_order(lambda batch: at.logits(batch).numpy(), examples, 1, keep=at.task.judged)


def student_rows(at: Materials, student: Student) -> NDArray[np.float32]:
    module, preprocessor = at.student(student.folder), at.task.preprocessor(student.folder)
    with torch.inference_mode():
        return answers_in_order(
            lambda batch: outputs_of(module, preprocessor.collate(batch)).numpy(),
            preprocessor.encode(at.data.eval_inputs),
            1,
            keep=at.task.judged,
        )


@pytest.mark.parametrize("kind", ["gpt2", "begins", "bytes"])
def test_one_that_keeps_all_is_judged_as_one_that_is_not_trimmed(made: Made, kind: str) -> None:
    """The teacher itself in the student's place."""
    at = made(kind, vocab=5000)
    before = teacher_rows(at)
    preprocessor = at.task.preprocessor(Path(at.recipe.teacher.path))  # type: ignore[union-attr]
    same = at.same_text(preprocessor)
    assert same is not None
    assert same.truth.tolist() == at.data.truth.tolist()
    for rows in same.rows({"teacher": before, "student": before}).values():
        np.testing.assert_array_equal(rows, before)

    plain = made(kind, vocab=None)
    own = plain.task.preprocessor(Path(at.recipe.teacher.path))  # type: ignore[union-attr]
    assert plain.token_map(own) is None
    assert plain.same_text(own) is None
    assert (own.max_length, preprocessor.max_length) == (32, 128)  # type: ignore[attr-defined]


def test_a_passage_that_does_not_fit_is_refused_before_training(made: Made, tmp_path: Path) -> None:
    """Of 128 positions 60 of the teacher's tokens leave room for twice as many and some."""
    at = made("llama", max_length=60)
    at.data.eval_inputs.append("the cat sat on the mat while" + " loudly" * 40)  # type: ignore[union-attr]
    at.data.eval_inputs.append("zzzzzz " * 30)  # type: ignore[union-attr]
    with pytest.raises(StudentError, match=r"held-out passage 16 has .* more than 128 of the student's"):
        student_of(at, tmp_path / "student")


@pytest.mark.parametrize("on_policy", [0.0, 1.0])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(made: Made, on_policy: float, tmp_path: Path) -> None:
    """With all tokens, but without the rows that are none: the loss is 0, of what was recorded and of its own words."""
    at = made("llama", vocab=5000, on_policy=on_policy, learning_rate=1e-12)
    history = trained(at, tmp_path)
    assert [point.loss for point in history.losses] == pytest.approx([0.0] * 5, abs=2e-3)


def test_a_trimmed_student_learns(made: Made, tmp_path: Path) -> None:
    """From all that a mixture has: hidden states of the texts that are cut alike, its own words, labels."""
    mixture = {"hidden_weight": 0.1, "on_policy": 0.3, "hard_weight": 0.1}
    history = trained(made("begins", vocab=325, layers=1, epochs=8, learning_rate=3e-3, **mixture), tmp_path)
    assert history.scores[-1].score > history.scores[0].score


def trained(at: Materials, folder: Path) -> TrainingHistory:
    student = student_of(at, folder / "student")
    for name in ("signals", "distill"):
        (folder / name).mkdir()
    recorded = learning.signals(at, student, folder / "signals")
    return learning.distill(at, student, recorded, folder / "distill").history


def test_its_config_and_its_answers_name_its_own_tokens(made: Made, tmp_path: Path) -> None:
    """`<s>` and `</s>` stand behind an `<unk>` that stays, but a GPT-2 that ends texts with a later token moves it."""
    at = made("gpt2")
    student = student_of(at, tmp_path / "student")
    assert isinstance(at.task, TextGeneration)
    settings = at.task.answer_settings(student.folder)
    tokenizer = Tokenizer.from_file(str(student.folder / "tokenizer.json"))
    assert [tokenizer.id_to_token(i) for i in (*settings["stop_ids"], settings["start_id"])] == ["</s>"] * 2
    assert settings["max_length"] == 4 * 32 == tokenizer.truncation["max_length"]
    for text in (*texts(5, 9), "Ünïcödé\t\U0001f600"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
