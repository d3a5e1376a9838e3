"""Hostile GGUF files, made of an honest one: a Llama of two layers, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md."""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_arrays import Payload
from made_texts import MARK

Make = Callable[[Path], Path]
UINT8, UINT32, FLOAT32, STRING, ARRAY, UINT64 = 0, 4, 6, 8, 9, 10
WORDS = ["<unk>", "<s>", "</s>", *map(chr, range(97, 123)), "▁"]
WIDTH, INNER, HEADS, LAYERS = 32, 64, 4, 2


def text(content: str | bytes) -> bytes:
    raw = content.encode() if isinstance(content, str) else content
    return struct.pack("<Q", len(raw)) + raw


def number(kind: int, value: Any) -> bytes:
    return struct.pack("<I" + {UINT8: "B", UINT32: "I", FLOAT32: "f", UINT64: "Q"}[kind], kind, value)


def array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count) + content


def texts(content: Sequence[str]) -> bytes:
    return array(STRING, len(content), b"".join(map(text, content)))


def settings() -> dict[str, bytes]:
    """What the honest file says, each value with its type before it."""
    words = len(WORDS)
    kinds = np.array([2, 3, 3] + [1] * (words - 3), np.int32)
    return {
        "general.architecture": struct.pack("<I", STRING) + text("llama"),
        "llama.block_count": number(UINT32, LAYERS),
        "llama.context_length": number(UINT32, 64),
        "llama.embedding_length": number(UINT32, WIDTH),
        "llama.feed_forward_length": number(UINT32, INNER),
        "llama.attention.head_count": number(UINT32, HEADS),
        "llama.attention.head_count_kv": number(UINT32, HEADS),
        "llama.attention.layer_norm_rms_epsilon": number(FLOAT32, 1e-5),
        "llama.rope.dimension_count": number(UINT32, WIDTH // HEADS),
        "llama.vocab_size": number(UINT32, words),
        "tokenizer.ggml.model": struct.pack("<I", STRING) + text("llama"),
        "tokenizer.ggml.tokens": texts(WORDS),
        "tokenizer.ggml.scores": array(FLOAT32, words, bytes(4 * words)),
        "tokenizer.ggml.token_type": array(5, words, kinds.tobytes()),
        "tokenizer.ggml.bos_token_id": number(UINT32, 1),
        "tokenizer.ggml.eos_token_id": number(UINT32, 2),
        "tokenizer.ggml.unknown_token_id": number(UINT32, 0),
    }


def shapes() -> dict[str, tuple[int, ...]]:
    """The honest file's tensors, each shape from the inside out."""
    layer = {
        "attn_norm": (WIDTH,),
        "ffn_norm": (WIDTH,),
        **{f"attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        "ffn_gate": (WIDTH, INNER),
        "ffn_up": (WIDTH, INNER),
        "ffn_down": (INNER, WIDTH),
    }
    return {
        "token_embd.weight": (WIDTH, len(WORDS)),
        "output.weight": (WIDTH, len(WORDS)),
        "output_norm.weight": (WIDTH,),
        **{f"blk.{i}.{name}.weight": shape for i in range(LAYERS) for name, shape in layer.items()},
    }


def tensors() -> list[bytes]:
    """What the honest file says of its tensors: name, shape, type, place."""
    said, at = [], 0
    for name, shape in shapes().items():
        said.append(tensor(name, shape, 0, at))
        at += 4 * int(np.prod(shape))
    return said


def tensor(name: str | bytes, shape: Sequence[int], kind: int, at: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)


def written(
    folder: Path, said: Mapping[str, bytes] | Sequence[bytes], infos: Sequence[bytes], content_bytes: int | None = None
) -> Path:
    """A file of settings and tensors, its content random numbers, as many as the honest one has unless said."""
    fields = [text(name) + value for name, value in said.items()] if isinstance(said, Mapping) else list(said)
    header = b"GGUF" + struct.pack("<IQQ", 3, len(infos), len(fields)) + b"".join(fields) + b"".join(infos)
    numbers = sum(int(np.prod(shape)) for shape in shapes().values())
    content = np.random.default_rng(0).standard_normal(numbers).astype("<f4").tobytes()
    path = folder / "model.gguf"
    path.write_bytes(header + bytes(-len(header) % 32) + content[:content_bytes])
    return path


def honest(folder: Path) -> Path:
    return written(folder, settings(), tensors())


def _says(**values: bytes) -> Make:
    """Other settings, or more; names with __ for a dot."""
    return lambda folder: written(
        folder, {**settings(), **{name.replace("__", "."): value for name, value in values.items()}}, tensors()
    )


def _has(*infos: bytes) -> Make:
    """One or several tensors more."""
    return lambda folder: written(folder, settings(), [*tensors(), *infos])


def _content(content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "model.gguf").write_bytes(content)
        return folder / "model.gguf"

    return make


def _cut(folder: Path) -> Path:
    return written(folder, settings(), tensors(), -100)


def _pickled(folder: Path) -> Path:
    return _content(b"GGUF" + pickle.dumps(Payload(folder / MARK)))(folder)


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.gguf")
    return folder / "model.gguf"


_START = b"GGUF" + struct.pack("<I", 3)
_NESTED = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 5000 + struct.pack("<IQ", UINT32, 0)

HOSTILE: dict[str, Make] = {
    "3,000,000 values": _says(x=array(UINT8, 3_000_000, bytes(3_000_000))),
    "3,000,000 texts": _says(x=array(STRING, 3_000_000, bytes(8 * 3_000_000))),
    "two arrays of a million values": _says(
        x=array(UINT8, 1_000_000, bytes(1_000_000)), y=array(UINT8, 1_000_000, bytes(1_000_000))
    ),
    "an array of 2^33 values": _says(x=array(UINT8, 1 << 33, b"")),
    "an array longer than the file": _says(x=array(UINT64, 1_000_000, b"")),
    "nested arrays": _says(x=_NESTED),
    "a token of a megabyte": _says(tokenizer__ggml__tokens=texts([*WORDS[:-1], "a" * 1_000_000])),
    "an array of no type": _says(x=array(77, 1, bytes(8))),
    "a value of no type": _says(x=struct.pack("<I", 77) + bytes(8)),
    "a text of 2^62": _content(_START + struct.pack("<QQQ", 0, 1, 1 << 62) + b"abc"),
    "2^40 settings": _content(_START + struct.pack("<QQ", 0, 1 << 40) + bytes(64)),
    "2^40 tensors": _content(_START + struct.pack("<QQ", 1 << 40, 0) + bytes(64)),
    "a million empty settings": _content(_START + struct.pack("<QQ", 0, 1_000_000) + bytes(13_000_000)),
    "a setting twice": lambda folder: written(folder, [text("x") + number(UINT32, 1)] * 2, tensors()),
    "a name that is no UTF-8": lambda folder: written(folder, [text(b"\xff") + number(UINT32, 1)], tensors()),
    "200,000 layers": _says(llama__block_count=number(UINT32, 200_000)),
    "2^32 - 1 layers": _says(llama__block_count=number(UINT32, 2**32 - 1)),
    "2^63 layers": _says(llama__block_count=number(UINT64, 2**63)),
    "2^20 wide": _says(llama__embedding_length=number(UINT32, 1 << 20)),
    "2^30 wide inside": _says(llama__feed_forward_length=number(UINT32, 1 << 30)),
    "2^31 words": _says(llama__vocab_size=number(UINT32, 1 << 31)),
    "no heads": _says(llama__attention__head_count=number(UINT32, 0)),
    "layers that are a text": _says(llama__block_count=struct.pack("<I", STRING) + text("two")),
    "an architecture that is a number": _says(general__architecture=number(UINT32, 1)),
    "an alignment of 3": _says(general__alignment=number(UINT32, 3)),
    "an alignment of nothing": _says(general__alignment=number(UINT32, 0)),
    "a tensor behind the end": _has(tensor("x", (32,), 0, 1 << 30)),
    "a tensor of 2^64": _has(tensor("x", (1 << 32, 1 << 32), 0, 0)),
    "a tensor on another": _has(tensor("x", (32,), 0, 0)),
    "a tensor twice": lambda folder: written(folder, settings(), [*tensors()[:-1], tensors()[0]]),
    "a tensor of 2^32 dimensions": _has(text("x") + struct.pack("<IIQ", 2**32 - 1, 0, 0)),
    "a tensor of no type": _has(tensor("x", (0,), 4, 0)),
    "rows that are no whole blocks": lambda folder: written(
        folder, settings(), [tensor("x", (31, 32), 2, 0), *tensors()[1:]]
    ),
    "version 1": _content(b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(64)),
    "the other byte order": _content(b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(64)),
    "cut off": _cut,
    "a pickle": _content(pickle.dumps([1, 2, 3])),
    "a pickle with a payload": _pickled,
    "empty": _content(b""),
    "FIFO": _pipe,
}
# The file is whole; what its settings describe is found by whoever builds it.
WHOLE = {
    "200,000 layers", "2^20 wide", "2^30 wide inside", "2^31 words", "no heads", "layers that are a text",
    "an architecture that is a number",
}  # fmt: skip
