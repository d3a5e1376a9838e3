"""An endpoint as a teacher of text classification: its words become log-probabilities over the classes."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compressor.errors import TeacherError
from compressor.recipe_teacher import EndpointClassifier
from compressor.teachers.completion import Completion
from compressor.teachers.endpoint import Endpoint, opened

_LEAST = 1e-6


@dataclass
class EndpointClassifierModel:
    """`answers` gives the logarithm of a distribution over the classes for each text; `tell` hears what is odd."""

    teacher: EndpointClassifier
    endpoint: Endpoint
    tell: Callable[[str], None]
    unmatched: int = 0

    def answers(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """float32 [texts, classes]: natural logarithms of probabilities, which distillation reads as logits.

        Raises TeacherError: the endpoint fails, or more than `max_unmatched` answers are no class.
        """
        completions = self.endpoint.complete([prompt_for(self.teacher, text) for text in texts])
        return np.stack([self._answer(completion) for completion in completions])

    def _answer(self, completion: Completion) -> NDArray[np.float32]:
        teacher = self.teacher
        if self.unmatched < teacher.max_unmatched and matched_class(teacher.classes, completion.text) is None:
            self.unmatched += 1
            self.tell(
                f"  the endpoint answers {completion.text[:40]!r}, which is no class"
                f" ({self.unmatched} of at most {teacher.max_unmatched})"
            )
            return np.full(len(teacher.classes), -math.log(len(teacher.classes)), np.float32)
        return class_log_probabilities(teacher, completion)


def open_endpoint(
    teacher: EndpointClassifier, cache_file: Path, tell: Callable[[str], None] = lambda _: None
) -> EndpointClassifierModel:
    """Asks nothing yet. Raises TeacherError where the key cannot be one."""
    return EndpointClassifierModel(teacher, opened(teacher, cache_file, tell, teacher.top_logprobs), tell)


def prompt_for(teacher: EndpointClassifier, text: str) -> str:
    """The recipe's prompt about one text. The text goes in last: braces in it mean nothing."""
    return teacher.prompt.replace("{classes}", ", ".join(teacher.classes)).replace("{text}", text)


def class_log_probabilities(teacher: EndpointClassifier, completion: Completion) -> NDArray[np.float32]:
    """log p over the classes, float32 [classes]. Raises TeacherError where the answer is no class.

    With log-probabilities l of the k most probable first tokens: q(class) is the sum of exp(l) over the tokens that
    begin this class's name and no other's (case and leading space aside); a class that none of them begins shares
    evenly in what is left of 1, at most exp of the least l for each; p = q / sum q.

    Without: p(label) is `label_probability`, and the other classes share the rest evenly.
    """
    label = matched_class(teacher.classes, completion.text)
    if label is None:
        raise TeacherError(
            f"{teacher.endpoint}: expected one of {', '.join(teacher.classes)}, got {completion.text[:80]!r};"
            " make teacher.prompt ask for the class alone, or raise teacher.max_tokens or teacher.max_unmatched"
        )
    if teacher.top_logprobs:
        q = _from_tokens(teacher, completion, label)
    else:
        q = np.full(len(teacher.classes), (1 - teacher.label_probability) / (len(teacher.classes) - 1))
        q[label] = teacher.label_probability
    logarithms: NDArray[np.float32] = np.log(q / q.sum()).astype(np.float32)
    return logarithms


def matched_class(classes: Sequence[str], answer: str) -> int | None:
    """Which class an answer names: the answer itself, or the only one that occurs in it as a word; else None."""
    said = _plain(answer)
    names = [_plain(name) for name in classes]
    if said in names:
        return names.index(said)
    found = [number for number, name in enumerate(names) if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    return found[0] if len(found) == 1 else None


def _plain(text: str) -> str:
    return text.strip().strip("\"'`*.!:,").strip().casefold()


def _from_tokens(teacher: EndpointClassifier, completion: Completion, label: int) -> NDArray[np.float64]:
    first = next((token for token in completion.tokens if token.text.strip()), None)
    top = first.top if first else ()
    names = [name.casefold() for name in teacher.classes]
    q = np.zeros(len(names))
    for text, logprob in top:
        begins = [
            number for number, name in enumerate(names) if text.strip() and name.startswith(text.strip().casefold())
        ]
        if len(begins) == 1:
            q[begins[0]] += math.exp(logprob)
    if q[label] == 0:
        raise TeacherError(
            f"{teacher.endpoint}: none of the first tokens {[text for text, _ in top][:5]} begins the class"
            f" {teacher.classes[label]!r} and no other; name the classes so that their first letters differ, make the"
            " prompt ask for the class alone, or set teacher.top_logprobs to 0"
        )
    unseen = q == 0
    if unseen.any():
        probabilities = [math.exp(logprob) for _, logprob in top]
        left = max(0.0, 1.0 - sum(probabilities)) / int(unseen.sum())
        q[unseen] = max(min(left, min(probabilities)), _LEAST)
    return q
