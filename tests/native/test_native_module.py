"""The native module's border: the stub tells the truth, and nothing that does not fit gets through."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import compressor
from compressor import native
from compressor.errors import MissingDependencyError

STUB = ast.parse(Path(native.__file__).with_name("_native.pyi").read_text())


def public_members(owner):
    return {name for name in vars(owner) if not name.startswith("_")}


def argument_names(function):
    """From the signature that pybind11 writes into the first line of a docstring."""
    signature = re.search(r"\((.*)\)", inspect.getdoc(function).splitlines()[0]).group(1)
    return [name for name in re.findall(r"(\w+): ", signature) if name != "self"]


def stub_arguments(node):
    return [argument.arg for argument in node.args.args if argument.arg != "self"]


def test_the_stub_names_what_the_module_has():
    declared = {node.name for node in STUB.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    assert declared == public_members(native.load())


@pytest.mark.parametrize("node", [n for n in STUB.body if isinstance(n, ast.FunctionDef)], ids=lambda n: n.name)
def test_the_stub_names_the_arguments_of_functions(node):
    assert stub_arguments(node) == argument_names(getattr(native.load(), node.name))


@pytest.mark.parametrize("node", [n for n in STUB.body if isinstance(n, ast.ClassDef)], ids=lambda n: n.name)
def test_the_stub_names_the_members_of_classes(node):
    owner = getattr(native.load(), node.name)
    methods = {member.name: member for member in node.body if isinstance(member, ast.FunctionDef)}
    assert {name for name in methods if not name.startswith("_")} == public_members(owner)
    for name, member in methods.items():
        if not member.decorator_list:
            assert stub_arguments(member) == argument_names(getattr(owner, name))


def test_the_module_has_the_version_of_the_package():
    assert native.load().__version__ == compressor.__version__


def test_a_missing_module_names_the_remedy():
    program = """
import sys
sys.modules["compressor._native"] = None
from compressor import native
assert not native.available()
try:
    native.load()
except native.MissingDependencyError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.count("\n") == 1
    assert "pip install ." in ended.stdout


def test_the_library_is_found_without_importing_the_package():
    program = """
import sys
from compressor import native
print(native.onnxruntime_library())
assert "onnxruntime" not in sys.modules
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "libonnxruntime.so" in ended.stdout


def test_another_library_may_be_named(tmp_path):
    library = native.onnxruntime_library()
    assert native.onnxruntime_library(library) == library
    with pytest.raises(MissingDependencyError, match="no ONNX Runtime library at"):
        native.onnxruntime_library(tmp_path / "libonnxruntime.so")


def loss_arguments(**changes):
    arguments = {
        "student": np.zeros((2, 3), np.float32),
        "teacher": np.zeros((2, 3), np.float32),
        "labels": np.zeros(2, np.int64),
        "loss": np.zeros(2, np.float32),
        "gradient": np.zeros((2, 3), np.float32),
        "temperature": 1.0,
        "hard_weight": 0.5,
        "ignore_index": -100,
        "threads": 1,
    }
    return arguments | changes


@pytest.mark.parametrize("threads", [-3, 0, 1, 64])
def test_any_thread_count_is_safe(threads):
    arguments = loss_arguments(threads=threads)
    native.load().distill_loss(**arguments)
    np.testing.assert_allclose(arguments["loss"], 0.5 * np.log(3.0), rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"student": np.zeros(3, np.float32)},
        {"teacher": np.zeros((2, 4), np.float32)},
        {"gradient": np.zeros((1, 3), np.float32)},
        {"loss": np.zeros(3, np.float32)},
        {"labels": np.zeros(3, np.int64)},
        {"labels": np.array([0, 3])},
        {"labels": np.array([0, -1])},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_extents_and_labels_that_do_not_fit(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        native.load().distill_loss(**loss_arguments(**changes))


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 3)), np.zeros((3, 2), np.float32).T, np.zeros((2, 6), np.float32)[:, ::2]]
)
def test_other_dtypes_and_layouts(bad):
    with pytest.raises(TypeError):
        native.load().distill_loss(**loss_arguments(student=bad))


def test_memory_use_grows_with_what_is_held():
    before, _ = native.load().memory_use()
    held = np.ones(8 * 2**20)
    after, peak = native.load().memory_use()
    assert after - before > held.nbytes // 2
    assert peak >= after
