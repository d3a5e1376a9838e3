"""Text generation taught by what an endpoint writes: what is asked, kept, read, learnt from, and judged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import Reply, Server, completion, serving
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from compressor.answered import Answer, AnswerPreprocessor, answer_positions
from compressor.distill import SignalReader, TrainingData, read_texts, write_texts
from compressor.distill.learner import Learner
from compressor.distill.lessons import Lessons
from compressor.errors import CompressorError, DataError, RecipeError, StudentError, TeacherError
from compressor.preprocess import CacheShape, CausalPreprocessor
from compressor.progress import SILENT
from compressor.recipe_distill import AnswerDistillation
from compressor.recipe_file import recipe_from_values
from compressor.recipe_teacher import EndpointWriter
from compressor.students import check_student
from compressor.tasks import TaskData, task_for
from compressor.tasks.answered_generation import AnsweredGeneration
from compressor.teachers.answer_cache import AnswerCache
from compressor.teachers.written import open_writer

END = 0
CACHE = CacheShape(1, 1, 8)
PROMPTS = ["the cat", "a dog runs", "the green house", "café 数字", "sat", "the mat"]
ANSWERS = [
    Answer(" sat on the mat.", True),
    Answer("through", True),
    Answer(" and " * 40, False),
    Answer("\U0001f600 ünï\x00", True),
    Answer(" on", False),
    Answer("cat sat", True),
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level BPE that begins every text with a token of its own, as many decoders' do."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290, special_tokens=["<|end|>", "<|begin|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    made.train_from_iterator(["the cat sat on the mat. a dog runs through the green house"] * 9, trainer)
    made.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 1)])
    return made


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student: a Llama of two layers."""
    path = tmp_path_factory.mktemp("student")
    tokenizer.save(str(path / "tokenizer.json"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=290, bos_token_id=1, eos_token_id=END, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return path


def values(folder: Path, place: Path, **teacher: Any) -> dict[str, Any]:
    return {
        "task": "text-generation",
        "teacher": {"endpoint": "http://127.0.0.1:9/v1", "model": "big", "permission": "own-model", **teacher},
        "data": {"train": place / "train.jsonl", "eval": place / "eval.jsonl"},
        "student": {"folder": folder, "max_length": 24},
        "distill": {"batch_size": 2},
        "out": place / "out",
    }


@pytest.fixture
def task(folder: Path, tmp_path: Path) -> AnsweredGeneration:
    found = task_for(recipe_from_values(values(folder, tmp_path), "test"))
    assert isinstance(found, AnsweredGeneration)
    return found


def test_a_prompt_and_its_answer_by_hand(tokenizer: Tokenizer, task: AnsweredGeneration) -> None:
    """The prompt as a device reads it, then the answer's own tokens without another beginning, then the end."""
    preprocessor = task.preprocessor(None)
    plain = CausalPreprocessor(preprocessor.tokenizer_file, 24, CACHE, 1)
    bare = Tokenizer.from_str(tokenizer.to_str())
    bare.no_truncation()
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        (example,) = preprocessor.encode([(prompt, answer)])
        (before,) = plain.encode([prompt])
        after = [*bare.encode(answer.text, add_special_tokens=False).ids, *([END] if answer.ended else [])]
        assert example[:, 0].tolist() == [*before.tolist(), *after][:24]
        assert example[:, 1].tolist() == [*[0] * len(before), *[1] * len(after)][:24]
        assert before[0] == 1
        places = answer_positions(example)
        assert places.tolist() == list(range(len(before) - 1, len(example) - 1)), "the prompt's last token has its say"
        assert task.labels(TaskData([], None, 0, [], np.empty(0, np.int64), {}), [example])[0].tolist() == (
            example[places + 1, 0].tolist()
        )


def test_prompts_alone_are_what_a_device_reads(task: AnsweredGeneration) -> None:
    preprocessor = task.preprocessor(None)
    plain = CausalPreprocessor(preprocessor.tokenizer_file, 24, preprocessor.cache, 1)
    texts = ["", *PROMPTS, "the " * 90]
    mixed = preprocessor.encode([texts[0], (texts[1], ANSWERS[0]), *texts[2:]])
    assert [len(answer_positions(example)) > 0 for example in mixed] == [False, True, *[False] * (len(texts) - 2)]
    alone, expected = preprocessor.encode(texts), plain.encode(texts)
    feed = plain.collate(expected)
    for name, array in preprocessor.collate(alone).items():
        np.testing.assert_array_equal(array, feed[name])
    for example, ids in zip(alone, expected, strict=True):
        for name, array in preprocessor.step(example).items():
            np.testing.assert_array_equal(array, plain.step(ids)[name])
    with pytest.raises(DataError, match="expected text"):
        preprocessor.encode([3])


def test_a_long_prompt_leaves_no_room(task: AnsweredGeneration) -> None:
    (example,) = task.preprocessor(None).encode([("the " * 90, ANSWERS[0])])
    assert len(example) == 24
    assert not len(answer_positions(example))


def test_only_the_tokens_of_answers_are_learnt(folder: Path, task: AnsweredGeneration, tmp_path: Path) -> None:
    """Loss and gradients of a padded batch, against torch's cross-entropy in float64, text by text without padding."""
    preprocessor, settings = task.preprocessor(None), AnswerDistillation()
    examples = preprocessor.encode(list(zip(PROMPTS, ANSWERS, strict=True)))
    signals = SignalReader(write_texts(ANSWERS, tmp_path, 1.0))
    positions = [task.positions(example) for example in examples]
    labels = [example[places + 1, 0] for example, places in zip(examples, positions, strict=True)]
    data = TrainingData(examples, signals, labels, 2, positions)
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    learner = Learner(task.deployable(model), signals.width, {}, preprocessor.collate(examples[:1]))
    assert learner.head, "the last layer is left to the loss"
    lessons = Lessons(task, preprocessor, data, settings, learner, learner)
    rows = np.arange(4)
    loss = lessons.loss(rows, np.zeros(4, np.int64), 0, 10)
    loss.backward()
    score = lessons.held_out_score()
    learner.close()

    exact = LlamaForCausalLM.from_pretrained(folder).double().eval()

    def losses_of(chosen: range) -> torch.Tensor:
        found = []
        for i in chosen:
            before = preprocessor.encode([PROMPTS[i]])[0][:, 0]
            ids = torch.from_numpy(examples[i][:, 0])[None]
            logits = exact(input_ids=ids).logits[0]
            places = range(len(before), ids.numel())
            found += [nn.functional.cross_entropy(logits[place - 1], ids[0, place]) for place in places]
        return torch.stack(found)

    expected = losses_of(range(4)).mean()
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert score == pytest.approx(-float(losses_of(range(4, 6)).mean().detach()), rel=1e-5)
    own = dict(model.named_parameters())
    for name, parameter in exact.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(own[name].grad, parameter.grad.float(), rtol=1e-3, atol=1e-5)


def test_what_is_judged_by_hand(task: AnsweredGeneration) -> None:
    """Two answers, of three tokens and of one; the model would have said two of the first and the second."""
    examples = [
        np.array([[5, 0], [6, 0], [1, 1], [2, 1], [3, 1]]),
        np.array([[5, 0], [4, 1]]),
    ]
    most_probable = [[7, 1, 0, 3, 9], [4, 9]]
    rows = []
    for example, said in zip(examples, most_probable, strict=True):
        output = np.zeros((len(example) + 2, 10), np.float32)  # padding follows
        output[np.arange(len(said)), said] = 3
        rows.append(task.judged(output, example))
    assert [row.tolist() for row in rows] == [[[1, 1], [0, 0], [1, 0]], [[1, 1]]]
    outputs, data = np.concatenate(rows), TaskData([], None, 0, ["a", "b"], np.array([3, 1]), {})
    answers = task.answers(outputs, data)
    assert answers.tolist() == [[2, 3], [1, 1]]
    assert task.metric(answers, data.truth) == 3 / 4
    teacher = task.teacher_rows(data)
    assert task.metric(task.answers(teacher, data), data.truth) == 1
    assert task.agreement(outputs, teacher) == 1 / 2, "one of two answers, word for word"
    assert task.agreement(teacher, teacher) == 1


def test_what_was_written_comes_back(tmp_path: Path) -> None:
    """More rows than a shard has, with all kinds of text, and none; and what is damaged is found."""
    generator = np.random.default_rng(0)
    texts = ["a", "\x00", "ÿ", "数字\n", "\U0001f600", "x" * 3000]
    answers = [
        None if draw == 0 else Answer(texts[draw - 1], bool(ended))
        for draw, ended in zip(generator.integers(0, 7, 1500), generator.integers(0, 2, 1500), strict=True)
    ]
    signals = write_texts(answers, tmp_path, 1.0)
    assert read_texts(signals) == answers
    assert len(signals.shards) == 2
    content = bytearray(signals.shards[1].path.read_bytes())
    content[-1] ^= 1
    signals.shards[1].path.write_bytes(content)
    with pytest.raises(TeacherError, match="missing or damaged"):
        read_texts(signals)


def write_rows(path: Path, texts: list[Any]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_each_distinct_prompt_once(task: AnsweredGeneration, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [*PROMPTS, *PROMPTS[:2], *PROMPTS[:1]])
    write_rows(tmp_path / "eval.jsonl", ["sat", "on", "sat"])
    data = task.load_data(tmp_path / "cache", SILENT)
    assert sorted(data.train) == sorted(PROMPTS)
    assert data.eval_inputs == ["sat", "on"]
    assert data.described["training"].startswith("6 prompts of ")
    answers = dict(zip(PROMPTS, ANSWERS, strict=True))
    known = task.lessons(data, [answers[text] if text != "sat" else None for text in data.train])
    assert known.train == [(text, answers[text]) for text in data.train if text != "sat"]
    assert known.holdout == 1
    judged = task.held_out(data, [None, Answer("cat", True)])
    assert judged.eval_inputs == [("on", Answer("cat", True))]
    assert judged.truth.tolist() == [2], "and the end"
    with pytest.raises(DataError, match="expected prompts with an answer, got none"):
        task.held_out(data, [None, None])
    with pytest.raises(DataError, match="at least two batches of prompts with an answer, got 3"):
        task.lessons(data, [*ANSWERS[:3], None, None, None])


def test_prompts_without_room_for_an_answer_are_bounded(folder: Path, tmp_path: Path) -> None:
    write_rows(tmp_path / "train.jsonl", [*PROMPTS, "the green house " * 30])
    write_rows(tmp_path / "eval.jsonl", ["sat"])
    given = values(folder, tmp_path)
    with pytest.raises(DataError, match=r"1 of 7 prompts that fill student\.max_length \(24 tokens\) \(row 7\)"):
        task_for(recipe_from_values(given, "test")).load_data(tmp_path / "cache", SILENT)
    given["data"]["max_bad_rows"] = 0.2
    allowing = task_for(recipe_from_values(given, "test"))
    assert isinstance(allowing, AnsweredGeneration)
    data = allowing.load_data(tmp_path / "cache", SILENT)
    assert len(data.train) == 7, "what was asked about is the same for every student"
    assert len(allowing.lessons(data, [ANSWERS[0]] * 7).train) == 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"eos_token_id": None}, "expected an eos_token_id in its config.json"),
        ({"eos_token_id": 290}, "ends an answer with token 290 (eos_token_id) of 290 (vocab_size)"),
        (None, "expected a config.json in the student's folder"),
    ],
)
def test_a_student_that_cannot_end(folder: Path, tmp_path: Path, change: dict[str, Any] | None, words: str) -> None:
    write_rows(tmp_path / "train.jsonl", PROMPTS)
    write_rows(tmp_path / "eval.jsonl", ["sat"])
    other = tmp_path / "other"
    other.mkdir()
    (other / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    if change is not None:
        config = json.loads((folder / "config.json").read_text()) | change
        (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(StudentError) as raised:
        task_for(recipe_from_values(values(other, tmp_path), "test")).load_data(tmp_path / "cache", SILENT)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_token_without_a_row_in_the_table(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "other")
    tokenizer = Tokenizer.from_file(str(tmp_path / "other" / "tokenizer.json"))
    tokenizer.add_tokens(["new"])
    tokenizer.save(str(tmp_path / "other" / "tokenizer.json"))
    with pytest.raises(StudentError, match="its tokenizer numbers tokens up to 290, but its table has 290 rows"):
        check_student(recipe_from_values(values(tmp_path / "other", tmp_path), "test"), None)


@pytest.mark.parametrize(
    ("group", "settings", "words"),
    [
        ("distill", {"kept_tokens": 8}, "unknown key distill.kept_tokens"),
        ("distill", {"on_policy": 0.5}, "unknown key distill.on_policy"),
        ("distill", {"hidden_weight": 1.0}, "unknown key distill.hidden_weight"),
        ("distill", {"hard_weight": 0.5}, "unknown key distill.hard_weight"),
        ("distill", {"temperature": 2.0}, "unknown key distill.temperature"),
        ("distill", {"control": True}, "unknown key distill.control"),
        ("student", {"layers": 2}, "unknown key student.layers"),
        ("teacher", {"classes": ["a", "b"]}, "unknown key teacher.classes"),
        ("teacher", {"top_logprobs": 2}, "unknown key teacher.top_logprobs"),
        ("teacher", {"shard": True}, "unknown key teacher.shard"),
        ("teacher", {"prompt": "Well?"}, "teacher.prompt: expected {text} where the row's text goes"),
        ("teacher", {"permission": "license-permits", "license": "MIT"}, "set teacher.terms"),
        ("student", {"folder": None}, "student.folder"),
    ],
)
def test_settings_that_mean_nothing_here(
    folder: Path, tmp_path: Path, group: str, settings: dict[str, Any], words: str
) -> None:
    given = values(folder, tmp_path)
    given[group] |= settings
    with pytest.raises(RecipeError) as raised:
        recipe_from_values(given, "test")
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def echo(body: dict[str, Any]) -> Reply:
    return completion(f" {body['messages'][-1]['content']}!")


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(echo) as running:
        yield running


Make = Callable[..., EndpointWriter]


@pytest.fixture
def teacher(server: Server, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr("compressor.teachers.pacing._FIRST_WAIT_S", 0.01)

    def make(**settings: Any) -> EndpointWriter:
        given = {"endpoint": server.url, "model": "big", "permission": "own-model"}
        return EndpointWriter.model_validate({**given, **settings})

    return make


def test_what_is_asked(server: Server, teacher: Make, tmp_path: Path) -> None:
    done: list[int] = []
    found = open_writer(teacher(prompt="Say: {text}", max_tokens=7), tmp_path / "c.jsonl").answers(
        ["a {text}", "b"], done.append
    )
    assert found == [Answer(" Say: a {text}!", True), Answer(" Say: b!", True)]
    assert sum(done) == 2
    body = server.seen[0][2]
    assert {key: body[key] for key in body if key != "messages"} == {"model": "big", "temperature": 0, "max_tokens": 7}
    assert open_writer(teacher(prompt="Say: {text}", max_tokens=7), tmp_path / "c.jsonl").answers(["b"]) == found[1:]
    assert len(server.seen) == 2, "another process finds the answers on disk"


def reply(content: Any, reason: str | None = "stop") -> Reply:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": reason}
    return Reply(body=json.dumps({"choices": [choice]}).encode())


SAID = {
    "ended": (reply("yes"), Answer("yes", True)),
    "no reason": (reply("yes", None), Answer("yes", True)),
    "cut off": (reply("yes", "length"), Answer("yes", False)),
    "filtered": (reply("yes", "content_filter"), Answer("yes", False)),
    "white space around it": (reply(" yes\n"), Answer(" yes\n", True)),
    "empty": (reply(""), None),
    "blank": (reply(" \n "), None),
    "null": (reply(None, "length"), None),
    "half a character": (reply("yes \ud83d"), None),
    "two halves": (reply("yes \ud83d\ude00"), Answer("yes \U0001f600", True)),
    "no text": (reply("yes \ufffd\ufffd"), None),
}


@pytest.mark.parametrize(("said", "expected"), SAID.values(), ids=SAID.keys())
def test_what_an_answer_is(server: Server, teacher: Make, tmp_path: Path, said: Reply, expected: Answer | None) -> None:
    server.answer = lambda _: said
    for _ in range(2):  # from the endpoint, and from what was kept of it
        assert open_writer(teacher(max_unusable=1), tmp_path / "c.jsonl").answers(["hm?"]) == [expected]
    assert len(server.seen) == 1
    if expected is None:
        with pytest.raises(TeacherError, match=r"expected text in answer to 'hm\?', got .*teacher\.max_unusable$"):
            open_writer(teacher(), tmp_path / "c.jsonl").answers(["hm?"])


def test_answers_without_text_are_counted_and_named(server: Server, teacher: Make, tmp_path: Path) -> None:
    server.answer = lambda body: completion("" if "?" in body["messages"][-1]["content"] else "yes")
    told: list[str] = []
    found = open_writer(teacher(max_unusable=2), tmp_path / "c.jsonl", told.append).answers(["a?", "b", "c?"])
    assert found == [None, Answer("yes", True), None]
    assert told == [
        "  the endpoint answers 'a?' with nothing, so it is left out (1 of 2)",
        "  the endpoint answers 'c?' with nothing, so it is left out (2 of 2)",
    ]
    with pytest.raises(TeacherError, match=r"answer to 'c\?', got nothing \(2 prompts are answered so\)") as raised:
        open_writer(teacher(max_unusable=1), tmp_path / "c.jsonl").answers(["a?", "b", "c?"])
    assert "\n" not in str(raised.value)
    assert len(server.seen) == 3


def test_a_spent_budget_is_gone_on_from(server: Server, teacher: Make, tmp_path: Path) -> None:
    prompts = [f"prompt {number}" for number in range(70)]
    for so_far in (40, 70):
        asking = open_writer(teacher(max_requests=40, concurrency=1), tmp_path / "c.jsonl")
        if so_far == 40:
            with pytest.raises(TeacherError, match="the budget of 40 requests is spent"):
                asking.answers(prompts)
        else:
            assert asking.answers(prompts) == [Answer(f" {prompt}!", True) for prompt in prompts]
        assert len(set(server.prompts())) == len(server.seen) == so_far == len(AnswerCache(tmp_path / "c.jsonl"))


def test_one_budget_for_both_sets_of_prompts(folder: Path, server: Server, tmp_path: Path) -> None:
    """Training and held-out prompts are asked about by two stages of one run."""
    from compressor.materials import Materials

    write_rows(tmp_path / "train.jsonl", PROMPTS)
    write_rows(tmp_path / "eval.jsonl", ["sat", "on"])
    recipe = recipe_from_values(values(folder, tmp_path, endpoint=server.url, max_requests=4), "test")
    at = Materials(recipe, SILENT)
    for name in ("eval", "train"):
        (tmp_path / name).mkdir()
    recorded = at.written(at.data.eval_inputs, tmp_path / "eval")
    assert read_texts(recorded) == [Answer(" sat!", True), Answer(" on!", True)]
    assert at.held_out(recorded).eval_inputs == [("sat", Answer(" sat!", True)), ("on", Answer(" on!", True))]
    with pytest.raises(TeacherError, match="the budget of 4 requests is spent"):
        at.written(at.data.train, tmp_path / "train")
    again = Materials(recipe, SILENT)
    lessons = again.lessons(again.written(again.data.train, tmp_path / "train"))
    assert lessons.train == [(text, Answer(f" {text}!", True)) for text in again.data.train]
    assert len(set(server.prompts())) == len(server.seen) == 7, "'sat' is in both"


def test_permission_is_settled_first(folder: Path, tmp_path: Path) -> None:
    from compressor.materials import Materials

    given = values(folder, tmp_path)
    del given["teacher"]["permission"]
    with pytest.raises(CompressorError, match="a black box needs what permits distilling it"):
        _ = Materials(recipe_from_values(given, "test"), SILENT).fingerprints


def test_another_end_is_another_student(task: AnsweredGeneration) -> None:
    """The preprocessor compares by what makes its tokens."""
    one = task.preprocessor(None)
    assert one == task.preprocessor(task.recipe.student.folder)
    assert isinstance(one, AnswerPreprocessor)
    assert replace(one, end_id=1).encode([("a", ANSWERS[0])])[0][-1, 0] == 1
