"""Text generation: what perplexity is, what is kept of a teacher's distribution, and what a bundle then says."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import compressor
from compressor import stages
from compressor.artifacts import Interval, Provenance, Quality
from compressor.bundle.build import Contents, write_bundle
from compressor.distill import Inputs, SignalReader, TrainingData, answers_at, record_signals
from compressor.distill.positions import as_teacher, packed, said, unpacked
from compressor.errors import StudentError, TeacherError
from compressor.export import export_onnx
from compressor.kernels import SparseTeacher, distillation_loss
from compressor.materials import Materials
from compressor.preprocess import CacheShape, CausalPreprocessor, Feed
from compressor.progress import SILENT
from compressor.recipe_distill import NextTokenDistillation
from compressor.recipe_file import recipe_from_values
from compressor.recipe_teacher import FolderTeacher
from compressor.tasks import TaskData, task_for
from compressor.tasks.text_generation import TextGeneration
from compressor.teachers.decoder import decoder_config

CLASSES, ROWS, HELD_OUT = 12, 22, 4
TEXTS = [
    "the cat sat on the mat. " * 20,
    "",
    "  \n\n tab\t and   spaces  " * 9,
    "x\U0001f600é naïve café “quotes” 数字 " * 12,
    "\U0001f600" * 40,
    "short",
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Byte-level BPE, so that a character may be several tokens."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    made.train_from_iterator(["the cat sat on the mat. a dog runs through the green house"] * 9, trainer)
    return made


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with weights that make it say something of its own after each prompt."""
    path = tmp_path_factory.mktemp("decoder")
    tokenizer.save(str(path / "tokenizer.json"))
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    model.save_pretrained(path)
    return path


@pytest.fixture
def task(folder: Path, tmp_path: Path) -> TextGeneration:
    values = {
        "task": "text-generation",
        "teacher": {"path": folder, "permission": "own-model"},
        "data": {"train": tmp_path / "train.jsonl", "eval": tmp_path / "eval.jsonl"},
        "student": {"max_length": 32},
        "out": tmp_path / "out",
    }
    found = task_for(recipe_from_values(values, "test"))
    assert isinstance(found, TextGeneration)
    return found


def test_a_model_without_attention_is_no_teacher(tmp_path: Path) -> None:
    MambaForCausalLM(MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1)).save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match=r"a mamba model has no attention heads.*expected a transformer") as raised:
        decoder_config(FolderTeacher(path=tmp_path))
    assert "\n" not in str(raised.value)


def test_perplexity_by_hand(task: TextGeneration) -> None:
    """True tokens of probability 1/2, 1/4 and, in another passage, 1/8: 1/perplexity = (1/64) ** (1/3) = 1/4."""

    def logits(*of_true: float) -> NDArray[np.float32]:
        """Token 1 is always the true one; the rest of the mass is on 0, at half of the places the more probable."""
        rows = [[np.log(1 - p), np.log(p), -60.0] for p in of_true]
        return np.array([*rows, [9.0, 0.0, 0.0]], np.float32) + 5  # the last token predicts nothing that is known

    examples = [np.array([2, 1, 1]), np.array([0, 1])]
    outputs = [logits(1 / 2 + 1e-6, 1 / 4), logits(1 / 8)]
    rows = np.concatenate([task.judged(output, ids) for output, ids in zip(outputs, examples, strict=True)])
    assert rows[:, 1].tolist() == [1, 0, 0], "the most probable token"
    data = TaskData([], None, 0, ["a", "b"], np.array([2, 1]), {})
    answers = task.answers(rows, data)
    np.testing.assert_allclose(answers, [[np.log(1 / 8), 2], [np.log(1 / 8), 1]], atol=1e-5)
    assert task.metric(answers, data.truth) == pytest.approx(1 / 4, rel=1e-5)


def test_what_is_judged_is_the_log_probability(task: TextGeneration) -> None:
    """Against float64, with logits so large that their exponentials overflow, and padding after the example."""
    generator = np.random.default_rng(0)
    output = (generator.standard_normal((9, 50)) * 300).astype(np.float32)
    ids = generator.integers(0, 50, 6)
    exact = output[:5].astype(np.float64)
    exact -= np.logaddexp.reduce(exact, axis=1, keepdims=True)
    rows = task.judged(output, ids)
    assert rows.shape == (5, 2)
    np.testing.assert_allclose(rows[:, 0], exact[np.arange(5), ids[1:]], rtol=1e-6, atol=1e-6)
    assert rows[:, 1].tolist() == output[:5].argmax(axis=1).tolist()
    np.testing.assert_array_equal(task.compared(output, ids), output[5:6])


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("max_length", [8, 17, 64])
def test_passages_lose_no_text(tokenizer: Tokenizer, tmp_path: Path, max_length: int, begins: bool) -> None:
    """Also beside a token that begins every text, and where a character is several tokens; each is read whole."""
    whole = Tokenizer.from_str(tokenizer.to_str())
    if begins:
        whole.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    whole.save(str(tmp_path / "tokenizer.json"))
    preprocessor = CausalPreprocessor(tmp_path / "tokenizer.json", max_length, CacheShape(1, 1, 8), 0)
    for text in TEXTS:
        passages = preprocessor.passages(text)
        assert "".join(passages) == text
        lengths = [len(whole.encode(passage).ids) for passage in passages]
        assert all(0 < length <= max_length for length in lengths)
        assert all(one + other > max_length / 2 for one, other in itertools.pairwise(lengths)), "crumbs"


def test_a_student_of_other_tokens_is_refused_before_the_teacher_is_asked(
    task: TextGeneration, folder: Path, tmp_path: Path
) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = definition["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "tokenizer.json").write_text(json.dumps(definition))
    student = task.recipe.student.model_copy(update={"layers": None, "folder": other})
    at = Materials(task.recipe.model_copy(update={"student": student}), SILENT)
    with pytest.raises(StudentError, match="its tokens are not its teacher's"):
        stages.teacher(at)


def test_a_student_of_other_tokens_is_refused(task: TextGeneration) -> None:
    assert [part.tolist() for part in task.shared(np.array([3, 4, 5]), np.array([3, 4, 5]))] == [[0, 1], [0, 1]]
    with pytest.raises(StudentError, match="cuts text otherwise than its teacher's"):
        task.shared(np.array([3, 4, 5]), np.array([3, 4, 6]))


@pytest.mark.parametrize("kept", [1, 8, 64])
def test_what_is_kept_of_log_probabilities(kept: int) -> None:
    """Of K classes whose log-probabilities span R: within R/255 each, and the mass together exact to float16.

    A code is right within half a step, R/510; so is the constant that brings the mass back.
    """
    logits = torch.randn(200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    exact = logits.log_softmax(-1).topk(kept, dim=-1).values
    codes, scale = packed(exact.float())
    assert (codes.dtype, scale.dtype) == (torch.uint8, torch.float16)
    found = unpacked(codes, scale).double()
    mass = exact.logsumexp(-1)
    span = exact[:, 0] - exact[:, -1]
    bound = span / 255 * (1 + 2**-10) + mass.abs() * 2**-11 + 1e-6
    assert bool(((found - exact).abs() <= bound[:, None]).all())
    assert bool(((found.logsumexp(-1) - mass).abs() <= mass.abs() * 2**-11 + 2e-6).all())
    assert bool((found.diff(dim=-1) <= 0).all()), "in the same order"


def test_faint_classes_and_equal_ones() -> None:
    """What lies more than 25 nats below the first counts as e^-25 of it; where all are equal they stay so."""
    far = torch.tensor([[0.0, -30.0, -90.0]]).log_softmax(-1)
    found = unpacked(*packed(far))
    torch.testing.assert_close(found - found[:, :1], torch.tensor([[0.0, -25.0, -25.0]]), atol=0.06, rtol=0)
    same = torch.full((1, 4), 0.2).log()
    torch.testing.assert_close(unpacked(*packed(same)), same, atol=1e-3, rtol=0)


def test_the_sampled_signal_is_right_on_average() -> None:
    """Over many positions of one distribution, the draws' shares and the loss's gradient are those of the whole one."""
    settings = NextTokenDistillation(teacher_signal="sampled", kept_tokens=4, temperature=2.0)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(CLASSES, generator=generator) * 2
    many = 20_000
    teacher = as_teacher(said(logits.expand(many, -1), settings, torch.Generator().manual_seed(1)))
    assert isinstance(teacher, SparseTeacher)
    p = (logits.double() / 2).softmax(-1)
    shares = torch.bincount(teacher.indices.flatten(), minlength=CLASSES) / teacher.indices.numel()
    deviation = (p * (1 - p) / teacher.indices.numel()).sqrt()
    assert bool(((shares - p).abs() < 5 * deviation).all())

    student = torch.randn(CLASSES, generator=generator).requires_grad_()
    (sampled,) = torch.autograd.grad(
        distillation_loss(student.expand(many, -1), teacher, temperature=settings.temperature), student
    )
    # Of KL at temperature T, times T^2: T (softmax(student / T) - p), worked out by hand.
    expected = settings.temperature * ((student.detach().double() / 2).softmax(-1) - p)
    assert bool(((sampled - expected).abs() < settings.temperature * 5 * deviation + 1e-6).all())
    alone = as_teacher(said(logits[None], settings, torch.Generator().manual_seed(1)))
    (single,) = torch.autograd.grad(distillation_loss(student[None], alone, temperature=settings.temperature), student)
    assert float((single - expected).abs().max()) > 0.05, "one position alone is far from it"


QUALITY = Quality("student", "1/perplexity", Interval(0.4, 0.3, 0.5), Interval(0.99, 0.98, 1.0), 0.97, 100)


def write_decoder_bundle(task: TextGeneration, model: LlamaForCausalLM, source: Path, target: Path) -> Path:
    preprocessor = task.preprocessor(source)
    inputs, outputs = task.graph(model.config.vocab_size, preprocessor)
    feeds = task.shape_feeds(preprocessor)
    exported = export_onnx(
        task.deployable(model), "student", inputs, outputs, feeds, 20, target.with_name("student.onnx")
    )
    target.mkdir()
    contents = Contents(
        task="text-generation",
        teacher=None,
        answer=task.answer_settings(source),
        golden_inputs=["the cat"],
        tokenizer=source / "tokenizer.json",
        lineage=Provenance("tiny", "f" * 64, "MIT", "license-permits"),
        data={},
        recipe={},
        quality=QUALITY,
    )
    write_bundle(exported, contents, preprocessor, target)
    return target


def test_a_bundle_generates_what_transformers_does(
    task: TextGeneration, folder: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """Greedily, token by token with the cache that the graph takes and gives."""
    model = LlamaForCausalLM.from_pretrained(folder)
    model.train(False)
    predictor = compressor.load(write_decoder_bundle(task, model, folder, tmp_path / "bundle"))
    told = set()
    for prompt in ("the cat", "a dog runs through", "x", "naïve \U0001f600"):
        ids = torch.tensor([tokenizer.encode(prompt).ids])
        with torch.inference_mode():
            said_by_torch = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0
            )
        expected = tokenizer.decode(said_by_torch[0, ids.shape[1] :].tolist())
        assert predictor.generate(prompt, max_tokens=24) == expected
        told.add(expected)
    assert len(told) == 4, "something else after each"
    drawn = {predictor.generate("the cat", max_tokens=8, temperature=1.5, seed=seed) for seed in range(3)}
    assert len(drawn) > 1
    again = [predictor.generate("the cat", max_tokens=8, temperature=1.5, seed=1) for _ in range(2)]
    assert again[0] == again[1]


class Bigrams(nn.Module):
    """The next token's logits by the one before: input_ids int64 [batch, sequence] -> [batch, sequence, CLASSES]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.table = nn.Embedding(CLASSES, CLASSES)

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        return (self.table(input_ids),)


class Tokens:
    """What the loop asks of a task and of a preprocessor, of texts of different lengths."""

    views = 1
    loss = None
    per_token = True

    def view(self, example: NDArray[Any], _index: int) -> NDArray[Any]:
        return example

    def collate(self, examples: list[NDArray[Any]]) -> Feed:
        ids = np.zeros((len(examples), max(map(len, examples))), np.int64)
        for row, example in enumerate(examples):
            ids[row, : len(example)] = example
        return {"input_ids": ids}


def token_data(folder: Path, settings: NextTokenDistillation) -> TrainingData:
    """Texts of 2 to 15 tokens, and what a teacher with a table of its own says at each of them."""
    draws = np.random.default_rng(0)
    examples = [draws.integers(0, CLASSES, draws.integers(2, 16)) for _ in range(ROWS + HELD_OUT)]
    table = torch.from_numpy(draws.standard_normal((CLASSES, CLASSES)).astype(np.float32)) * 3

    def logits(batch: list[Any]) -> Tensor:
        return table[torch.from_numpy(Tokens().collate(batch)["input_ids"])]

    positions = [np.arange(len(example) - 1) for example in examples]
    ask = answers_at(logits, lambda example: np.arange(len(example) - 1), settings, None)
    recorded = record_signals(ask, Inputs(examples, 1, lambda example, _: example), folder, SILENT, 8)
    labels = [example[1:] for example in examples]
    return TrainingData(examples, SignalReader(recorded), labels, HELD_OUT, positions)


Launch = Callable[[int, dict[str, Any]], Any]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """What `training_process` found in so many processes, started by torchrun."""

    def run(processes: int, settings: dict[str, Any]) -> Any:
        folder = tmp_path / str(processes)
        folder.mkdir()
        together = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        script = Path(__file__).with_name("training_process.py")
        command = [sys.executable, *(together if processes > 1 else []), str(script), str(folder), json.dumps(settings)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
        return json.loads((folder / "found.json").read_text())

    return run


@pytest.mark.parametrize("signal", ["top-k", "sampled"])
def test_two_processes_learn_what_one_learns(launch: Launch, signal: str) -> None:
    """Each has half of a batch's texts, and so another number of its tokens; the mean is over the tokens of all."""
    settings = {"epochs": 4, "batch_size": 4, "learning_rate": 0.05, "kept_tokens": 4, "teacher_signal": signal}
    one, two = (launch(processes, settings) for processes in (1, 2))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["scores"] == pytest.approx(one["scores"], rel=1e-3, abs=1e-6)
    np.testing.assert_allclose(two["weight"], one["weight"], rtol=1e-3, atol=1e-5)
    assert one["losses"][-1] < one["losses"][0]
