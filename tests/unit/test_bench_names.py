"""Names of the models that `compressor bench` compares."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor.bench_options import distinct_names
from compressor.errors import UsageError


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["/a/m.onnx"], ["m"]),
        (["/a/m.onnx", "/a/n.onnx"], ["m", "n"]),
        (["/runs/x/bundle", "/runs/y/bundle"], ["x/bundle", "y/bundle"]),
        (["/r/x/bundle", "/s/x/bundle", "/s/t.onnx"], ["r/x/bundle", "s/x/bundle", "/s/t"]),
    ],
)
def test_as_many_parts_as_tell_them_apart(paths: list[str], names: list[str]) -> None:
    assert distinct_names([Path(path) for path in paths]) == names


def test_one_model_named_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="named twice"):
        distinct_names([Path("/a/m.onnx"), Path("/a/m.onnx")])
