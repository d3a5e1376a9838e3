"""What of a run folder is whole, what an interrupted run must keep, and what must come out the same."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import safetensors

from compressor.bundle.manifest import check_files, open_bundle
from compressor.distill import cache
from compressor.distill.checkpoint import load_checkpoint
from compressor.errors import CompressorError

SIGNALS, TRAININGS = "signals", ("distill", "control", "qat")
SEAL = "artifact.json"
# What is another in every run: times, and how far answers are apart where that is torch's rounding alone, which changes
# with where its memory lies.
_MEASURED = {"seconds", "reused", "latency", "timing", "max_abs_error", "mean_cosine"}


@dataclass(frozen=True)
class Kept:
    """What a resumed run must not do again."""

    files: dict[str, tuple[int, int]]  # shards and seals by place: inode and time of the last change in ns
    steps: dict[str, int]  # of the checkpoint of each training, or of a finished one

    def lost(self, later: Kept) -> list[str]:
        """What `later` has no more, or has anew."""
        again = [f"{name} was made again" for name, file in self.files.items() if later.files.get(name) != file]
        return again + [f"{name}: lost step {step}" for name, step in self.steps.items() if later.steps[name] < step]


def finished(out: Path, stage: str) -> Path | None:
    """The stage's folder under its final name."""
    return next((folder for folder in _folders(out, stage) if folder.suffix != ".partial"), None)


def begun(out: Path, stage: str) -> Path | None:
    """The stage's folder under its provisional name."""
    return next((folder for folder in _folders(out, stage) if folder.suffix == ".partial"), None)


def _folders(out: Path, stage: str) -> list[Path]:
    return [path for path in (out / "stages").glob(f"{stage}-*") if path.name.rpartition("-")[0] == stage]


def kept(out: Path) -> Kept:
    """The finished stages, the shards that the recording has noted, and how far each training is."""
    folder = finished(out, SIGNALS) or begun(out, SIGNALS)
    shards = [] if folder is None else [shard.path for shard in cache.finished_shards(folder).values()]
    seals = [path for path in (out / "stages").glob(f"*/{SEAL}") if path.parent.suffix != ".partial"]
    files = {f"{path.parent.stem}/{path.name}": _identity(path) for path in [*shards, *seals]}
    return Kept(files, {stage: _step(out, stage) for stage in TRAININGS})


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _step(out: Path, stage: str) -> int:
    if finished(out, stage) is not None:
        return sys.maxsize
    folder = begun(out, stage)
    state = None if folder is None else load_checkpoint(folder / "checkpoint.pt")
    return 0 if state is None else int(state["at"]["step"])


def torn(out: Path) -> list[str]:
    """What has its final name and is not whole: finished stages, what unfinished ones continue from, the outcome."""
    bad = [problem for stage in (out / "stages").glob("*") for problem in _torn_stage(stage)]
    if (out / "bundle").exists():
        try:
            check_files(open_bundle(out / "bundle"))
        except CompressorError as error:
            bad.append(str(error))
    if (out / "result.json").exists():
        bad += _torn_file(out / "result.json")
    if (out / "report.html").exists() and not (out / "report.html").read_text("utf-8").rstrip().endswith("</html>"):
        bad.append("report.html does not end")
    return bad


def _torn_stage(folder: Path) -> list[str]:
    """Of a finished stage every file is what its seal lists; of one that continues, every file can be read."""
    if folder.suffix == ".partial":
        continues = folder.name.rpartition("-")[0] in (SIGNALS, *TRAININGS)
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".tmp")]
        return [problem for path in files if continues for problem in _torn_file(path)]
    if not (folder / SEAL).is_file():
        return [f"{folder.name} has no seal"]
    listed = json.loads((folder / SEAL).read_bytes())["files"]
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    bad = [f"{folder.name}: {name} is not listed" for name in there - {SEAL, *listed}]
    bad += [f"{folder.name}: {name} is missing" for name in set(listed) - there]
    same = {name: _sha256(folder / name) == listed[name] for name in set(listed) & there}
    bad += [f"{folder.name}: {name} has another SHA-256" for name, is_same in same.items() if not is_same]
    return bad + [problem for name in there for problem in _torn_file(folder / name)]


def _torn_file(path: Path) -> list[str]:
    try:
        if path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".onnx":
            onnx.checker.check_model(path)
        elif path.suffix == ".pt":
            load_checkpoint(path)
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, "np") as file:
                [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 (no dict)
    except (ValueError, CompressorError, onnx.checker.ValidationError, safetensors.SafetensorError) as error:
        return [f"{path}: {error}"]
    return []


def made(out: Path) -> dict[str, Any]:
    """All that a run makes but what is measured: the seals, which list every file of a stage by its SHA-256, those of
    the bundle's files, and the result.
    """
    seals = {path.parent.name: path for path in (out / "stages").glob(f"*/{SEAL}")}
    stages = {name: _settled(json.loads(path.read_bytes())) for name, path in seals.items() if "benchmark" not in name}
    bundle = {path.name: _sha256(path) for path in (out / "bundle").iterdir()}
    return {**stages, "bundle": bundle, "result": _settled(json.loads((out / "result.json").read_bytes()))}


def _settled(value: Any) -> Any:
    """The same without what is measured, and without the seal's own SHA-256, which is over that too."""
    if isinstance(value, dict):
        return {key: _settled(inner) for key, inner in value.items() if key not in _MEASURED | {"sha256"}}
    return [_settled(inner) for inner in value] if isinstance(value, list) else value


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
