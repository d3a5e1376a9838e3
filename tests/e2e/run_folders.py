"""What a run folder may and may not hold."""

from __future__ import annotations

from pathlib import Path

import onnx
from command_runs import Ended


def assert_one_clear_line(ended: Ended, code: int) -> str:
    """The documented exit code, one line for the user at the end of stderr, no traceback; returns that line."""
    assert ended.code == code, ended.stderr
    assert "Traceback" not in ended.stderr
    said = [line for line in ended.lines if line.startswith("compressor: ")]
    assert said == ended.lines[-1:], ended.stderr
    assert "internal error" not in said[0]
    return said[0]


def assert_nothing_half_written(out: Path) -> None:
    """No result and no bundle, no temporary files, and every stage under its final name is whole."""
    assert not [name for name in ("result.json", "report.html", "bundle") if (out / name).exists()]
    assert_whole(out)


def assert_whole(out: Path) -> None:
    names = [path.name for path in out.rglob("*")]
    assert not [name for name in names if name.endswith((".tmp", ".new", ".old"))]
    for stage in (out / "stages").glob("*"):
        assert stage.suffix == ".partial" or (stage / "artifact.json").is_file()


def weights_of(out: Path, stage: str = "distill") -> bytes:
    """The trained student's weights in a finished run."""
    (folder,) = [path for path in (out / "stages").glob(f"{stage}-*") if (path / "artifact.json").is_file()]
    return (folder / "model.safetensors").read_bytes()


def sizes_of_students(out: Path) -> dict[str, int]:
    """Bytes of the float32 student as it ships and of the quantized ones, by the name of their file; less those of the
    Muls that divide activations, which depend on the data.
    """
    stages = out / "stages"
    files = [*stages.glob("rewrite-*/student.onnx"), *stages.glob("quantize-*/student-*.onnx")]
    return {path.stem: path.stat().st_size - _bytes_of_migration(path) for path in files}


def _bytes_of_migration(path: Path) -> int:
    graph = onnx.load(path).graph
    muls = [node.ByteSize() for node in graph.node if node.name.endswith("_migrated")]
    return sum(muls) + sum(one.ByteSize() for one in graph.initializer if one.name.endswith("_migration"))
