"""What optimum's classes make of the golden texts of bundles: python optimum_answers.py OUT BUNDLE...

Into OUT, for each task: an .npz as golden.npz is, and what is written after the first text of text generation.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from load_with_optimum import load
from torch import Tensor

out, *bundles = map(Path, sys.argv[1:])
for bundle in bundles:
    task, model, tokenizer = load(bundle)
    texts = json.loads((bundle / "golden_texts.json").read_text("utf-8"))
    found = {}
    for case, text in enumerate(texts):
        encoded = tokenizer(text, truncation=True, is_split_into_words=isinstance(text, list), return_tensors="pt")
        answered = {name: value for name, value in model(**encoded).items() if isinstance(value, Tensor)}
        for way, tensors in (("in", encoded), ("out", answered)):
            found |= {f"{case}.{way}.{name}": tensor.detach().numpy() for name, tensor in tensors.items()}
    np.savez(out / f"{task}.npz", **found)
    if task == "text-generation":
        encoded = tokenizer(texts[0], return_tensors="pt")
        ids = model.generate(**encoded, max_new_tokens=8, do_sample=False)[0]
        (out / "written.txt").write_text(tokenizer.decode(ids, skip_special_tokens=True))
