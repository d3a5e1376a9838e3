"""Uses a sentence-embedding bundle with onnxruntime and tokenizers alone, without this project.

python examples/load_with_onnxruntime.py runs/sentence-embedding/bundle
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

bundle = Path(sys.argv[1])
tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
session = ort.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])


def embed(text: str) -> NDArray[np.float32]:
    """A unit vector."""
    encoding = tokenizer.encode(text)
    feed = {"input_ids": [encoding.ids], "attention_mask": [encoding.attention_mask]}
    outputs = session.run(["sentence_embedding"], {name: np.array(rows, np.int64) for name, rows in feed.items()})
    vector: NDArray[np.float32] = outputs[0][0]
    return vector


same = embed("A man is walking his dog.") @ embed("A person walks a dog outside.")
other = embed("A man is walking his dog.") @ embed("The stock market fell on Monday.")
print(f"same meaning {same:.3f}, another {other:.3f}")
