"""A teacher to distil from: MiniLM-L6, fine-tuned on a CPU to tell which of 25 topics a WordNet definition is of.

WordNet files every sense of a noun under one of 25 topics (animal, artifact, food, state, ...); the text is the sense's
definition, without its examples and without the word that it defines.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from compressor.progress import Progress

# WordNet's files 04 to 28 of nouns, in its order (lexnames(5WN)); 03 holds the few beginners of all hierarchies.
FIRST_FILE = 4
TOPICS = (
    *("act", "animal", "artifact", "attribute", "body", "cognition", "communication", "event", "feeling", "food"),
    *("group", "location", "motive", "object", "person", "phenomenon", "plant", "possession", "process", "quantity"),
    *("relation", "shape", "state", "substance", "time"),
)
BATCH = 32
PEAK_RATE = 2e-4
WARMUP = 0.1
WEIGHT_DECAY = 0.01


def definitions(nouns: str) -> list[tuple[str, str]]:
    """Distinct (definition, topic) pairs of WordNet's `data.noun`, in its order (wndb(5WN))."""
    found: dict[str, str] = {}
    for line in nouns.splitlines():
        if line.startswith(" "):  # the licence
            continue
        fields, _, gloss = line.partition(" | ")
        topic = int(fields.split(" ", 2)[1]) - FIRST_FILE
        text = gloss.partition('; "')[0].strip()
        if topic >= 0 and text:
            found.setdefault(text, TOPICS[topic])
    return list(found.items())


def train_teacher(
    base: Path, rows: list[dict[str, str]], folder: Path, seed: int = 0, epochs: int = 1, max_length: int = 64
) -> float:
    """Fine-tunes the encoder in folder `base` on `rows` (text, topic), writes a classifier in Hugging Face layout to
    `folder`, which must not exist, and returns the seconds used.
    """
    started = time.monotonic()
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    numbers = dict(enumerate(TOPICS))
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(TOPICS), id2label=numbers, label2id={name: number for number, name in numbers.items()}
    )
    targets = torch.tensor([TOPICS.index(row["topic"]) for row in rows])
    texts = [row["text"] for row in rows]
    draw = np.random.default_rng(seed)
    total = epochs * (len(rows) // BATCH)
    model.base_model.embeddings.requires_grad_(False)  # half of the weights, and a third of the time
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learnt, PEAK_RATE, weight_decay=WEIGHT_DECAY)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, total, WARMUP, anneal_strategy="linear")
    model.train()
    with Progress().bar("fine-tuning the teacher", total * BATCH, "texts") as bar:
        for _ in range(epochs):
            for chosen in _batches([len(text) for text in texts], draw):
                batch = tokenizer(
                    [texts[i] for i in chosen],
                    padding=True,
                    truncation=True,
                    max_length=max_length,
                    return_tensors="pt",
                    return_token_type_ids=False,
                )
                loss = F.cross_entropy(model(**batch).logits, targets[chosen])
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
                rate.step()
                bar.advance(BATCH, f"loss {loss.item():.3f}")
    unfinished = folder.with_suffix(".new")
    model.eval().save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return time.monotonic() - started


def _batches(lengths: list[int], draw: np.random.Generator, pool: int = 50) -> list[list[int]]:
    """An epoch in random order, texts of similar length together: little padding."""
    order = draw.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), pool * BATCH):
        near = sorted(order[start : start + pool * BATCH].tolist(), key=lengths.__getitem__)
        batches += [near[i : i + BATCH] for i in range(0, len(near) - BATCH + 1, BATCH)]
    draw.shuffle(batches)
    return batches
