"""A task of the user's own: whatever is wrong with their callables is one line that names them, before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from compressor.errors import CompressorError, DataError, RecipeError, StudentError, TeacherError, TrainingError
from compressor.progress import SILENT
from compressor.recipe_file import recipe_from_values
from compressor.students import new_student
from compressor.tasks.own import Own
from compressor.teachers.module import build_module

OWN = """
import numpy as np
from torch import nn

from compressor import Examples, OwnTask


def task():
    return OwnTask(read=read, metric=closeness, loss=distance)


def read(path):
    with np.load(path) as file:
        return Examples(file["inputs"], file["truth"])


def closeness(outputs, truth):
    return 1 / (1 + np.abs(outputs - truth).mean())


def distance(student, teacher, labels):
    return (student - teacher).square().mean() + (student - labels).square().mean()


def teacher():
    return nn.Linear(3, 2)


def student():
    return nn.Linear(3, 2)
"""
METRIC, LOSS = "    return 1 / (1 + np.abs(outputs - truth).mean())", "    return (student - teacher).square().mean() +"
STUDENT, TEACHER = "def student():\n    return nn.Linear(3, 2)", "def teacher():\n    return nn.Linear(3, 2)"
READ = 'Examples(file["inputs"], file["truth"])'


def tried(folder: Path, old: str = "", new: str = "") -> Own:
    """The whole trial of `OWN` with one change."""
    assert old in OWN
    file = folder / "own.py"
    file.write_text(OWN.replace(old, new, 1) if old else OWN)
    generator = np.random.default_rng(0)
    for name in ("train", "eval"):
        inputs, truth = (generator.standard_normal((40, width)).astype(np.float32) for width in (3, 2))
        np.savez(folder / f"{name}.npz", inputs=inputs, truth=truth)
    values: dict[str, Any] = {
        "task": "own",
        "definition": f"{file}:task",
        "teacher": {"module": f"{file}:teacher", "weights": "absent", "permission": "own-model"},
        "data": {"train": str(folder / "train.npz"), "eval": str(folder / "eval.npz")},
        "student": {"module": f"{file}:student"},
        "distill": {"batch_size": 8},
    }
    recipe = recipe_from_values(values, "test")
    task = Own(recipe)  # type: ignore[arg-type]
    teacher: nn.Module = build_module(f"{file}:teacher", TeacherError)
    task.try_out(teacher.eval(), new_student(recipe), task.load_data(folder, SILENT))
    return task


def test_what_fits_passes(tmp_path: Path) -> None:
    tried(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "kind", "words"),
    [
        (METRIC, "    return missing", RecipeError, "its metric closeness failed: NameError: name 'missing'"),
        (METRIC, "    raise ValueError", RecipeError, "its metric closeness failed: ValueError: ValueError"),
        (METRIC, "    return outputs - truth", RecipeError, "closeness: expected a number, got float32 [8, 2]"),
        (METRIC, "    return None", RecipeError, "its metric closeness: expected a number, got NoneType"),
        (LOSS, "    1 / 0 +", TrainingError, "its loss distance failed: ZeroDivisionError: division by zero"),
        (LOSS, "    return (student - teacher) + 0 *", TrainingError, "expected a scalar tensor, got float32 [8, 2]"),
        (LOSS, "    return 1.0 #", TrainingError, "its loss distance: expected a scalar tensor, got float"),
        (LOSS, "    return teacher.sum() #", TrainingError, "its loss does not depend on the student"),
        (STUDENT, STUDENT.replace("3", "7"), StudentError, "own.py:student: calling it on float32 [1, 3] failed: Runt"),
        (STUDENT, STUDENT.replace("2", "5"), StudentError, "own.py:student: gives 5 numbers for an input, its teacher"),
        (STUDENT, STUDENT.replace("Linear(3, 2)", "Flatten(0)"), StudentError, "expected float32 [1, width] for float"),
        (STUDENT, STUDENT + ".double()", StudentError, "student: calling it on float32 [1, 3] failed"),
        (STUDENT, STUDENT.replace("Linear(3, 2)", "Unflatten(0, (8, 1))"), StudentError, "on float32 [1, 3] failed"),
        (TEACHER, TEACHER.replace("3", "7"), TeacherError, "own.py:teacher: calling it on float32 [8, 3] failed"),
        (
            READ,
            'Examples(file["inputs"], file["truth"].astype(str))',
            DataError,
            "truth as an array of numbers, got <U",
        ),
        (READ, 'Examples(file["inputs"].astype(object))', DataError, "inputs as an array of numbers, got object"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, old: str, new: str, kind: type[CompressorError], words: str
) -> None:
    with pytest.raises(kind) as raised:
        tried(tmp_path, old, new)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_exhausted_memory_is_left_to_who_knows_the_batch(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        tried(tmp_path, LOSS, '    raise RuntimeError("[enforce fail] can\'t allocate memory: you tried") #')


def test_answers_that_are_always_the_same_do_not_agree(tmp_path: Path) -> None:
    """Beside a mean of 100 they nearly point where the teacher's do."""
    task = tried(tmp_path)
    teacher = 100 + np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    noise = 0.1 * np.random.default_rng(1).standard_normal((50, 2)).astype(np.float32)
    assert abs(task.agreement(np.full_like(teacher, 101), teacher)) < 0.5
    assert task.agreement(teacher, teacher) == pytest.approx(1)
    assert 0.98 < task.agreement(teacher + noise, teacher) < 1
