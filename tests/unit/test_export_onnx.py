"""torch to ONNX: the interface is the declared one, every shape is taken, nothing of this machine is in the file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compressor.artifacts import OnnxModel, TensorSpec
from compressor.errors import ExportError
from compressor.export import export_onnx
from compressor.preprocess import Feed

INPUTS = [
    TensorSpec("input_ids", "int64", ("batch", "sequence")),
    TensorSpec("attention_mask", "int64", ("batch", "sequence")),
]
OUTPUTS = [TensorSpec("pooled", "float32", ("batch", 8))]


class Encoder(nn.Module):
    """A table, a mask, a mean and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = nn.Embedding(50, 16), nn.Linear(16, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        weight = attention_mask.unsqueeze(-1).float()
        return (self.linear((self.table(input_ids) * weight).sum(1) / weight.sum(1)),)


class FixedBatch(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        return (super().forward(input_ids, attention_mask)[0][:1],)


class Unexportable(Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        if int(input_ids.sum()) % 2:  # depends on the data
            return super().forward(input_ids, attention_mask)
        return (torch.zeros(len(input_ids), 8),)


def feed(batch: int, sequence: int) -> Feed:
    generator = np.random.default_rng(batch * 100 + sequence)
    ids = generator.integers(0, 50, (batch, sequence))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


FEEDS = [feed(1, 1), feed(1, 9), feed(2, 5), feed(4, 12)]


def export(folder: Path, module: nn.Module | None = None, **changes: Any) -> OnnxModel:
    given = {"inputs": INPUTS, "outputs": OUTPUTS, "feeds": FEEDS, "opset": 20, **changes}
    return export_onnx(module or Encoder(), "student", path=folder / "student.onnx", **given)


def test_the_graph_answers_as_the_module_at_shapes_it_was_not_traced_on(tmp_path: Path) -> None:
    module = Encoder().eval()
    model = export(tmp_path, module)
    session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
    for case in (*FEEDS, feed(3, 30), feed(17, 2)):
        with torch.inference_mode():
            expected = module(**{name: torch.from_numpy(array) for name, array in case.items()})[0].numpy()
        np.testing.assert_allclose(session.run(None, case)[0], expected, rtol=1e-5, atol=1e-6)


def test_the_interface_is_the_declared_one(tmp_path: Path) -> None:
    model = export(tmp_path)
    assert model.inputs == tuple(INPUTS)
    assert model.outputs == tuple(OUTPUTS)
    assert model.bytes == model.path.stat().st_size
    assert model.parameters == 50 * 16 + 16 * 8 + 8 + sum_of_constants(model.path)


def sum_of_constants(path: Path) -> int:
    """What the exporter adds of its own, such as axes: whatever is no float."""
    return sum(int(np.prod(t.dims)) for t in onnx.load(path).graph.initializer if t.data_type != onnx.TensorProto.FLOAT)


@pytest.mark.parametrize("opset", [18, 20])
def test_the_opset_is_pinned(tmp_path: Path, opset: int) -> None:
    assert export(tmp_path, opset=opset).opset == opset
    loaded = onnx.load(tmp_path / "student.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    assert {entry.domain: entry.version for entry in loaded.opset_import}[""] == opset


def test_nothing_of_this_machine_is_in_the_file(tmp_path: Path) -> None:
    content = export(tmp_path).path.read_bytes()
    assert not re.search(rb"/[\w.-]+/[\w.-]+/[\w.-]+", content)
    assert b".py" not in content
    assert b"Traceback" not in content
    assert [p.name for p in tmp_path.iterdir()] == ["student.onnx"]


def test_nothing_is_printed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    export(tmp_path)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


@pytest.mark.parametrize(
    ("module", "changes", "words"),
    [
        (FixedBatch(), {}, "does not take|the batch is fixed|not valid|cannot export"),
        (Unexportable(), {}, "torch cannot export this model"),
        (
            None,
            {"outputs": [*OUTPUTS, TensorSpec("more", "float32", ("batch", 8))]},
            "expected inputs and outputs|cannot",
        ),
    ],
    ids=["fixed batch", "depends on data", "too many outputs"],
)
def test_what_cannot_be_exported_is_told(tmp_path: Path, module: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words) as raised:
        export(tmp_path, module, **changes)
    assert "\n" not in str(raised.value)
    assert str(raised.value).startswith("student: ")


def test_an_output_name_that_is_taken_inside_never_gives_a_wrong_model(tmp_path: Path) -> None:
    """The exporter names inner values itself; asked for such a name it may write a graph that contradicts itself."""
    module = Encoder().eval()
    inner = {name for node in onnx.load(export(tmp_path, module).path).graph.node for name in node.output}
    for name in sorted(inner - {"pooled"})[:4]:
        try:
            model = export(tmp_path, module, outputs=[TensorSpec(name, "float32", ("batch", 8))])
        except ExportError:
            continue
        session = onnxruntime.InferenceSession(model.path, providers=["CPUExecutionProvider"])
        expected = module(**{key: torch.from_numpy(array) for key, array in FEEDS[2].items()})[0].detach().numpy()
        np.testing.assert_allclose(session.run(None, FEEDS[2])[0], expected, rtol=1e-5, atol=1e-6)
