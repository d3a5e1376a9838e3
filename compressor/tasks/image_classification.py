"""Image classification: decoded pixels in, one of a fixed set of classes out; judged by accuracy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.artifacts import TensorSpec
from compressor.errors import DataError, first_line
from compressor.intake.npz import UNREADABLE, open_npz
from compressor.metrics import accuracy, same_top1
from compressor.preprocess import Feed, ImagePreprocessor, Preprocessor
from compressor.progress import Progress
from compressor.recipe import ImageClassificationRecipe
from compressor.recipe_data import DataSource
from compressor.tasks.base import TaskData, WholeInputs
from compressor.tasks.image_files import read_images
from compressor.tasks.sources import place
from compressor.tasks.tables import labels_learnt_from
from compressor.tasks.text import holdout_size


class ImageClassifier(nn.Module):
    """A network with scaling, normalisation and softmax in the graph, so that a device feeds what its decoder gives.

    pixels uint8 [batch, height, width, channels] -> logits, probabilities float32 [batch, classes]. The network gives
    the logits of float32 [batch, channels, height, width], or an output that has them, as Hugging Face models do.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", 255 * torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        given = self.network(self.normalised(pixels))
        logits = given if isinstance(given, Tensor) else given.logits
        return logits, logits.softmax(-1)

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the network is shown: float32 [batch, channels, height, width]."""
        return (pixels.permute(0, 3, 1, 2).to(torch.float32) - self.mean) / self.std


@dataclass(frozen=True)
class ImageClassification(WholeInputs):
    recipe: ImageClassificationRecipe
    metric_name = "accuracy"

    @property
    def views(self) -> int:
        return 2 if self.recipe.distill.mirror else 1

    def load_data(self, cache: Path, progress: Progress) -> TaskData:
        data = self.recipe.data
        with labels_learnt_from(data.label, "labels"):
            images, labels = self._read(data.train, self.recipe.distill.seed, cache, progress)
        if len(images) < 2 * self.recipe.distill.batch_size:
            raise DataError(f"{data.train}: expected at least two batches of images, got {len(images)}")
        eval_images, truth = self._read(data.eval, None, cache, progress)
        assert truth is not None
        progress.log(f"  {len(images):,} training images, {len(truth):,} for evaluation")
        return TaskData(
            train=images,
            labels=labels,
            holdout=holdout_size(len(images)),
            eval_inputs=eval_images,
            truth=truth,
            described={
                "training": f"{len(images):,} images {images.shape[1:]} of {place(data.train)}",
                "evaluation": f"{len(truth):,} images of {place(data.eval)}, {len(data.classes)} classes",
            },
        )

    def _read(
        self, source: DataSource, seed: int | None, cache: Path, progress: Progress
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images and labels. With a seed, for training: up to `max_train` of them, in an order that depends on it,
        without labels where none are learnt from.
        """
        labelled = seed is None or self.recipe.distill.needs_labels
        if source.path is None or source.path.suffix != ".npz":
            return read_images(self.recipe.data, source, seed, labelled, cache, progress)
        if self.recipe.data.streaming:
            raise DataError(f"{source}: an .npz is read whole; leave data.streaming out")
        images, labels = self._read_npz(source.path, labelled)
        if seed is None:
            return images, labels
        order = np.random.default_rng(seed).permutation(len(images))[: self.recipe.data.max_train]
        return images[order], None if labels is None else labels[order]

    def _read_npz(self, path: Path, labelled: bool) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
        """Images uint8 [N, height, width, channels] and, if they are `labelled`, int64 [N]. Raises DataError."""
        data, wanted = self.recipe.data, ("images", "labels") if labelled else ("images",)
        if not path.is_file():
            raise DataError(f"{path}: expected an .npz file with `images` and `labels`, found none")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: the file is empty; expected an .npz with `images` and `labels`")
        try:
            with open_npz(path, DataError) as archive:
                if missing := [name for name in wanted if name not in archive]:
                    raise DataError(f"{path}: missing array {', '.join(missing)}; it has {', '.join(archive)}", missing)
                images, labels = archive["images"], archive["labels"] if labelled else None
        except UNREADABLE as error:
            raise DataError(f"{path}: not an .npz of plain arrays: {first_line(error)}") from None
        if images.ndim == 3:
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
            raise DataError(f"{path}: expected images uint8 [N,H,W] or [N,H,W,C], got {images.dtype} {images.shape}")
        expected = (*data.size, len(data.mean))
        if images.shape[1:] != expected or len(data.std) != len(data.mean):
            raise DataError(
                f"{path}: images are {images.shape[1:]}, but data.size is {data.size}, data.mean has {len(data.mean)}"
                f" and data.std {len(data.std)} channels"
            )
        if labels is None:
            return images, None
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise DataError(f"{path}: expected {len(images)} integer labels, got {labels.dtype} {labels.shape}")
        if labels.min() < 0 or labels.max() >= len(data.classes):
            raise DataError(
                f"{path}: labels from {labels.min()} to {labels.max()}, but data.classes names {len(data.classes)}"
            )
        return images, labels.astype(np.int64)

    def deployable(self, model: nn.Module) -> nn.Module:
        return ImageClassifier(model, self.recipe.data.mean, self.recipe.data.std)

    def preprocessor(self, folder: Path | None) -> Preprocessor:  # noqa: ARG002 (the same for teacher and student)
        return self._shape()

    def _shape(self) -> ImagePreprocessor:
        height, width = self.recipe.data.size
        return ImagePreprocessor(height, width, len(self.recipe.data.mean), self.recipe.data.resize)

    def view(self, example: NDArray[Any], index: int) -> NDArray[Any]:
        return example[:, ::-1] if index else example

    def graph(self, width: int, preprocessor: Preprocessor) -> tuple[list[TensorSpec], list[TensorSpec]]:  # noqa: ARG002
        shape = self._shape()
        pixels = TensorSpec("pixels", "uint8", ("batch", shape.height, shape.width, shape.channels))
        return [pixels], [TensorSpec(name, "float32", ("batch", width)) for name in ("logits", "probabilities")]

    def shape_feeds(self, preprocessor: Preprocessor) -> list[Feed]:
        images = self.edge_inputs()
        return [preprocessor.collate(preprocessor.encode((images * 4)[:batch])) for batch in (1, 2, 7)]

    def edge_inputs(self) -> list[Any]:
        shape = self._shape()
        size = (shape.height, shape.width, shape.channels)
        noise = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
        ramp = np.resize(np.arange(256, dtype=np.uint8), size)
        checker = np.indices(size).sum(axis=0).astype(np.uint8) % 2 * 255
        return [np.zeros(size, np.uint8), np.full(size, 255, np.uint8), noise, ramp, checker]

    def answers(self, outputs: NDArray[np.float32], data: TaskData) -> NDArray[Any]:  # noqa: ARG002
        return np.asarray(outputs.argmax(axis=1))

    def metric(self, answers: NDArray[Any], truth: NDArray[Any]) -> float:
        return accuracy(answers, truth)

    def agreement(self, outputs: NDArray[np.float32], teacher: NDArray[np.float32]) -> float:
        return same_top1(outputs, teacher)

    def answer_settings(self, student: Path) -> dict[str, Any]:  # noqa: ARG002
        shape = self._shape()
        image = {"height": shape.height, "width": shape.width, "channels": shape.channels, "resize": shape.resize}
        return {"image": image, "classes": list(self.recipe.data.classes)}
