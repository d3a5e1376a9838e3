"""How a training goes, step by step, where TensorBoard shows it, and MLflow if that is wanted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tensorboardX import SummaryWriter

from compressor.distill.mlflow_run import MlflowRun, open_run
from compressor.distill.training_inputs import Workplace


class Tracking:
    """Takes scalars by step; what has no writer and no run forgets them."""

    def __init__(self, writer: SummaryWriter | None = None, run: MlflowRun | None = None) -> None:
        self._writer, self._run = writer, run

    def scalars(self, step: int, **values: float) -> None:
        """Names with a double underscore become groups: `held_out__score` is shown as held_out/score."""
        named = {name.replace("__", "/"): value for name, value in values.items()}
        if self._writer is not None:
            for name, value in named.items():
                self._writer.add_scalar(name, value, step)
        if self._run is not None:
            self._run.scalars(step, named)

    def flush(self) -> None:
        """Shows what is still in memory."""
        if self._writer is not None:
            self._writer.flush()
        if self._run is not None:
            self._run.flush()

    def close(self, status: str) -> None:
        """The last flush; `status` as `MlflowRun.close` takes it."""
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.close(status)


@contextmanager
def tracking(place: Workplace | None, first_step: int) -> Iterator[Tracking]:
    """Event files in `place.events` and a run of MLflow, while a training goes on; neither where `place` is None.

    A resumed training writes from `first_step` on; TensorBoard then forgets what an earlier run wrote of these steps.
    """
    writer = run = None
    if place is not None and place.events is not None:
        writer = SummaryWriter(
            str(place.events),
            purge_step=first_step,
            filename_suffix=f".{first_step}",  # a name is a second's: two runs within one would share a file
        )
        run = open_run(place.mlflow_note, place.events.name, place.parameters, place.progress)
    tracked, status = Tracking(writer, run), "FAILED"
    try:
        yield tracked
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracked.close(status)
