"""How a training goes, step by step, where TensorBoard shows it."""

from __future__ import annotations

from pathlib import Path

from tensorboardX import SummaryWriter


class Tracking:
    """Scalars by step into event files of `folder`; into nothing where that is None.

    A resumed training writes from `first_step` on; TensorBoard then forgets what an earlier run wrote of these steps.
    """

    def __init__(self, folder: Path | None, first_step: int) -> None:
        self._writer = (
            None
            if folder is None
            else SummaryWriter(
                str(folder),
                purge_step=first_step,
                filename_suffix=f".{first_step}",  # a name is a second's: two runs within one would share a file
            )
        )

    def scalars(self, step: int, **values: float) -> None:
        """Names with a double underscore become groups: `held_out__score` is shown as held_out/score."""
        if self._writer is None:
            return
        for name, value in values.items():
            self._writer.add_scalar(name.replace("__", "/"), value, step)

    def close(self) -> None:
        """Writes what is still in memory."""
        if self._writer is not None:
            self._writer.close()
