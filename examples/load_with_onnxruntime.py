"""Uses a sentence-embedding bundle with onnxruntime and tokenizers alone, without this project.

    python examples/load_with_onnxruntime.py runs/sentence-embedding/bundle
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

bundle = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
session = ort.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])


def embed(text: str) -> np.ndarray:
    ids = np.array([tokenizer.encode(text).ids], dtype=np.int64)
    return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


same = embed("A man is walking his dog.") @ embed("A person walks a dog outside.")
other = embed("A man is walking his dog.") @ embed("The stock market fell on Monday.")
print(f"same meaning {same:.3f}, another {other:.3f}")
