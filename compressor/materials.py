"""What several stages need and none of them makes: data, loaded models, encoded examples; loaded at first use."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compressor.errors import DataError, StudentError
from compressor.preprocess import Preprocessor
from compressor.progress import Progress
from compressor.recipe import ModuleTeacher, Recipe
from compressor.store import sha256_file
from compressor.students import load_student
from compressor.tasks import Task, TaskData, task_for
from compressor.teachers import fingerprint, load_teacher, rights
from compressor.teachers.module import source_file

PARITY_INPUTS = 256
BENCHMARK_INPUTS = 64


@dataclass
class Materials:
    """Lazy, so that a run whose stages are all kept reads the data and loads no model."""

    recipe: Recipe
    progress: Progress

    @cached_property
    def task(self) -> Task:
        return task_for(self.recipe)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of everything outside the recipe that the run depends on. Raises TeacherError, DataError.

        The first thing that every run asks for: what permits the teacher is settled before any of it is loaded.
        """
        rights(self.recipe)
        found = {"teacher": fingerprint(self.recipe)}
        found["train"] = sha256_file(self.recipe.data.train)
        found["eval"] = sha256_file(self.recipe.data.eval)
        if found["train"] == found["eval"]:
            raise DataError(
                f"{self.recipe.data.eval}: the same content as data.train; expected data that training does not see"
            )
        module = getattr(self.recipe.student, "module", None)
        if module is not None:
            found["student"] = sha256_file(source_file(module, StudentError))
        return found

    @cached_property
    def data(self) -> TaskData:
        return self.task.load_data(self.recipe.out / "cache", self.progress)

    @cached_property
    def teacher(self) -> nn.Module:
        """The raw teacher."""
        return load_teacher(self.recipe)

    @cached_property
    def teacher_preprocessor(self) -> Preprocessor:
        return self.task.preprocessor(None)

    @cached_property
    def teacher_examples(self) -> list[NDArray[Any]]:
        """The training inputs as the teacher takes them."""
        return self.teacher_preprocessor.encode(self.data.train)

    def student(self, folder: Path) -> nn.Module:
        """The deployable student of a folder, in evaluation mode."""
        return self.task.deployable(load_student(self.recipe, folder)).eval()

    def sample(self, count: int, seed: int) -> list[Any]:
        """`count` raw evaluation inputs, the same at every call."""
        inputs = self.data.eval_inputs
        chosen = np.random.default_rng(seed).permutation(len(inputs))[:count]
        return [inputs[i] for i in chosen]

    @property
    def parity_inputs(self) -> list[Any]:
        """Raw inputs for parity: real ones, and those at the edge of what is legal."""
        return self.sample(PARITY_INPUTS, 1) + self.task.edge_inputs()

    @property
    def tokenizer_name(self) -> str | None:
        return None if isinstance(self.recipe.teacher, ModuleTeacher) else "tokenizer.json"
