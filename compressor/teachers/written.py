"""An endpoint as a teacher of text generation: what it writes in answer to prompts, one answer to each.

Sequence-level distillation (Kim & Rush 2016): of all the texts that the teacher could write the student learns the one
that it finds best, which it gives at temperature 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compressor.answered import Answer
from compressor.errors import TeacherError
from compressor.recipe_teacher import EndpointWriter
from compressor.teachers.completion import Completion
from compressor.teachers.endpoint import Endpoint, opened

_EACH = 16  # requests for each of those under way at once: the last ones of a batch are waited for


@dataclass(frozen=True)
class EndpointWriterModel:
    """`answers` gives what is written to each prompt; `tell` hears what is odd."""

    teacher: EndpointWriter
    endpoint: Endpoint
    tell: Callable[[str], None]

    def answers(self, prompts: Sequence[str], advance: Callable[[int], None] = lambda _: None) -> list[Answer | None]:
        """An answer to each, or None where what was said cannot be learnt: it is empty, or no text.

        `advance` hears how many more are answered. Raises TeacherError: the endpoint fails, or there are more than
        `max_unusable` of these.
        """
        found: list[Answer | None] = []
        unusable, at_once = 0, _EACH * self.teacher.concurrency
        for begin in range(0, len(prompts), at_once):
            batch = prompts[begin : begin + at_once]
            completions = self.endpoint.complete([self.teacher.prompt.replace("{text}", text) for text in batch])
            for prompt, completion in zip(batch, completions, strict=True):
                found.append(_usable(completion))
                if found[-1] is None:
                    unusable += 1
                    self._count(unusable, prompt, completion)
            advance(len(batch))
        return found

    def _count(self, unusable: int, prompt: str, completion: Completion) -> None:
        most, said = self.teacher.max_unusable, repr(completion.text[:40]) if completion.text else "nothing"
        if unusable <= most:
            self.tell(f"  the endpoint answers {prompt[:40]!r} with {said}, so it is left out ({unusable} of {most})")
            return
        others = f" ({unusable} prompts are answered so)" if unusable > 1 else ""
        raise TeacherError(
            f"{self.teacher.endpoint}: expected text in answer to {prompt[:40]!r}, got {said}{others}; make"
            " teacher.prompt ask for text, or raise teacher.max_tokens or teacher.max_unusable"
        )


def open_writer(
    teacher: EndpointWriter, cache_file: Path, tell: Callable[[str], None] = lambda _: None
) -> EndpointWriterModel:
    """Asks nothing yet. Raises TeacherError where the key cannot be one."""
    return EndpointWriterModel(teacher, opened(teacher, cache_file, tell), tell)


def _usable(completion: Completion) -> Answer | None:
    """None of an answer without text, and of one with U+FFFD, which stands for what is no text."""
    if not completion.text.strip() or "\ufffd" in completion.text:
        return None
    return Answer(completion.text, completion.ended)
