"""Opens a bundle of text with optimum's ORTModel classes and transformers' tokenizer, without this project.

pip install optimum-onnx onnxruntime
python examples/readers/load_with_optimum.py BUNDLE TEXT...
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from optimum.onnxruntime import (
    ORTModelForCausalLM,
    ORTModelForCustomTasks,
    ORTModelForSequenceClassification,
    ORTModelForTokenClassification,
)
from transformers import AutoTokenizer

# Embeddings are pooled and of unit length in the graph: ORTModelForFeatureExtraction would look for hidden states.
CLASSES = {
    "sentence-embedding": ORTModelForCustomTasks,
    "text-classification": ORTModelForSequenceClassification,
    "token-classification": ORTModelForTokenClassification,
    "text-generation": ORTModelForCausalLM,
}


def load(bundle: Path) -> tuple[str, Any, Any]:
    """Its task, model and tokenizer."""
    task = json.loads((bundle / "manifest.json").read_text("utf-8"))["task"]
    model = CLASSES[task].from_pretrained(bundle, local_files_only=True)
    return task, model, AutoTokenizer.from_pretrained(bundle, local_files_only=True)


def main(bundle: Path, texts: list[str]) -> None:
    task, model, tokenizer = load(bundle)
    if task == "sentence-embedding":
        vectors = [model(**tokenizer(t, truncation=True, return_tensors="pt")).sentence_embedding[0] for t in texts]
        for text, vector in zip(texts, vectors, strict=True):
            print(f"{torch.dot(vectors[0], vector):.3f}  {text}")
        return
    for text in texts:
        words = text.split() if task == "token-classification" else None
        encoded = tokenizer(words or text, is_split_into_words=bool(words), truncation=True, return_tensors="pt")
        if task == "text-generation":
            print(tokenizer.decode(model.generate(**encoded, max_new_tokens=16, do_sample=False)[0]))
            continue
        best = model(**encoded).logits[0].argmax(-1)
        if words is None:
            print(f"{model.config.id2label[int(best)]}  {text}")
            continue
        # The first token of a word answers for it.
        answers = dict(zip(reversed(encoded.word_ids()), reversed(best.tolist()), strict=True))
        print(" ".join(f"{word}/{model.config.id2label[answers[i]]}" for i, word in enumerate(words) if i in answers))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
