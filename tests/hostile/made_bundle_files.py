"""Hostile bundles and archives of bundles, made where they are needed from an honest one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import zstandard
from made_arrays import HOSTILE as ARRAYS
from made_bundles import edit_manifest, make_bundle
from made_onnx import HOSTILE as HOSTILE_MODELS
from made_onnx import looping_body
from onnx import TensorProto, helper, numpy_helper

from compressor.bundle.archive import pack
from compressor.device.archive import member_header

MakeBundle = Callable[[Path], Path]
FRAME_HEADER = bytes.fromhex("28b52ffd 00 60")  # docs/bundle-format.md


def honest(folder: Path) -> Path:
    return make_bundle(folder / "bundle", 1)


def _spoilt(change: Callable[[dict[str, Any]], object]) -> MakeBundle:
    """A bundle whose manifest says something else."""

    def make(folder: Path) -> Path:
        bundle = honest(folder)
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        change(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return make


def _text(text: Callable[[str], str]) -> MakeBundle:
    """A bundle whose manifest has another text."""

    def make(folder: Path) -> Path:
        bundle = honest(folder)
        path = bundle / "manifest.json"
        path.write_text(text(path.read_text()))
        return bundle

    return make


def _replaced(name: str, make_file: Callable[[Path], Path]) -> MakeBundle:
    """A bundle with another file, its hash and size as the manifest says."""

    def make(folder: Path) -> Path:
        bundle = honest(folder)
        (folder / "other").mkdir()
        shutil.copyfile(make_file(folder / "other"), bundle / name)
        content = (bundle / name).read_bytes()
        manifest = json.loads((bundle / "manifest.json").read_bytes())
        entry = next(one for one in manifest["files"] if one["name"] == name)
        entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        return bundle

    return make


def _more(content: bytes, **changes: Any) -> MakeBundle:
    """A bundle with golden texts."""

    def make(folder: Path) -> Path:
        bundle = honest(folder)
        (bundle / "golden_texts.json").write_bytes(content)
        edit_manifest(bundle, **changes)
        return bundle

    return make


def _endless_later(folder: Path) -> Path:
    """A Loop that goes on as long as the sum of the input is above 0.5: for ever in the golden case 1."""
    bundle = honest(folder)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
            helper.make_node("Greater", ["sum", "half"], ["on"]),
            helper.make_node("Loop", ["", "on", "x"], ["y"], body=looping_body(8)),
        ],
        "later",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "half")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), bundle / "model.onnx"
    )
    little, ones = np.full((1, 8), 0.01, np.float32), np.ones((1, 8), np.float32)
    cases = {f"{case}.{kind}": array for case, array in enumerate((little, ones)) for kind in ("in.x", "out.y")}
    np.savez(bundle / "golden.npz", allow_pickle=False, **cases)
    golden = json.loads((bundle / "manifest.json").read_bytes())["golden"]
    edit_manifest(bundle, golden={**golden, "cases": 2})
    return bundle


def _panicking(folder: Path) -> Path:
    """A pattern that gives up after so many steps: the library of tokenizers panics, which is no Exception."""
    bundle = honest(folder)
    split = {"type": "Split", "pattern": {"Regex": "^(?:(.|..)+)+$(?<=ZZZ)"}, "behavior": "Isolated", "invert": False}
    model = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    (bundle / "tokenizer.json").write_text(json.dumps({"version": "1.0", "pre_tokenizer": split, "model": model}))
    (bundle / "golden_texts.json").write_text(json.dumps(["a" * 40] * 3))
    edit_manifest(bundle, task="sentence-embedding", answer={"max_length": 16})
    return bundle


def _external(folder: Path) -> Path:
    """A model whose weights lie in another file of the bundle, which its manifest lists."""
    bundle = honest(folder)
    model = onnx.load(bundle / "model.onnx")
    onnx.save(model, bundle / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    edit_manifest(bundle)
    return bundle


def _linked(folder: Path) -> Path:
    bundle = honest(folder)
    (bundle / "golden.npz").rename(folder / "golden.npz")
    (bundle / "golden.npz").symlink_to(folder / "golden.npz")
    return bundle


def _piped(name: str) -> MakeBundle:
    def make(folder: Path) -> Path:
        bundle = honest(folder)
        (bundle / name).unlink()
        os.mkfifo(bundle / name)
        return bundle

    return make


def _flipped(folder: Path) -> Path:
    bundle = honest(folder)
    content = bytearray((bundle / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(content)
    return bundle


def _extra(folder: Path) -> Path:
    bundle = honest(folder)
    (bundle / "more.bin").write_bytes(b"more")
    return bundle


def _entry(name: str, size: int = 1) -> dict[str, Any]:
    return {"name": name, "bytes": size, "sha256": "0" * 64}


BUNDLES: dict[str, MakeBundle] = {
    "manifest: key twice": _text(lambda text: text.replace("{", '{"task": "own",', 1)),
    "manifest: key twice after 300,000": _text(
        lambda _: "{" + "".join(f'"k{i}":0,' for i in range(300_000)) + '"last":0,"last":0}'
    ),
    "manifest: half a character": _spoilt(lambda m: m["evidence"].update(metric="\ud800")),
    "manifest: nested": _text(lambda _: "[" * 100_000 + "]" * 100_000),
    "manifest: 9 MB": _text(lambda text: text + " " * (9 << 20)),
    "manifest: NaN": _text(lambda text: text.replace('"min_cosine": ', '"min_cosine": NaN, "x": ', 1)),
    "manifest: 1e999": _text(lambda text: re.sub(r'("max_abs_error": )[^,\n]+', r"\g<1>1e999", text)),
    "manifest: 1e999 in the answer": _text(lambda text: re.sub(r'("shape": \[\s*)8\b', r"\g<1>1e999", text, count=1)),
    "manifest: a number of 400 digits": _spoilt(lambda m: m["golden"].update(max_abs_error=10**400)),
    "manifest: no JSON": _text(lambda text: "\0" + text),
    "manifest: empty": _text(lambda _: ""),
    "manifest: a list": _text(lambda _: "[]"),
    "manifest: FIFO": _piped("manifest.json"),
    "manifest: a path out of it": _spoilt(lambda m: m["files"].append(_entry("../outside"))),
    "manifest: an absolute path": _spoilt(lambda m: m["files"].insert(0, _entry("/etc/hostname"))),
    "manifest: a model outside": _spoilt(lambda m: m.update(model="../model.onnx")),
    "manifest: negative size": _spoilt(lambda m: m["files"][0].update(bytes=-1)),
    "manifest: 100,000 files": _spoilt(lambda m: m["files"].extend(_entry(f"z{i:06}") for i in range(100_000))),
    "manifest: 10^18 golden cases": _spoilt(lambda m: m["golden"].update(cases=10**18)),
    "manifest: 10^9 golden cases of no inputs": _spoilt(
        lambda m: (m.update(inputs=[]), m["golden"].update(cases=10**9))
    ),
    "manifest: opset of another": _spoilt(lambda m: m.update(opset=18)),
    "manifest: IR version of another": _spoilt(lambda m: m["requires"].update(ir_version=8)),
    "manifest: a task that colours the terminal": _spoilt(lambda m: m.update(task="\x1b[31mown")),
    "manifest: format 99": _spoilt(lambda m: m.update(format_version=99)),
    "golden.npz: link": _linked,
    "golden.npz: FIFO": _piped("golden.npz"),
    "golden.npz: 3 GB in 3 MB": _replaced("golden.npz", ARRAYS["3 GB of zeros"]),
    "model.onnx: flipped bit": _flipped,
    "model.onnx: crash": _replaced("model.onnx", HOSTILE_MODELS["crash: LayerNormalization without bias"]),
    "model.onnx: external data": _replaced("model.onnx", HOSTILE_MODELS["external: absolute path"]),
    "model.onnx: external data in the bundle": _external,
    "model.onnx: endless in the second golden case": _endless_later,
    "tokenizer.json: panic": _panicking,
    "golden_texts.json: nested": _more(b"[" * 100_000 + b"]" * 100_000),
    "golden_texts.json: no UTF-8": _more(b'["\xff"]'),
    "golden_texts.json: a number": _more(b"5"),
    "golden_texts.json: of numbers": _more(b"[1, 2, 3]"),
    "golden_texts.json: 9 MB": _more(b'["a", "b", "c"]' + b" " * (9 << 20)),
    "a file too many": _extra,
}


# Archives, as tarfile and zstd would make them.


def _members(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    names = ["manifest.json", *sorted(p.name for p in bundle.iterdir() if p.name != "manifest.json")]
    found = []
    for name in names:
        info = tarfile.TarInfo(name)
        info.size = (bundle / name).stat().st_size
        found.append((info, (bundle / name).read_bytes()))
    return found


def _packed(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


def _with(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", first: bool = False) -> MakeBundle:
    def make(folder: Path) -> Path:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        members = _members(honest(folder))
        members.insert(0 if first else len(members), (info, b""))
        return _packed(folder / "bundle.tar", members)

    return make


def _many(folder: Path) -> Path:
    return _packed(
        folder / "bundle.tar", _members(honest(folder)) + [(tarfile.TarInfo(f"z{i:05}"), b"") for i in range(20_000)]
    )


def _twice(folder: Path) -> Path:
    members = _members(honest(folder))
    return _packed(folder / "bundle.tar", members + members[-1:])


def _zstd_bomb(folder: Path) -> Path:
    """16 GB of zeros where the manifest is expected to be: blocks of 128 KiB, each one byte that is repeated."""
    head = member_header("manifest.json", 8 << 20)
    zeros, end = ((1 << 17) << 3 | 1 << 1).to_bytes(3, "little") + b"\0", b"\1\0\0"
    path = folder / "bundle.tar.zst"
    path.write_bytes(FRAME_HEADER + (len(head) << 3).to_bytes(3, "little") + head + zeros * (1 << 17) + end)
    return path


def listing_3_gb(folder: Path) -> Path:
    """An unsigned archive of 99 kB with a manifest that lists 3 GiB of zeros, which follow."""
    bundle, size = honest(folder), 3 << 30
    manifest = json.loads((bundle / "manifest.json").read_bytes())
    manifest["files"].insert(0, _entry("A_zeros", size))
    content = json.dumps(manifest).encode()
    path = folder / "bundle.tar.zst"
    settings = zstandard.ZstdCompressionParameters.from_level(1, window_log=22, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=settings)
    with path.open("wb") as file, compressor.stream_writer(file) as writer:
        for name, length in (("manifest.json", len(content)), ("A_zeros", size)):
            head = tarfile.TarInfo(name)
            head.size, head.mode = length, 0o644
            writer.write(head.tobuf(tarfile.USTAR_FORMAT))
            if name == "manifest.json":
                writer.write(content + bytes(-length % 512))
        for _ in range(size >> 24):
            writer.write(bytes(1 << 24))
    return path


def _zstd_window(folder: Path) -> Path:
    """A frame that asks its reader for 2 GB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=31, format=zstandard.FORMAT_ZSTD1)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = folder / "bundle.tar.zst"
    path.write_bytes(compressor.compress(bytes(1 << 16)) + compressor.flush())
    return path


def _behind(content: bytes) -> MakeBundle:
    """A whole archive, and something behind its frame."""

    def make(folder: Path) -> Path:
        path = pack(honest(folder), folder / "bundle.tar.zst").path
        path.write_bytes(path.read_bytes() + content)
        return path

    return make


def _cut(folder: Path) -> Path:
    path = _packed(folder / "bundle.tar", _members(honest(folder)))
    path.write_bytes(path.read_bytes()[:-20_000])
    return path


def _content(content: bytes, name: str = "bundle.tar") -> MakeBundle:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


ARCHIVES: dict[str, MakeBundle] = {
    "a manifest with a number of 400 digits": lambda folder: _packed(
        folder / "bundle.tar", _members(BUNDLES["manifest: a number of 400 digits"](folder))
    ),
    "a path out of it": _with("../outside"),
    "an absolute path": _with("/tmp/outside"),
    "a symbolic link": _with("link", tarfile.SYMTYPE, "/etc"),
    "a symbolic link first": _with("manifest.json", tarfile.SYMTYPE, "/etc/hostname", first=True),
    "a hard link": _with("link", tarfile.LNKTYPE, "manifest.json"),
    "a device": _with("null", tarfile.CHRTYPE),
    "a FIFO": _with("pipe", tarfile.FIFOTYPE),
    "a folder": _with("folder", tarfile.DIRTYPE),
    "a member twice": _twice,
    "20,000 members": _many,
    "16 GB of zeros": _zstd_bomb,
    "a window of 2 GB": _zstd_window,
    "3 GB in 99 KB": listing_3_gb,
    "cut off": _cut,
    "empty": _content(b""),
    "text": _content(b"no archive" * 1000),
    "zeros": _content(bytes(100_000)),
    "zstd of nothing": _content(FRAME_HEADER + b"\1\0\0", "bundle.tar.zst"),
    "another zstd header": _content(zstandard.ZstdCompressor().compress(bytes(1024)), "bundle.tar.zst"),
    "half a zstd frame": _content(FRAME_HEADER + (1000 << 3).to_bytes(3, "little") + bytes(500), "bundle.tar.zst"),
    "a frame of nothing behind the frame": _behind(FRAME_HEADER + b"\1\0\0"),
    "a frame to be skipped behind the frame": _behind(bytes.fromhex("502a4d18 04000000") + b"more"),
    "a byte behind the frame": _behind(b"\0"),
    "a FIFO instead of an archive": lambda folder: (os.mkfifo(folder / "bundle.tar"), folder / "bundle.tar")[1],
}
