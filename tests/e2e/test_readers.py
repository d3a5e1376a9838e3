"""Bundles of every task opened by other readers, as examples/readers shows it: they answer as the golden cases say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import browser
import fetched
import needed
import numpy as np
import pytest
import runtimes
from made_inputs import LICENSE_TEXT
from PIL import Image
from shared_runs import TASKS, Finished

import compressor

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "readers"
TEXT_TASKS = [task for task in TASKS if task != "image-classification"]
FEW = 4  # cases of a bundle, where each takes a process or a page
OPTIMUM = (
    "optimum-onnx==0.1.0",
    "optimum==2.1.0",
    "transformers==4.57.6",
    "huggingface_hub==0.36.2",
    "tokenizers==0.22.2",
)
NODE_PACKAGES = ("@huggingface/transformers@4.3.2", "@huggingface/tokenizers@0.2.0", "onnxruntime-web@1.30.0")


@pytest.fixture(scope="module")
def bundles(finished_runs: dict[str, Finished]) -> dict[str, Path]:
    assert {task: run.ended.code for task, run in finished_runs.items()} == dict.fromkeys(TASKS, 0)
    return {task: run.out / "bundle" for task, run in finished_runs.items()}


def node_modules() -> Path:
    return fetched.by_npm("transformers.js-4.3.2", *NODE_PACKAGES)


def golden(bundle: Path) -> dict[str, Any]:
    with np.load(bundle / "golden.npz") as arrays:
        return dict(arrays)


def texts(bundle: Path) -> list[str]:
    found = json.loads((bundle / "golden_texts.json").read_text())
    return [text if isinstance(text, str) else " ".join(text) for text in found]


def assert_golden(bundle: Path, found: Mapping[str, Any], outputs: set[str], cases: int | None = None) -> None:
    """`found` has these outputs of the first `cases`, within the manifest's tolerances, and no other inputs."""
    check, expected = json.loads((bundle / "manifest.json").read_text())["golden"], golden(bundle)
    assert {name.partition(".out.")[::2] for name in found if ".out." in name} == {
        (str(case), name) for case in range(cases or check["cases"]) for name in outputs
    }
    for name, array in found.items():
        got, golden_array = np.asarray(array), expected[name]
        assert got.shape == golden_array.shape, name
        if ".in." in name:
            assert np.array_equal(got, golden_array), name
            continue
        a, b = got.astype(np.float64).ravel(), golden_array.astype(np.float64).ravel()
        assert a @ b / np.sqrt((a @ a) * (b @ b)) >= check["min_cosine"], name
        assert check["max_abs_error"] is None or np.abs(a - b).max() <= check["max_abs_error"], name


def first_output(task: str) -> str:
    """The only one that the classes of other readers know."""
    return "sentence_embedding" if task == "sentence-embedding" else "logits"


def continued(bundle: Path) -> str:
    """The first golden text and what this project's predictor writes after it."""
    text = texts(bundle)[0]
    return text + compressor.load(bundle, trusted=True).generate(text, max_tokens=8)


def test_onnxruntime_in_python(bundles: dict[str, Path]) -> None:
    bundle = bundles["sentence-embedding"]
    ended = subprocess.run(
        [sys.executable, "-I", ROOT / "examples" / "load_with_onnxruntime.py", bundle],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    embed = compressor.load(bundle, trusted=True).embed
    one, same, other = (
        embed(text)
        for text in (
            "A man is walking his dog.",
            "A person walks a dog outside.",
            "The stock market fell on Monday.",
        )
    )
    assert ended.stdout == f"same meaning {one @ same:.3f}, another {one @ other:.3f}\n"


def test_licence_texts_of_the_teacher_come_along(bundles: dict[str, Path]) -> None:
    assert (bundles["sentence-embedding"] / "licenses" / "LICENSE").read_text() == LICENSE_TEXT
    assert not (bundles["text-classification"] / "licenses").exists()


def test_a_bundle_of_images_names_no_reader_that_would_feed_it_otherwise(bundles: dict[str, Path]) -> None:
    names = {path.name for path in bundles["image-classification"].iterdir()}
    assert not names & {"config.json", "preprocessor_config.json", "tokenizer_config.json"}


def test_optimum(bundles: dict[str, Path], tmp_path: Path) -> None:
    """torch, numpy and onnxruntime are this environment's; optimum-onnx needs transformers before 5."""
    copy = fetched.by_pip("optimum-onnx-0.1.0", *OPTIMUM, dependencies=False)
    ended = subprocess.run(
        [sys.executable, Path(__file__).with_name("optimum_answers.py"), tmp_path, *map(bundles.get, TEXT_TASKS)],
        env={**os.environ, "PYTHONPATH": f"{copy}:{EXAMPLES}", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    for task in TEXT_TASKS:
        with np.load(tmp_path / f"{task}.npz") as found:
            assert_golden(bundles[task], found, {first_output(task)})
    assert (tmp_path / "written.txt").read_text() == continued(bundles["text-generation"])


def test_transformers_js(bundles: dict[str, Path], tmp_path: Path) -> None:
    node = needed.require("node", "nodejs")
    (tmp_path / "node_modules").symlink_to(node_modules())
    for file in (EXAMPLES / "load_with_transformers_js.mjs", Path(__file__).with_name("transformers_js_answers.mjs")):
        shutil.copy(file, tmp_path)
    ended = subprocess.run(
        [node, tmp_path / "transformers_js_answers.mjs", *(bundles[task] for task in TEXT_TASKS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    for task in TEXT_TASKS:
        assert_golden(bundles[task], said[task]["arrays"], {first_output(task)})
    assert said["text-generation"]["written"][0] == continued(bundles["text-generation"])


def test_onnxruntime_in_cpp(bundles: dict[str, Path], tmp_path: Path) -> None:
    compiler = needed.require("g++", "g++")
    headers = runtimes.required(runtimes.cxx_headers)
    package = find_spec("onnxruntime")
    assert package is not None
    (library,) = Path(str(package.origin)).parent.glob("capi/libonnxruntime.so.*")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):  # what the linker looks for, and the loader
        (tmp_path / name).symlink_to(library)
    program, source = tmp_path / "load", EXAMPLES / "load_with_onnxruntime.cpp"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", headers, "-L", tmp_path, "-lonnxruntime"]
    built = subprocess.run(
        [compiler, source, *options, f"-Wl,-rpath,{tmp_path}", "-o", program],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    for task, bundle in bundles.items():
        expected, found = golden(bundle), {}
        for case in range(FEW):
            if task == "image-classification":
                (tmp_path / "pixels").write_bytes(expected[f"{case}.in.pixels"].tobytes())
                given = [str(tmp_path / "pixels")]
            else:
                given = [str(number) for number in expected[f"{case}.in.input_ids"][0]]
            ended = subprocess.run(
                [program, bundle / "model.onnx", *given], capture_output=True, text=True, check=False
            )
            assert ended.returncode == 0, ended.stderr
            name = f"{case}.out.{first_output(task)}"
            rows = np.array([line.split() for line in ended.stdout.splitlines()], np.float32)
            found[name] = rows.reshape(expected[name].shape)
        assert_golden(bundle, found, {first_output(task)}, FEW)


def test_onnxruntime_in_the_browser(bundles: dict[str, Path], tmp_path: Path) -> None:
    chromium = needed.require("chromium", "chromium")
    (tmp_path / "node_modules").symlink_to(node_modules())
    shutil.copy(EXAMPLES / "load_in_browser.html", tmp_path)
    asked: dict[tuple[str, int], str] = {}
    for task, bundle in bundles.items():
        (tmp_path / task).symlink_to(bundle)
        for case in range(FEW):
            if task == "image-classification":
                Image.fromarray(golden(bundle)[f"{case}.in.pixels"][0, ..., 0]).save(tmp_path / f"{case}.png")
                query = {"bundle": task, "image": f"{case}.png"}
            else:
                query = {"bundle": task, "text": texts(bundle)[case]}
            asked[task, case] = f"load_in_browser.html?{urlencode(query)}"
    said = dict(zip(asked, browser.texts_of(chromium, tmp_path, list(asked.values())), strict=True))
    for task, bundle in bundles.items():
        found = {}
        for case in range(FEW):
            answer, outputs = said[task, case]
            assert outputs, answer
            for name, rows in json.loads(outputs).items():
                expected = golden(bundle)[f"{case}.out.{name}"]
                found[f"{case}.out.{name}"] = np.array(rows).reshape(expected.shape)
        classified = {"probabilities"} if task.endswith("classification") else set()
        assert_golden(bundle, found, {first_output(task)} | classified, FEW)
    assert said["text-generation", 0][0].startswith(continued(bundles["text-generation"]))
    predictor = compressor.load(bundles["text-classification"], trusted=True)
    for case in range(FEW):
        assert said["text-classification", case][0] == predictor(texts(bundles["text-classification"])[case]).label
