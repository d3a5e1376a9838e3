"""What several stages need and none of them makes: data, loaded models, encoded examples; loaded at first use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PreTrainedModel

from compressor.artifacts import TeacherSignals
from compressor.distill import outputs_of, read_texts, write_texts
from compressor.errors import DataError, RecipeError, StudentError
from compressor.preprocess import CausalPreprocessor, Preprocessor, TextPreprocessor
from compressor.progress import Progress
from compressor.recipe import ComparableRecipe, ImageClassificationRecipe, OwnTaskRecipe, Recipe
from compressor.recipe_distill import NextTokenDistillation
from compressor.recipe_teacher import EndpointClassifier, EndpointTeacher, EndpointWriter, OnnxTeacher
from compressor.store import key_of, sha256_file, sha256_tree
from compressor.students import load_student
from compressor.tasks import Task, TaskData, task_for
from compressor.tasks.answered_generation import AnsweredGeneration
from compressor.tasks.sources import fingerprint as data_fingerprint
from compressor.teachers import Answers, fingerprint, load_teacher, rights
from compressor.teachers.decoder import cache_shape
from compressor.teachers.labels import open_endpoint
from compressor.teachers.module import source_file
from compressor.teachers.onnx_file import OnnxTeacherModel, open_onnx_teacher
from compressor.teachers.written import EndpointWriterModel, open_writer
from compressor.token_map import TokenMap, map_tokens
from compressor.verify.same_text import SameText, same_text

PARITY_INPUTS, PARITY_TEXTS = 256, 32  # the latter where each token of a text is answered
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
        if self.reference is not None:
            found["reference"] = fingerprint(self.reference.recipe)
            if found["reference"] == found["teacher"]:
                raise RecipeError("verify.reference: expected another model than the teacher, got the teacher itself")
        found["train"] = data_fingerprint(self.recipe.data.train)
        found["eval"] = data_fingerprint(self.recipe.data.eval)
        if found["train"] == found["eval"]:
            raise DataError(
                f"{self.recipe.data.eval}: the same content as data.train; expected data that training does not see"
            )
        module, folder = self.recipe.student.module, self.recipe.student.folder
        if module is not None:
            found["student"] = sha256_file(source_file(module, StudentError))
        if isinstance(self.recipe, OwnTaskRecipe):
            found["definition"] = sha256_file(source_file(self.recipe.definition, RecipeError))
        if folder is not None:
            if not folder.is_dir():
                raise StudentError(f"student.folder: expected a folder in Hugging Face layout at {folder}, found none")
            found["student"] = sha256_tree(folder)
        return found

    @cached_property
    def reference(self) -> Materials | None:
        """The model of `verify.reference` in the teacher's place; None where the recipe names none."""
        recipe = self.recipe
        if not isinstance(recipe, ComparableRecipe) or recipe.verify.reference is None:
            return None
        alone = recipe.verify.model_copy(update={"reference": None})
        return Materials(recipe.model_copy(update={"teacher": recipe.verify.reference, "verify": alone}), self.progress)

    @cached_property
    def data(self) -> TaskData:
        return self.task.load_data(self.recipe.out / "cache", self.progress)

    @property
    def black_box(self) -> bool:
        """Whether only the teacher's outputs are in reach, not its weights."""
        return isinstance(self.recipe.teacher, OnnxTeacher | EndpointTeacher)

    @cached_property
    def teacher(self) -> nn.Module:
        """The raw teacher. Raises TeacherError where it is a black box."""
        return load_teacher(self.recipe)

    @property
    def teacher_weights(self) -> nn.Module | None:
        """The raw teacher, or None where it is a black box."""
        return None if self.black_box else self.teacher

    @cached_property
    def onnx_teacher(self) -> OnnxTeacherModel | None:
        """The teacher that is an ONNX file; None where it is none."""
        teacher = self.recipe.teacher
        return open_onnx_teacher(self.recipe, teacher) if isinstance(teacher, OnnxTeacher) else None

    @cached_property
    def answers(self) -> Answers:
        """What the teacher answers to `teacher_inputs`; in torch on the GPU where there is one."""
        teacher, file = self.recipe.teacher, self.onnx_teacher
        if isinstance(teacher, EndpointClassifier):
            return open_endpoint(teacher, self._asked_before, self.progress.log).answers
        if file is not None:
            collate = self.teacher_preprocessor.collate
            return lambda examples: file.answers(collate(examples))
        return lambda examples: self.says(self._asked, examples).cpu().numpy()

    @property
    def writes(self) -> bool:
        """Whether the teacher is known by the texts alone that it writes: by `written`, not by `answers`."""
        return isinstance(self.recipe.teacher, EndpointWriter)

    def written(self, prompts: Sequence[Any] | NDArray[Any], folder: Path) -> TeacherSignals:
        """What a teacher that writes answers to prompts, in files of `folder`. Raises TeacherError."""
        started = time.monotonic()
        with self.progress.bar("teacher", len(prompts), "prompt") as bar:
            answers = self._writer.answers(list(prompts), bar.advance)
        return write_texts(answers, folder, time.monotonic() - started)

    @cached_property
    def _writer(self) -> EndpointWriterModel:
        """One for a run, which has a budget."""
        assert isinstance(self.recipe.teacher, EndpointWriter)
        return open_writer(self.recipe.teacher, self._asked_before, self.progress.log)

    @property
    def _asked_before(self) -> Path:
        """A file for each model behind each endpoint: runs that share one take turns at asking."""
        assert isinstance(self.recipe.teacher, EndpointTeacher)
        asked = key_of(self.recipe.teacher.endpoint, self.recipe.teacher.model)
        return (self.recipe.cache or self.recipe.out / "cache") / f"endpoint-{asked[:16]}.jsonl"

    def lessons(self, recorded: TeacherSignals) -> TaskData:
        """The data that training works on; of a teacher that writes, with what it wrote. Raises DataError."""
        if not isinstance(self.task, AnsweredGeneration):
            return self.data
        found = self.task.lessons(self.data, read_texts(recorded))
        self._tell_lost(len(self.data.train), len(found.train), "training")
        return found

    def held_out(self, recorded: TeacherSignals) -> TaskData:
        """The data that models are judged on; of a teacher that writes, with what it wrote. Raises DataError."""
        if not isinstance(self.task, AnsweredGeneration):
            return self.data
        found = self.task.held_out(self.data, read_texts(recorded))
        self._tell_lost(len(self.data.eval_inputs), len(found.eval_inputs), "held-out")
        return found

    def _tell_lost(self, prompts: int, answered: int, which: str) -> None:
        if answered < prompts:
            self.progress.log(f"  {answered:,} of {prompts:,} {which} prompts have an answer to learn")

    def logits(self, examples: Sequence[Any]) -> torch.Tensor:
        """What the teacher says at every token: float [examples, tokens, classes]."""
        if self.black_box:
            return torch.from_numpy(self.answers(examples))
        return self.says(self._asked, examples)

    @property
    def _asked(self) -> nn.Module:
        module = self.task.deployable(self.teacher).eval()
        return module.to("cuda" if torch.cuda.is_available() else "cpu")

    def says(self, deployable: nn.Module, examples: Sequence[Any]) -> torch.Tensor:
        """What a deployable teacher answers to `teacher_inputs`, where it is: float [examples, ...]."""
        with torch.inference_mode():
            return outputs_of(deployable, self.teacher_preprocessor.collate(examples))

    def teacher_inputs(self, raw: Sequence[Any] | NDArray[Any]) -> list[Any]:
        """Raw inputs as `answers` takes them: encoded, but for an endpoint, which reads the text itself."""
        if isinstance(self.recipe.teacher, EndpointTeacher):
            return list(raw)
        return self.teacher_preprocessor.encode(raw)

    @cached_property
    def teacher_preprocessor(self) -> Preprocessor:
        return self.task.preprocessor(None)

    def planning_preprocessor(self, student: nn.Module) -> Preprocessor:
        """For sizes and times of a raw student that has no folder yet: the teacher's, with the cache of a student that
        keeps one; the student's own where the teacher's cannot be had.
        """
        if isinstance(self.recipe.teacher, EndpointTeacher):
            return self.task.preprocessor(self.recipe.student.folder)
        found = self.teacher_preprocessor
        if isinstance(found, CausalPreprocessor) and isinstance(student, PreTrainedModel):
            return replace(found, cache=cache_shape(student.config))
        return found

    def token_map(self, preprocessor: Preprocessor) -> TokenMap | None:
        """Which of the teacher's tokens a student's are, of one that learns to predict them; None where they are the
        same under the same numbers, as without student.vocab. Raises StudentError where they are others.
        """
        theirs = self.teacher_preprocessor
        assert isinstance(preprocessor, TextPreprocessor)
        assert isinstance(theirs, TextPreprocessor)
        if self.recipe.student.vocab is not None:
            return map_tokens(preprocessor, theirs)
        if not np.array_equal(preprocessor.tokens(), theirs.tokens()):
            raise StudentError(
                "student.folder: its tokens are not its teacher's; to learn what the next token is they must read the"
                " same ones: expected the teacher's tokenizer.json"
            )
        return None

    def same_text(self, preprocessor: Preprocessor) -> SameText | None:
        """How a student's reading of the held-out passages lies to its teacher's; None where they are the same, and
        where no next tokens are predicted. Raises StudentError where the student does not read them whole.
        """
        if not isinstance(self.recipe.distill, NextTokenDistillation):
            return None
        theirs, tokens = self.teacher_preprocessor, self.token_map(preprocessor)
        assert isinstance(preprocessor, TextPreprocessor)
        assert isinstance(theirs, TextPreprocessor)
        return None if tokens is None else same_text(self.data.eval_inputs, preprocessor, theirs, tokens)

    @cached_property
    def teacher_examples(self) -> list[Any]:
        """The training inputs as the teacher takes them."""
        return self.teacher_inputs(self.data.train)

    @cached_property
    def training_inputs(self) -> list[NDArray[Any]]:
        """What a student is cut by: the training text's token ids under the teacher's tokenizer, int64 [length], or the
        training images, uint8 [height, width, channels]; nothing for an endpoint and a task of the user's own.
        """
        if isinstance(self.recipe, OwnTaskRecipe) or isinstance(self.recipe.teacher, EndpointTeacher):
            return []
        if isinstance(self.recipe, ImageClassificationRecipe):
            return self.teacher_examples
        assert isinstance(self.teacher_preprocessor, TextPreprocessor)
        return [self.teacher_preprocessor.ids(example) for example in self.teacher_examples]

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
        count = PARITY_TEXTS if self.task.per_token else PARITY_INPUTS
        return self.sample(count, 1) + self.task.edge_inputs()

    @property
    def tokenizer_name(self) -> str | None:
        return None if isinstance(self.recipe, ImageClassificationRecipe | OwnTaskRecipe) else "tokenizer.json"
