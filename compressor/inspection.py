"""What a model file or a bundle is made of, with the base installation; bytes per part where `onnx` is installed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compressor.bundle.manifest import check_files, check_one_file, open_bundle
from compressor.bundle.verify import certified
from compressor.device.manifest import MANIFEST
from compressor.error_attribution import Closeness, ErrorAttribution, NoisyLayer
from compressor.errors import BundleError, UsageError, printable
from compressor.intake.trial import admit_onnx
from compressor.onnxrt import open_session
from compressor.report.rows import remedy_line

# How many of a model's largest tensors are named.
_TENSORS = 12


def inspect_path(path: Path) -> dict[str, Any]:
    """Facts about an .onnx file or a bundle folder. Raises UsageError for anything else, BundleError if damaged."""
    if (path / MANIFEST).is_file():
        bundle = open_bundle(path)
        check_files(bundle)
        manifest = bundle.manifest
        facts = admit_onnx(model := path / manifest.model, BundleError)
        check_one_file(model, facts)
        lineage = {key: value for key, value in asdict(manifest.lineage).items() if key != "source"}
        return {
            "bundle": path.resolve().name,
            "task": manifest.task,
            "precision": manifest.precision,
            "files": {entry.name: entry.bytes for entry in manifest.files},
            "evidence": manifest.evidence,
            "lineage": {"teacher": manifest.lineage.source, **lineage},
            "built_with": manifest.built_with,
            **({"integer products": claims} if (claims := certified(bundle)) else {}),
            **inspect_opened(model, facts.bytes),
        }
    if path.is_file() and path.suffix == ".onnx":
        return inspect_opened(path, admit_onnx(path, BundleError).bytes)
    if not path.exists():
        found = "nothing"
    elif path.is_dir():
        found = "a folder without a manifest"
    else:
        found = f"a {path.suffix} file" if path.is_file() else "a pipe or a device"
    raise UsageError(f"{path}: expected an .onnx file or a bundle folder, found {found}")


def error_lines(found: ErrorAttribution, untold: Sequence[str] = ()) -> list[str]:
    """Where a quantized model's error comes from, for a reader; `untold`: the nodes of which that cannot be said."""
    now = found.now
    lines = [f"agreement with float32  {now.agreement:.6f}{_output_snr(now)}"]
    if found.layers:
        lines.append("layers that err, noisiest first: SNR of what each adds; of the model with it alone in float32")
        lines += [
            f"  {layer.snr_db:6.1f} dB  {layer.operator} {layer.node}{_then(layer, now)}" for layer in found.layers
        ]
    elif now.snr_db is not None and not untold:
        lines.append("none of float32's layers that err is known by its name in this model")
    if untold:
        lines.append(
            f"not told of {', '.join(untold)}: the model was scaled between layers, and what these read cannot be seen"
        )
    return list(map(printable, [*lines, remedy_line(found)]))


def _then(layer: NoisyLayer, now: Closeness) -> str:
    then = layer.in_float32
    if then is None:
        return ""
    return f": agreement {then.agreement:.6f}{_output_snr(then)}, {then.bytes - now.bytes:+,} bytes"


def _output_snr(closeness: Closeness) -> str:
    return "" if closeness.snr_db is None else f", {closeness.snr_db:.1f} dB"


def inspection_lines(found: dict[str, Any]) -> list[str]:
    """The facts for a reader, each on its line whatever its names hold."""
    lines: list[str] = []
    for name, value in found.items():
        if name == "bytes_by_part" and isinstance(value, dict):
            lines += [
                "bytes by part",
                *(f"  {size:12,}  {size / found['bytes']:6.1%}  {part}" for part, size in value.items()),
            ]
        elif name == "largest_tensors":
            lines += ["largest tensors", *map(_tensor_line, value)]
        elif name == "would_save":
            lines += ["would save", *(f"  {one['saves_bytes']:12,}  {one['words']}" for one in value)] if value else []
        elif isinstance(value, dict):
            lines += [name, *_indented(value, "  ")]
        elif isinstance(value, list):
            lines += [f"{name}  {item}" for item in value]
        else:
            lines.append(f"{name}  {value}")
    return list(map(printable, lines))


def _indented(values: dict[str, Any], indent: str) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _indented(value, indent + "  ")
        else:
            yield f"{indent}{key}: {value}"


def _tensor_line(tensor: dict[str, Any]) -> str:
    shape = "x".join(map(str, tensor["shape"])) or "scalar"
    readers = ", ".join(tensor["readers"]) or "nothing"
    return f"  {tensor['bytes']:12,}  {tensor['dtype']} {shape}  {tensor['name']}, read by {readers}"


def inspect_opened(path: Path, size: int) -> dict[str, Any]:
    """Facts about an .onnx file that may be opened here, of so many bytes with the files beside it that hold tensors.
    Raises BundleError where it cannot be.
    """
    session = open_session(path)
    facts: dict[str, Any] = {
        "model": path.name,
        "bytes": size,
        "inputs": [f"{value.name} {value.type} {value.shape}" for value in session.get_inputs()],
        "outputs": [f"{value.name} {value.type} {value.shape}" for value in session.get_outputs()],
    }
    try:
        import onnx

        from compressor.xray import xray
    except ImportError:
        facts["bytes_by_part"] = "install compressor[train] to see them"
        return facts
    model = onnx.load(path, load_external_data=False)
    facts["opset"] = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    facts["nodes"] = len(model.graph.node)
    found = xray(path)
    facts["bytes_by_part"] = found.parts
    largest = sorted(found.tensors, key=lambda tensor: -tensor.bytes)[:_TENSORS]
    facts["largest_tensors"] = [asdict(tensor) for tensor in largest]
    facts["would_save"] = [asdict(remedy) for remedy in found.remedies]
    return facts
