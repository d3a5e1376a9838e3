"""Hostile recipes, safetensors files and tables."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from made_arrays import Payload

Make = Callable[[Path], Path]
MARK = "it-ran"  # what a payload would leave behind


def _content(content: str | bytes, name: str) -> Make:
    def make(folder: Path) -> Path:
        raw = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(raw.replace(b"@MARK@", str(folder / MARK).encode()))
        return folder / name

    return make


def _pipe(name: str) -> Make:
    def make(folder: Path) -> Path:
        os.mkfifo(folder / name)
        return folder / name

    return make


def _recipe(text: str | bytes) -> Make:
    return _content(text, "recipe.yaml")


_LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))

RECIPES: dict[str, Make] = {
    "aliases of aliases": _recipe(_LAUGHS),
    "an alias of itself": _recipe("task: &a [*a]\n"),
    "merged aliases": _recipe("a: &a {x: 1}\n" + "".join(f"m{i}: {{<<: *a}}\n" for i in range(3_000))),
    "a list of merged aliases": _recipe("a: &a {x: 1}\nb: {<<: [" + "*a, " * 20_000 + "]}\n"),
    "nested": _recipe("a: " + "[" * 50_000 + "]" * 50_000),
    "nested by indentation": _recipe("".join(" " * i + "a:\n" for i in range(400))),
    "a key twice": _recipe("task: sentence-embedding\ntask: own\n"),
    "a tag that runs code": _recipe("task: !!python/object/apply:os.mkdir ['@MARK@']\n"),
    "a tag that makes an object": _recipe("task: !!python/object/new:os.mkdir ['@MARK@']\n"),
    "200 KB": _recipe("# " + "x" * 200_000 + "\ntask: own\n"),
    "a number of 90,000 digits": _recipe("task: own\ndistill: {epochs: " + "9" * 90_000 + "}\n"),
    "an infinite number": _recipe("task: own\ndistill: {learning_rate: .inf}\n"),
    "NUL": _recipe(b"task: own\0\n"),
    "no UTF-8": _recipe(b"task: \xff\xfe\n"),
    "a pickle": _recipe(pickle.dumps({"task": "own"})),
    "empty": _recipe(""),
    "a list": _recipe("- task: own\n"),
    "a key of a list": _recipe("? [a, b]\n: c\n"),
    "a date that is none": _recipe("task: 2001-99-99\n"),
    "FIFO": _pipe("recipe.yaml"),
}


# Cards of models and data sets.


def _card(front: str, more: str = "") -> Make:
    return _content(f"---\nlicense: mit\n{front}\n---\n{more}", "README.md")


CARDS: dict[str, Make] = {
    "aliases of aliases": _card(_LAUGHS),
    "an alias of itself": _card("a: &a [*a]"),
    "merged aliases": _card("a: &a {x: 1}\n" + "".join(f"m{i}: {{<<: *a}}\n" for i in range(3_000))),
    "nested": _card("a: " + "[" * 50_000 + "]" * 50_000),
    "nested by indentation": _card("".join(" " * i + "a:\n" for i in range(900))),
    "nested by dashes": _card("a:\n  " + "- " * 20_000 + "b"),
    "200,000 values": _card("a: [" + "x," * 200_000 + "]"),
    "200,000 lines": _card("a\n" * 200_000),
    "600 KB": _card("# " + "x" * 600_000),
    "behind blank lines": _content(f"\n\n---\n{_LAUGHS}---\n", "README.md"),
    "other ends of lines": _content(f"---\r\n{_LAUGHS}---\r\n".replace("\r\n", "\n").replace("\n", "\r"), "README.md"),
    "17 MB": _card("", " " * (17 << 20)),
}
HONEST_CARDS: dict[str, Make] = {
    "a list": _card("tags:\n- a\n- b\nmodel-index: [{name: x, results: [{value: 0.5}]}]", "# A model\n"),
    "an alias": _card("a: &a [x, y]\nb: *a"),
}


# Weights.


def _safetensors(header: Any, content: bytes = bytes(16)) -> Make:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return _content(len(raw).to_bytes(8, "little") + raw + content, "model.safetensors")


def _tensor(shape: list[Any], begin: Any = 0, end: Any = 16, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


HONEST_WEIGHTS = _safetensors({"__metadata__": {"format": "pt"}, "a": _tensor([4]), "b": _tensor([0], 16, 16)})
WEIGHTS: dict[str, Make] = {
    "a name twice": _safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(_tensor([4])).encode(),) * 2)),
    "too few bytes": _safetensors({"a": _tensor([8])}),
    "beyond the end": _safetensors({"a": _tensor([8], 0, 32)}),
    "bytes that nobody has": _safetensors({"a": _tensor([2], 0, 8)}),
    "a hole": _safetensors({"a": _tensor([1], 0, 4), "b": _tensor([2], 8, 16)}),
    "two in one place": _safetensors({"a": _tensor([4]), "b": _tensor([4])}),
    "negative shape": _safetensors({"a": _tensor([-4])}),
    "negative place": _safetensors({"a": _tensor([4], -16, 0)}),
    "a shape of 2^64": _safetensors({"a": _tensor([1 << 32, 1 << 32], 0, 0)}),
    "a shape of words": _safetensors({"a": _tensor(["4"])}),
    "a shape of truths": _safetensors({"a": _tensor([True, 4])}),
    "unknown dtype": _safetensors({"a": _tensor([4], dtype="F33")}),
    "a field too many": _safetensors({"a": {**_tensor([4]), "more": 1}}),
    "NaN in it": _safetensors(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}'),
    "metadata of numbers": _safetensors({"__metadata__": {"a": 1}, "a": _tensor([4])}),
    "nested": _safetensors(b"[" * 100_000 + b"]" * 100_000),
    "200,000 tensors": _safetensors({f"t{i}": _tensor([0], 0, 0) for i in range(200_000)}, b""),
    "a header of 9 MB": _safetensors(b"{}" + b" " * (9 << 20)),
    "a header of 2^63": _content((1 << 63).to_bytes(8, "little") + bytes(100), "model.safetensors"),
    "a pickle": _content(pickle.dumps([1, 2, 3]), "model.safetensors"),
    "empty": _content(b"", "model.safetensors"),
    "FIFO": _pipe("model.safetensors"),
}


def _indexed(shard: Any, key: str = "weight_map") -> Make:
    """A teacher's folder whose weights are, it says, in another file: there is one of that name, with a payload."""

    def make(folder: Path) -> Path:
        HONEST_WEIGHTS(folder)
        (folder / "model.safetensors").rename(folder / "z.safetensors")
        (folder / "config.json").write_text('{"model_type": "bert"}')
        if isinstance(shard, str):
            named = folder / shard.replace("@OUTSIDE@", str(folder.parent / "outside"))
            named.parent.mkdir(exist_ok=True)
            named.write_bytes(pickle.dumps(Payload(folder / MARK)))
            said: Any = str(named) if "@OUTSIDE@" in shard else shard
        else:
            said = shard
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {"total_size": 16}, key: {"a": said, "b": "z.safetensors"}}))
        return index

    return make


def _elsewhere(name: str, content: Any) -> Make:
    """A teacher's folder that has another model loaded than its safetensors."""

    def make(folder: Path) -> Path:
        HONEST_WEIGHTS(folder)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "adapter_model.bin").write_bytes(pickle.dumps(Payload(folder / MARK)))
        (folder / name).write_text(json.dumps(content))
        return folder / name

    return make


FOLDERS: dict[str, Make] = {
    "shards in another folder": _indexed("../outside.safetensors"),
    "shards below": _indexed("sub/w.safetensors"),
    "shards at an absolute path": _indexed("@OUTSIDE@/w.safetensors"),
    "pickled shards": _indexed("weights.bin"),
    "shards that hide their kind": _indexed(".safetensors"),
    "a shard that is a number": _indexed(1),
    "a shard that is a list": _indexed(["z.safetensors"]),
    "no shards": _indexed("z.safetensors", "weights"),
    "pickled weights that config.json names": _elsewhere(
        "config.json", {"model_type": "bert", "transformers_weights": "adapter_model.bin"}
    ),
    "weights below that config.json names": _elsewhere(
        "config.json", {"model_type": "bert", "transformers_weights": "sub/model.safetensors"}
    ),
    "an adapter": _elsewhere("adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "/"}),
    "a config that is a list": _elsewhere("config.json", [1]),
}


# Rows.


def _rows(text: str | bytes, suffix: str = ".jsonl") -> Make:
    return _content(text, f"rows{suffix}")


TABLES: dict[str, Make] = {
    "nested lists": _rows('{"text":' + "[" * 100_000 + "]" * 100_000 + "}\n"),
    "nested objects": _rows('{"text":' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}\n"),
    "nested behind a quote": _rows('{"text": "a\n' + '{"text":' + "[" * 1000 + "]" * 1000 + "}\n"),
    "nested behind a backslash": _rows('{"text": "a\\\\", "b":' + "[" * 1000 + "]" * 1000 + "}\n"),
    "closed before it opens": _rows("]" * 500 + "[" * 500 + "\n"),
    "200,000 keys": _rows("{" + ",".join(f'"k{i}":1' for i in range(200_000)) + "}\n"),
    "another key in every row": _rows("".join(f'{{"k{i}":1}}\n' for i in range(20_000))),
    "NUL": _rows(bytes(1000)),
    "100,000 columns": _rows(",".join(f"c{i}" for i in range(100_000)) + "\n", ".csv"),
    "NUL in a .csv": _rows("text\na\0b\n", ".csv"),
    "FIFO": _pipe("rows.jsonl"),
}


def unpickled_weights(folder: Path) -> Path:
    """A folder in Hugging Face layout whose weights are pickles that run code."""
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(folder / MARK)))
    return folder
