"""The native module's border: the stub tells the truth, and nothing that does not fit gets through."""

import ast
import inspect
import mmap
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
    fields = {member.target.id for member in node.body if isinstance(member, ast.AnnAssign)}
    assert {name for name in methods if not name.startswith("_")} | fields == public_members(owner)
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


class LossProblem:
    """A problem of the loss, 2 rows of 3 zeros, and the arrays that it points to."""

    def __init__(self, **changes):
        self.student, self.teacher, self.gradient = (np.zeros((2, 3), np.float32) for _ in range(3))
        self.labels, self.loss = np.zeros(2, np.int64), np.zeros(2, np.float32)
        self.indices, self.values = np.full((2, 1), 3), np.zeros((2, 1), np.float32)
        self.problem = native.load().DistillProblem()
        matrix = native.load().Matrix
        plain = {"rows": 2, "width": 3, "soft_width": 3, "teacher_width": 3, "hard_weight": 0.5, "soft_weight": 0.5}
        for name in ("student", "teacher", "gradient"):
            plain[name] = matrix(getattr(self, name).ctypes.data, 3, "float32")
        for name in ("labels", "loss"):
            plain[name] = getattr(self, name).ctypes.data
        for name, value in (plain | changes).items():
            setattr(self.problem, name, value)

    def run(self, instruction_set="baseline", threads=1):
        native.load().distill_loss(self.problem, instruction_set, threads)


@pytest.mark.parametrize("threads", [-3, 0, 1, 64])
def test_any_thread_count_is_safe(threads):
    case = LossProblem()
    case.run(threads=threads)
    np.testing.assert_allclose(case.loss, 0.5 * np.log(3.0), rtol=1e-6)


NOTHING = (0, 0, "float32")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": -1}, "rows must be"),
        ({"width": 0}, "width >= 1"),
        ({"soft_width": 4}, "soft_width"),
        ({"teacher_width": 0}, "teacher_width"),
        ({"temperature": 0.0}, "temperature"),
        ({"soft_weight": -1.0}, "weights"),
        ({"student": NOTHING}, "student"),
        ({"loss": 0}, "loss"),
        ({"teacher": NOTHING}, "needs a teacher"),
        ({"labels": 0}, "needs labels"),
        ({"divergence": "kl"}, "no such name: kl"),
        ({"sparse_mode": "top"}, "no such name: top"),
    ],
)
def test_problems_that_cannot_be(changes, message):
    values = {k: native.load().Matrix(*v) if isinstance(v, tuple) else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        LossProblem(**values).run()


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range(label):
    case = LossProblem()
    case.labels[1] = label
    with pytest.raises(ValueError, match=r"labels must be in 0..width - 1"):
        case.run()
    assert not case.gradient.any()


def test_indices_out_of_range():
    case = LossProblem()
    case.problem.indices, case.problem.values, case.problem.known = case.indices.ctypes.data, case.values.ctypes.data, 1
    with pytest.raises(ValueError, match="indices must be below width"):
        case.run()


def test_an_instruction_set_that_is_not_here():
    lacking = next(name for name in ("neon", "avx512") if name not in native.load().instruction_sets())
    with pytest.raises(ValueError, match=f"lacks {lacking}"):
        LossProblem().run(instruction_set=lacking)
    with pytest.raises(ValueError, match="no such name: sse9"):
        LossProblem().run(instruction_set="sse9")


def test_element_types_that_do_not_exist():
    with pytest.raises(ValueError, match="no such name: int8"):
        native.load().Matrix(0, 0, "int8")


def test_memory_use_grows_with_what_is_held():
    before, _ = native.load().memory_use()
    held = mmap.mmap(-1, 2**26)  # from the system itself: the allocator may still have what others gave back
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    after, peak = native.load().memory_use()
    assert after - before > len(held) // 2
    assert peak >= after
