"""What do recorded teacher signals cost the epochs after the first, and what do they save?

On the demo's teacher, data and student: first, what is read is compared with what the teacher says anew. Then batches
take turns: a training step whose signals lie in memory already (`student`), the same with reading them from the cache
(`student + cache`), and the teacher's own forward pass over the batch (`teacher`), which every later epoch is spared.
Once with the outputs alone, once with hidden states and relations beside them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench._outcome import EXAMPLES
from compressor import learning, stages
from compressor.distill import SignalReader
from compressor.distill.batches import epoch_batches
from compressor.distill.learner import Learner
from compressor.distill.mixture import Lesson, mixture
from compressor.errors import BenchmarkError
from compressor.materials import Materials
from compressor.progress import SILENT
from compressor.recipe_distill import TokenDistillation
from compressor.recipe_file import read_recipe

INSIDE = ["distill.hidden_weight=1", "distill.relation_weight=1"]
BAR = 1.05  # of an epoch after the first, as a share of the student's own steps


class _Setting:
    """The student in training, and what was recorded for it."""

    def __init__(self, overrides: list[str], folder: Path) -> None:
        self.at = Materials(read_recipe(EXAMPLES / "sentence-embedding.yaml", [*overrides, f"out={folder}"]), SILENT)
        start_folder, self.folder = folder / "student", folder / "signals"
        start_folder.mkdir(parents=True)
        self.folder.mkdir()
        start = stages.student(self.at, start_folder)
        begin = time.perf_counter()
        self.recorded = learning.signals(self.at, start, self.folder)
        self.record_s = time.perf_counter() - begin
        self.reader = SignalReader(self.recorded)
        self.preprocessor = self.at.task.preprocessor(start.folder)
        self.examples = self.preprocessor.encode(self.at.data.train)
        self.lengths = np.array([len(example) for example in self.examples], dtype=np.int64)
        widths = {pair: self.reader.tap_width(pair.teacher) for pair in self.reader.taps}
        module = self.at.student(start.folder)
        self.learner = Learner(module, self.reader.width, widths, self.preprocessor.collate(self.examples[:1]))
        self.optimizer = torch.optim.AdamW(self.learner.parameters(), lr=1e-5)
        assert isinstance(self.at.recipe.distill, TokenDistillation)
        self.settings = self.at.recipe.distill

    def read(self, rows: NDArray[np.int64], tokens: int) -> dict[str, torch.Tensor]:
        found = {"outputs": torch.from_numpy(self.reader.outputs(rows))}
        for pair in self.reader.taps:
            found[pair.teacher] = torch.from_numpy(self.reader.tokens(pair.teacher, rows, tokens))
        return found

    def step(self, rows: NDArray[np.int64], signals: dict[str, torch.Tensor] | None) -> None:
        """One training step; reads the signals unless they are given."""
        feed = self.preprocessor.collate([self.examples[i] for i in rows])
        tokens = int(self.lengths[rows].max())
        said = self.read(rows, tokens) if signals is None else signals
        output, taps, _ = self.learner(feed)
        mask = torch.from_numpy(np.arange(tokens) < self.lengths[rows][:, None])
        targets = {pair: said[pair.teacher] for pair in taps}
        loss = mixture(Lesson(output, said["outputs"], None, (), taps, targets, mask), self.settings, 0.5)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def check(self, rows: NDArray[np.int64]) -> None:
        """What is read must be what the teacher says, up to the rounding of another batch."""
        said = self.at.answers([self.at.teacher_examples[i] for i in rows])
        off = float(np.abs(said - self.reader.outputs(rows)).max())
        if not off <= 1e-5:
            raise BenchmarkError(f"recorded and fresh outputs must agree within 1e-5, got {off:g}; run the tests")


def _seconds(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def _measure(name: str, setting: _Setting, batches: list[NDArray[np.int64]]) -> tuple[dict[str, Any], float]:
    setting.check(batches[0])
    spent: dict[str, list[float]] = {"student": [], "student + cache": [], "teacher": []}
    for number, rows in enumerate(batches):
        at_hand = setting.read(rows, int(setting.lengths[rows].max()))
        raw = [setting.at.teacher_examples[i] for i in rows]
        took = {
            "student": _seconds(lambda rows=rows, said=at_hand: setting.step(rows, said)),
            "student + cache": _seconds(lambda rows=rows: setting.step(rows, None)),
            "teacher": _seconds(lambda raw=raw: setting.at.answers(raw)),
        }
        if number >= 2:  # two warm up
            for way, seconds in took.items():
                spent[way].append(seconds)
    # Reading by itself: a difference of whole steps is all noise.
    lengths = setting.lengths
    read_s = [_seconds(lambda rows=rows: setting.read(rows, int(lengths[rows].max()))) for rows in batches]
    total_bytes = sum(shard.path.stat().st_size for shard in setting.recorded.shards)
    tokens = int(sum(len(example) for example in setting.at.teacher_examples))
    median = {way: statistics.median(times) for way, times in spent.items()}
    share = 1 + statistics.median(read_s) / median["student"]
    row = {
        "signals": name,
        "student_step_ms": 1e3 * median["student"],
        "step_with_cache_ms": 1e3 * median["student + cache"],
        "reading_ms": 1e3 * statistics.median(read_s),
        "teacher_batch_ms": 1e3 * median["teacher"],
        "epoch_over_student": share,
        "bytes_a_text": total_bytes / setting.recorded.rows,
        "bytes_a_token": total_bytes / tokens,
        "read_mb_a_s": total_bytes / setting.recorded.rows * len(batches[0]) / statistics.median(read_s) / 1e6,
        "recorded_texts_a_s": setting.recorded.rows / setting.record_s,
        "batches": len(batches),
    }
    return row, share


def run(quick: bool) -> dict[str, Any]:
    rows, bars = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, overrides in (("outputs", []), ("outputs, hidden states, relations", INSIDE)):
            size = f"data.max_train={1024 if quick else 8192}"
            setting = _Setting([*overrides, size], Path(scratch, name.split(",")[0] + str(len(overrides))))
            batches = epoch_batches(setting.lengths, setting.settings.batch_size, 0, 0)[: 12 if quick else 100]
            row, share = _measure(name, setting, batches)
            rows.append(row)
            key = "epoch_over_student_" + ("inside" if overrides else "outputs")
            bars[key] = {"value": share, "bar": f"<= {BAR}", "holds": share <= BAR}
    return {"rows": rows, "bars": bars}
