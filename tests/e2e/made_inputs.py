"""Tiny seeded teachers and data for whole runs, one of each task, made anew in a temporary folder."""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from ruamel.yaml import YAML
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

IMAGE_CLASSES = ("rows", "columns", "blob")
LICENSE_TEXT = "Licensed to whoever reads this.\n"
TEXT_CLASSES = ("sport", "food")
_NAMES = {
    "PER": (("anna", "peter", "maria", "ivan"), ("smith", "jones", "weber", "rossi")),
    "LOC": (("north", "south", "new", "old"), ("york", "haven", "port", "dale")),
}
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
_KEYWORDS = {"sport": ("goal", "match", "team", "referee"), "food": ("soup", "bread", "cheese", "kitchen")}


@dataclass(frozen=True)
class Inputs:
    """A folder with a teacher and data, and the recipe values that name them; paths are relative to the folder."""

    folder: Path
    recipe: dict[str, Any] = field(default_factory=dict)

    def write_recipe(self, out: Path, **changes: Any) -> Path:
        """A recipe.yaml beside the run folder; `changes` are dotted keys with `__` for the dot."""
        values = json.loads(json.dumps(self.recipe))
        for holder, key in (("teacher", "path"), ("teacher", "weights"), ("data", "train"), ("data", "eval")):
            if key in values[holder]:
                values[holder][key] = str(self.folder / values[holder][key])
        if "module" in values["teacher"]:
            values["teacher"]["module"] = str(self.folder / values["teacher"]["module"])
        values["out"] = str(out)
        for name, value in changes.items():
            *groups, key = name.split("__")
            holder = values
            for group in groups:
                holder = holder.setdefault(group, {})
            holder[key] = value
        path = out.with_name(f"{out.name}.yaml")
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(values, file)
        return path


def sentence_inputs(folder: Path) -> Inputs:
    """A BERT with random weights: mean pooling of them already tells pairs that share words from pairs that do not."""
    words, generator = made_words(), np.random.default_rng(1)
    sentences = [" ".join(generator.choice(words, generator.integers(5, 14))) for _ in range(420)]
    pairs = []
    for number in range(160):
        first = list(generator.choice(words, 8, replace=False))
        same = number % 2
        second = (
            [*generator.permutation(first[:6]), *generator.choice(words, 2)] if same else generator.choice(words, 8)
        )
        pairs.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "label": same})
    write_rows(folder / "train.jsonl", [{"text": sentence} for sentence in sentences])
    write_rows(folder / "eval.jsonl", pairs)
    vocabulary = _write_tokenizer(folder / "teacher", sentences)
    torch.manual_seed(1)
    _write_model(BertModel(_config(vocabulary)), folder / "teacher")
    (folder / "teacher" / "LICENSE").write_text(LICENSE_TEXT)
    return Inputs(
        folder,
        {
            "task": "sentence-embedding",
            "teacher": {"path": "teacher", "license": "Apache-2.0", "permission": "license-permits"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "student": {"layers": 2, "ffn": 32, "vocab": 300, "max_length": 24},
            "distill": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3},
            **_common(),
        },
    )


def text_inputs(folder: Path) -> Inputs:
    """A BERT classifier that has learnt which keywords belong to which class."""
    texts, labels = _keyword_texts(480, 2)
    held_out, truth = _keyword_texts(120, 3)
    rows = [{"text": text, "label": TEXT_CLASSES[label]} for text, label in zip(texts, labels, strict=True)]
    judged = [{"text": text, "label": TEXT_CLASSES[label]} for text, label in zip(held_out, truth, strict=True)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "eval.jsonl", judged)
    vocabulary = _write_tokenizer(folder / "teacher", texts)
    torch.manual_seed(2)
    config = _config(vocabulary, id2label=dict(enumerate(TEXT_CLASSES)))
    model = BertForSequenceClassification(config)
    tokenizer = Tokenizer.from_file(str(folder / "teacher" / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    encoded = tokenizer.encode_batch(texts)
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        logits = model(input_ids=ids[rows], attention_mask=mask[rows]).logits
        return nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]))

    _fit(model, loss, len(texts), epochs=6, rate=2e-3)
    _write_model(model, folder / "teacher")
    return Inputs(
        folder,
        {
            "task": "text-classification",
            "teacher": {"path": "teacher", "permission": "own-model"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "student": {"layers": 2, "ffn": 32, "vocab": 300, "max_length": 24},
            "distill": {"epochs": 2, "batch_size": 16, "learning_rate": 1e-3, "control": True},
            **_common(),
        },
    )


def tagging_inputs(folder: Path) -> Inputs:
    """A BERT that has learnt to find the names of people and places, tagged in IOB2."""
    sentences = tagged_sentences(480, 8)
    write_rows(folder / "train.jsonl", sentences)
    write_rows(folder / "eval.jsonl", tagged_sentences(120, 9))
    vocabulary = _write_tokenizer(folder / "teacher", [" ".join(row["tokens"]) for row in sentences])
    torch.manual_seed(5)
    model = BertForTokenClassification(_config(vocabulary, id2label=dict(enumerate(TAGS))))
    tokenizer = Tokenizer.from_file(str(folder / "teacher" / "tokenizer.json"))
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id("[PAD]"), pad_token="[PAD]")
    encoded = tokenizer.encode_batch([row["tokens"] for row in sentences], is_pretokenized=True)
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    labels = torch.full_like(ids, -100)
    for row, (one, sentence) in enumerate(zip(encoded, sentences, strict=True)):
        for word, tag in enumerate(sentence["tags"]):
            labels[row, one.word_ids.index(word)] = TAGS.index(tag)

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        logits = model(input_ids=ids[rows], attention_mask=mask[rows]).logits
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels[rows].flatten())

    _fit(model, loss, len(sentences), epochs=6, rate=2e-3)
    _write_model(model, folder / "teacher")
    return Inputs(
        folder,
        {
            "task": "token-classification",
            "teacher": {"path": "teacher", "permission": "own-model"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "student": {"layers": 2, "ffn": 32, "vocab": 300, "max_length": 32},
            "distill": {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "control": True},
            **_common(),
        },
    )


def generation_inputs(folder: Path) -> Inputs:
    """A Llama that has learnt which word follows which: each has three followers, of different frequency."""
    texts = _chains(400, 6)
    write_rows(folder / "train.jsonl", [{"text": text} for text in texts])
    write_rows(folder / "eval.jsonl", [{"text": text} for text in _chains(60, 7)])
    (folder / "teacher").mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=["<|end|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "teacher" / "tokenizer.json"))
    torch.manual_seed(4)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=96,
            max_position_embeddings=64,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    ids = torch.tensor([e.ids[:24] for e in tokenizer.encode_batch(texts)])

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        logits = model(input_ids=ids[rows]).logits[:, :-1]
        return nn.functional.cross_entropy(logits.flatten(0, 1), ids[rows][:, 1:].flatten())

    _fit(model, loss, 384, epochs=10, rate=3e-3)
    _write_model(model, folder / "teacher")
    return Inputs(
        folder,
        {
            "task": "text-generation",
            "teacher": {"path": "teacher", "permission": "own-model"},
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
            "student": {"layers": 2, "ffn": 48, "max_length": 24},
            "distill": {"epochs": 2, "batch_size": 16, "learning_rate": 2e-3, "kept_tokens": 8, "control": True},
            **{name: settings for name, settings in _common().items() if name != "quantize"},
        },
    )


def image_inputs(folder: Path) -> Inputs:
    """A small CNN from a file of the user's own, trained on three kinds of pattern."""
    (folder / "networks.py").write_text(
        textwrap.dedent(
            """
            from torch import nn

            def teacher():
                return nn.Sequential(
                    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
                    nn.Conv2d(16, 96, 3, padding=1), nn.ReLU(),
                    nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(384, 3),
                )
            """
        )
    )
    images, labels = _patterns(480, 4)
    np.savez(folder / "train.npz", images=images, labels=labels)
    held_out, truth = _patterns(150, 5)
    np.savez(folder / "eval.npz", images=held_out, labels=truth)
    scope: dict[str, Any] = {}
    exec((folder / "networks.py").read_text(), scope)
    torch.manual_seed(3)
    model: nn.Module = scope["teacher"]()
    pixels = torch.from_numpy(images).float().unsqueeze(1) / 127.5 - 1

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(pixels[rows]), torch.from_numpy(labels[rows]))

    _fit(model, loss, len(images), epochs=8, rate=3e-3)
    safetensors.torch.save_file(model.state_dict(), folder / "teacher.safetensors")
    return Inputs(
        folder,
        {
            "task": "image-classification",
            "teacher": {
                "module": "networks.py:teacher",
                "weights": "teacher.safetensors",
                "permission": "own-model",
            },
            "data": {"train": "train.npz", "eval": "eval.npz", "size": [12, 12], "classes": list(IMAGE_CLASSES)},
            "student": {"widths": [24, 48, 96], "strides": [2, 2]},
            "distill": {"epochs": 2, "batch_size": 16, "learning_rate": 5e-3},
            **_common(),
            # A graph of convolutions has nothing for dynamic int8 but its head.
            "quantize": {"precisions": ["static-int8"], "calibration_samples": 16},
        },
    )


def vision_inputs(folder: Path) -> Inputs:
    """A ViT that has learnt the same patterns in colour, in a folder that says how it normalises."""
    tint, mean, std = np.array([1.0, 0.7, 0.4]), (0.5, 0.35, 0.2), (0.4, 0.3, 0.2)
    for name, count, seed in (("train", 480, 8), ("eval", 150, 9)):
        grey, labels = _patterns(count, seed)
        np.savez(folder / f"{name}.npz", images=(grey[..., None] * tint).astype(np.uint8), labels=labels)
    torch.manual_seed(5)
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=12,
            patch_size=3,
            id2label=dict(enumerate(IMAGE_CLASSES)),
        )
    )
    with np.load(folder / "train.npz") as arrays:
        images, labels = arrays["images"], arrays["labels"]
    pixels = torch.from_numpy(((images / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32))

    def loss(rows: NDArray[np.int64]) -> torch.Tensor:
        logits = model(pixel_values=pixels[rows]).logits
        return nn.functional.cross_entropy(logits, torch.from_numpy(labels[rows]))

    _fit(model, loss, len(images), epochs=12, rate=2e-3)
    _write_model(model, folder / "teacher")
    processor = {"image_mean": mean, "image_std": std, "size": {"height": 12, "width": 12}}
    (folder / "teacher" / "preprocessor_config.json").write_text(json.dumps(processor))
    return Inputs(
        folder,
        {
            "task": "image-classification",
            "teacher": {"path": "teacher", "permission": "own-model"},
            "data": {
                "train": "train.npz",
                "eval": "eval.npz",
                "size": [12, 12],
                "classes": list(IMAGE_CLASSES),
                "mean": list(mean),
                "std": list(std),
            },
            "student": {"layers": 2, "hidden": 24, "heads": 3, "ffn": 32},
            "distill": {"epochs": 3, "batch_size": 16, "learning_rate": 2e-3},
            **_common(),
        },
    )


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _common() -> dict[str, Any]:
    # `value`, because so few examples leave wide intervals; 459 samples are the fewest that a p99 may rest on.
    return {
        "gate": {"max_drop": 0.6, "judge": "value"},
        "benchmark": {"min_samples": 459, "budget_s": 5.0},
        "quantize": {"calibration_samples": 16},
    }


def made_words() -> list[str]:
    """Words of two or three syllables, always the same."""
    generator = np.random.default_rng(0)
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    return sorted({"".join(generator.choice(syllables, generator.integers(2, 4))) for _ in range(260)})


def _keyword_texts(count: int, seed: int) -> tuple[list[str], NDArray[np.int64]]:
    generator, words = np.random.default_rng(seed), made_words()
    labels = generator.integers(0, len(TEXT_CLASSES), count)
    texts = []
    for label in labels:
        chosen = [*generator.choice(words, 6), *generator.choice(_KEYWORDS[TEXT_CLASSES[label]], 2)]
        texts.append(" ".join(generator.permutation(chosen)))
    return texts, labels


def _chains(count: int, seed: int) -> list[str]:
    """Texts of words, each word one of the three that may follow the one before."""
    generator, words = np.random.default_rng(seed), made_words()[:60]
    followers = np.random.default_rng(0).integers(0, len(words), (len(words), 3))
    texts = []
    for _ in range(count):
        word = int(generator.integers(len(words)))
        chain = [word]
        for choice in generator.choice(3, 29, p=[0.7, 0.2, 0.1]):
            word = int(followers[word, choice])
            chain.append(word)
        texts.append(" ".join(words[i] for i in chain))
    return texts


def tagged_sentences(count: int, seed: int) -> list[dict[str, list[str]]]:
    """Sentences of words among which stand names, of one word or two; each word tells what it is."""
    generator, words = np.random.default_rng(seed), made_words()
    sentences = []
    for _ in range(count):
        tokens, tags = [str(word) for word in generator.choice(words, 2)], ["O", "O"]
        for kind in generator.permutation(list(_NAMES))[: generator.integers(1, 3)]:
            length = int(generator.integers(1, 3))
            tokens += [*(str(generator.choice(part)) for part in _NAMES[kind][:length]), str(generator.choice(words))]
            tags += [f"B-{kind}", f"I-{kind}", "O"] if length == 2 else [f"B-{kind}", "O"]
        sentences.append({"tokens": tokens, "tags": tags})
    return sentences


def _patterns(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [count, 12, 12]: stripes along the rows, along the columns, or a blob; noise on top."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, len(IMAGE_CLASSES), count)
    row, column = np.indices((12, 12))
    images = np.empty((count, 12, 12))
    for i, label in enumerate(labels):
        phase, centre = generator.integers(0, 4), generator.uniform(4, 8, 2)
        stripes = (((row if label == 0 else column) + phase) // 2) % 2
        blob = np.hypot(row - centre[0], column - centre[1]) < 3
        images[i] = 180 * (blob if label == 2 else stripes) + generator.normal(40, 25, (12, 12))
    return images.clip(0, 255).astype(np.uint8), labels


def _write_tokenizer(folder: Path, texts: list[str]) -> int:
    """A WordPiece tokenizer.json as BERT has it; returns its number of tokens."""
    folder.mkdir(parents=True)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return int(tokenizer.get_vocab_size())


def _config(vocabulary: int, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **more,
    )


def _write_model(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


def _fit(model: nn.Module, loss: Any, rows: int, *, epochs: int, rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    generator = np.random.default_rng(0)
    for _ in range(epochs):
        for batch in generator.permutation(rows).reshape(-1, 32):
            optimizer.zero_grad()
            loss(batch).backward()
            optimizer.step()
    model.eval()
