"""Whether the tensors of one call fit each other; said before anything is computed."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor

from compressor.kernels.settings import LossInputs, LossSettings, Reduction, SparseTeacher


def reduction(name: str) -> None:
    """Raises ValueError on a reduction that does not exist."""
    if name not in get_args(Reduction):
        raise ValueError(f"reduction must be one of {', '.join(get_args(Reduction))}; got {name!r}")


def inputs(given: LossInputs, settings: LossSettings) -> LossInputs:
    """The inputs in the form that the implementations take: no gradient but the student's, weights in float32, classes
    that the student lacks taken out of a sparse teacher.

    Raises ValueError on shapes, dtypes, devices or values that do not fit; values are looked at on the CPU only, since
    looking would stall another device.
    """
    student = given.student
    if student.ndim != 2 or student.shape[1] == 0:
        raise ValueError(f"student_logits must be [N, V] with V >= 1, got {list(student.shape)}; reshape them")
    if not student.is_floating_point():
        raise ValueError(f"student_logits must be floating, got {student.dtype}")
    others = (given.labels, given.row_weights, given.class_weights)
    for name, other in zip(("labels", "row_weights", "class_weights"), others, strict=True):
        if other is not None and other.device != student.device:
            raise ValueError(f"{name} must be on the student's device {student.device}, got {other.device}")
    if given.labels is not None:
        _labels(given.labels, student, settings)
    elif settings.hard_weight > 0:
        raise ValueError(
            f"hard_weight {settings.hard_weight} needs labels, got none; give them or set hard_weight to 0"
        )
    if isinstance(given.teacher, SparseTeacher):
        teacher: Tensor | SparseTeacher = _sparse(given.teacher, student, settings)
    else:
        teacher = _dense(given.teacher, student, settings)
    return replace(
        given,
        teacher=teacher,
        row_weights=_weights("row_weights", given.row_weights, len(student)),
        class_weights=_weights("class_weights", given.class_weights, student.shape[1]),
    )


def overwritable(student: Tensor) -> None:
    """Raises ValueError where a gradient may not take the memory of the logits."""
    remedy = "leave in_place away"
    if student.is_leaf:  # its values would be gone, and its gradient would be itself
        raise ValueError(f"in_place takes logits that a model has computed, got a leaf; {remedy}")
    if student.dtype == torch.float16:
        raise ValueError(f"in_place takes float32 or bfloat16, got float16, too narrow for a gradient; {remedy}")
    strides = sorted((stride, size) for size, stride in zip(student.shape, student.stride(), strict=True) if size > 1)
    if any(stride == 0 for stride, _ in strides) or (
        len(strides) == 2 and strides[0][0] * strides[0][1] > strides[1][0]
    ):
        raise ValueError(
            f"in_place takes logits that each have their own memory, got strides {student.stride()}; {remedy}"
        )


def _weights(name: str, weights: Tensor | None, count: int) -> Tensor | None:
    if weights is None:
        return None
    if weights.shape != (count,) or not weights.is_floating_point():
        raise ValueError(f"{name} must be floating [{count}], got {weights.dtype} {list(weights.shape)}")
    return weights.detach().float().contiguous()


def _labels(labels: Tensor, student: Tensor, settings: LossSettings) -> None:
    rows, classes = student.shape
    if labels.shape != (rows,) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64 [{rows}], got {labels.dtype} {list(labels.shape)}")
    if not _readable(labels):
        return
    wrong = labels[(labels != settings.ignore_index) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        raise ValueError(
            f"labels must be in 0..{classes - 1} or {settings.ignore_index} (ignored), got {int(wrong[0])}; "
            "check the label column"
        )


def _readable(values: Tensor) -> bool:
    return type(values) is Tensor and values.device.type == "cpu" and not torch.compiler.is_compiling()


def _dense(teacher: Tensor, student: Tensor, settings: LossSettings) -> Tensor:
    rows, classes = student.shape
    if teacher.ndim != 2 or len(teacher) != rows or teacher.shape[1] == 0 or not teacher.is_floating_point():
        raise ValueError(
            f"teacher must be floating logits [{rows}, V] with V >= 1, got {teacher.dtype} {list(teacher.shape)}"
        )
    if teacher.device != student.device:
        raise ValueError(f"teacher must be on the student's device {student.device}, got {teacher.device}")
    if teacher.shape[1] != classes:
        if settings.vocabulary == "error":
            raise ValueError(
                f"teacher must have the student's {classes} columns, got {teacher.shape[1]}; "
                "give both the same classes, or say vocabulary='truncate' or 'mask'"
            )
        masked = settings.vocabulary == "mask" and teacher.shape[1] < classes
        if masked and settings.at_the_ends().divergence == "reverse_kl":
            raise ValueError(
                f"reverse KL is infinite where the teacher has no mass: with {teacher.shape[1]} columns of {classes} "
                "say vocabulary='truncate'"
            )
    return teacher.detach()


def _sparse(teacher: SparseTeacher, student: Tensor, settings: LossSettings) -> SparseTeacher:
    rows, classes = student.shape
    if settings.divergence != "forward_kl":
        raise ValueError(f"a SparseTeacher takes forward_kl, got {settings.divergence}")
    if len(teacher.indices) != rows:
        raise ValueError(f"a SparseTeacher must have the student's {rows} rows, got {len(teacher.indices)}")
    for tensor in (teacher.indices, teacher.values):
        if tensor.device != student.device:
            raise ValueError(f"a SparseTeacher must be on the student's device {student.device}, got {tensor.device}")
    indices = teacher.indices.contiguous()
    if settings.vocabulary != "error":
        indices = torch.where(indices < classes, indices, -1)
    if _readable(indices):
        _known_classes(indices, classes, teacher.mode)
    wide = torch.promote_types(teacher.values.dtype, torch.float32)
    return SparseTeacher(indices, teacher.values.detach().to(wide).contiguous(), teacher.mode)


def _known_classes(indices: Tensor, classes: int, mode: str) -> None:
    if not indices.numel():
        return
    if int(indices.max()) >= classes:
        raise ValueError(
            f"a SparseTeacher's indices must be below the student's {classes} columns, got {int(indices.max())}; "
            "say vocabulary='truncate' or 'mask' to leave such classes out"
        )
    if mode != "sampled":
        ordered = indices.sort(dim=1).values
        if bool(((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()):
            raise ValueError(f"a row's indices must be distinct in mode {mode!r}; only 'sampled' may repeat one")
