"""A bundle as a function: raw text or images in, embeddings, classes, tags or text out. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from compressor.bundle.archive import as_folder
from compressor.bundle.generation import generate
from compressor.bundle.manifest import Manifest, OpenedBundle, check_files, check_one_file, open_bundle
from compressor.errors import BundleError, DataError
from compressor.intake.trial import admit_onnx
from compressor.onnxrt import open_session, run_one
from compressor.preprocess import (
    ArrayPreprocessor,
    CacheShape,
    CausalPreprocessor,
    ImagePreprocessor,
    Preprocessor,
    TextPreprocessor,
    WordPreprocessor,
    word_positions,
)
from compressor.recipe_data import Resize


@dataclass(frozen=True)
class Classification:
    """The most probable class, and the probability of each."""

    label: str
    probability: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class TaggedWord:
    """A word with its most probable class, and the probability of each.

    Where the model reads no token of the word, because the text is longer than `answer.max_length` of the manifest or
    the tokenizer leaves nothing of it, there is no label (None), and no probabilities.
    """

    word: str
    label: str | None
    probability: float
    probabilities: dict[str, float]


class Predictor:
    """What `compressor.load` returns. Thread-safe; inputs are answered one at a time, as a device would."""

    def __init__(self, bundle: OpenedBundle, threads: int) -> None:
        self.manifest: Manifest = bundle.manifest
        self.preprocessor: Preprocessor = bundle_preprocessor(bundle)
        self._session = open_session(bundle.folder / bundle.manifest.model, threads)

    def outputs(self, inputs: Sequence[Any]) -> list[list[NDArray[Any]]]:
        """All graph outputs, without the batch dimension, for each raw input."""
        examples = self.preprocessor.encode(inputs)
        return [
            [array[0] for array in run_one(self._session, self.preprocessor.collate([example]))] for example in examples
        ]

    def embed(self, inputs: str | Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors: float32 [width] for one text, [texts, width] for several. Raises BundleError."""
        self._require("sentence-embedding")
        if isinstance(inputs, str):
            single: NDArray[np.float32] = self.outputs([inputs])[0][0]
            return single
        width = self.manifest.outputs[0].shape[-1]
        return np.stack([row[0] for row in self.outputs(inputs)]) if inputs else np.empty((0, int(width)), np.float32)

    def classify(self, inputs: Sequence[Any]) -> list[Classification]:
        """A class for each text, image array (uint8, as in the manifest) or image file. Raises BundleError."""
        self._require("text-classification", "image-classification")
        if isinstance(inputs, str | Path):
            raise DataError("classify takes a list of inputs; for one, call the predictor itself or pass [input]")
        classes: list[str] = self.manifest.answer["classes"]
        loaded = [self._decoded(item) if isinstance(item, Path) else item for item in inputs]
        results = []
        for _, probabilities in self.outputs(loaded):
            best = int(probabilities.argmax())
            named = {name: float(p) for name, p in zip(classes, probabilities, strict=True)}
            results.append(Classification(classes[best], float(probabilities[best]), named))
        return results

    def tag(self, words: str | Sequence[str]) -> list[TaggedWord]:
        """A class for each word of one text, given as a list of words or split at white space. Raises BundleError."""
        self._require("token-classification")
        classes: list[str] = self.manifest.answer["classes"]
        text = words.split() if isinstance(words, str) else list(words)
        example = self.preprocessor.encode([text])[0]
        rows = run_one(self._session, self.preprocessor.collate([example]))[1][0]
        found = [TaggedWord(word, None, 0.0, {}) for word in text]
        for place, word in zip(*word_positions(example), strict=True):
            best, probabilities = int(rows[place].argmax()), rows[place].tolist()
            named = dict(zip(classes, probabilities, strict=True))
            found[word] = TaggedWord(text[word], classes[best], probabilities[best], named)
        return found

    def generate(self, prompt: str, *, max_tokens: int = 32, temperature: float = 0.0, seed: int = 0) -> str:
        """What the model says after `prompt`: at most `max_tokens` tokens, up to one that ends a text.

        The most probable token each time, or one drawn at a `temperature` above 0. Raises BundleError.
        """
        self._require("text-generation")
        assert isinstance(self.preprocessor, CausalPreprocessor)
        return generate(self._session, self.preprocessor, prompt, self._stop_ids(), max_tokens, temperature, seed)

    def _stop_ids(self) -> frozenset[int]:
        return frozenset(int(i) for i in self.manifest.answer.get("stop_ids", []))

    def __call__(self, inputs: Any) -> Any:
        """`embed`, `classify`, `tag` or `generate`, by the bundle's task; one input gives one answer, a list gives a
        list. To `tag`, a list holds texts, each of them a string or a list of words.

        Of a task of the user's own: float32 [inputs, width] for arrays [inputs, ...].
        """
        if self.manifest.task == "sentence-embedding":
            return self.embed(inputs)
        if self.manifest.task == "own":
            return np.stack([row[0] for row in self.outputs(inputs)])
        if self.manifest.task == "text-generation":
            return self.generate(inputs) if isinstance(inputs, str) else [self.generate(text) for text in inputs]
        if self.manifest.task == "token-classification":
            return self.tag(inputs) if isinstance(inputs, str) else [self.tag(text) for text in inputs]
        if isinstance(inputs, list | tuple):
            return self.classify(inputs)
        return self.classify([inputs])[0]

    def _decoded(self, path: Path) -> NDArray[np.uint8]:
        if not isinstance(self.preprocessor, ImagePreprocessor):
            raise DataError(f"{path}: this bundle's task is {self.manifest.task}, which reads no image files")
        try:
            return self.preprocessor.decode(path)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

    def _require(self, *tasks: str) -> None:
        if self.manifest.task not in tasks:
            raise BundleError(f"this bundle's task is {self.manifest.task}; this call needs {' or '.join(tasks)}")


def load(bundle: str | Path, *, threads: int = 1, trusted: bool = False) -> Predictor:
    """A predictor from a bundle, a folder or a `.tar.zst` file, its hashes checked first. Raises BundleError.

    Its model is tried out in a child process first, unless it is `trusted`: a bundle of one's own, or one whose
    signature was verified, as of those that a device has installed.
    """
    with as_folder(Path(bundle)) as folder:
        opened = open_bundle(folder)
        check_files(opened)
        if not trusted:
            model = folder / opened.manifest.model
            check_one_file(model, admit_onnx(model, BundleError))
        return Predictor(opened, threads)


def bundle_preprocessor(bundle: OpenedBundle) -> Preprocessor:
    """The preprocessing that a bundle describes."""
    answer = bundle.manifest.answer
    try:
        if bundle.manifest.task == "own":
            array = answer["array"]
            return ArrayPreprocessor(str(array["name"]), str(array["dtype"]), tuple(int(n) for n in array["shape"]))
        if bundle.manifest.task == "image-classification":
            image = answer["image"]
            size = (int(image["height"]), int(image["width"]), int(image["channels"]))
            # A bundle that does not say was made from arrays of the right size.
            return ImagePreprocessor(*size, resize=TypeAdapter(Resize).validate_python(image.get("resize", "refuse")))
        tokenizer, max_length = bundle.folder / "tokenizer.json", int(answer["max_length"])
        if bundle.manifest.task == "text-generation":
            return CausalPreprocessor(tokenizer, max_length, _cache_shape(bundle.manifest), int(answer["start_id"]))
        if bundle.manifest.task == "token-classification":
            return WordPreprocessor(tokenizer, max_length)
        return TextPreprocessor(tokenizer, max_length)
    except (KeyError, IndexError, TypeError, ValueError):
        raise BundleError(
            f"{bundle.folder}: its manifest does not say how to prepare inputs for {bundle.manifest.task}"
        ) from None


def _cache_shape(manifest: Manifest) -> CacheShape:
    past = [spec for spec in manifest.inputs if spec.name.startswith("past_key_values.")]
    _, kv_heads, _, head_dim = past[0].shape
    return CacheShape(len(past) // 2, int(kv_heads), int(head_dim))
