"""One training as a run of MLflow, where MLFLOW_TRACKING_URI says that the user wants it.

MLflow is nobody's dependency here. What goes wrong with it costs one line, and from then on the run is without it: a
training is worth more than its curve.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compressor.progress import Progress, without_chatter

_AT_ONCE = 100, 1000  # parameters and metrics that a server takes in one call
_LONGEST_VALUE = 500  # characters of a parameter, for servers of any age
# Unless the user has set them: MLflow would try for minutes to reach a server that is gone, and tell its makers of use.
_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


class MlflowRun:
    """The run that `note` names, from an earlier part of the same training, or a new one whose id is written there.

    The experiment is MLFLOW_EXPERIMENT_ID's, or the one that MLFLOW_EXPERIMENT_NAME names ("compressor" unless set). No
    user, machine or path is told, unless `parameters` do. Nothing here raises; what fails is said to `progress`, once.
    """

    def __init__(self, note: Path, name: str, parameters: Mapping[str, str], progress: Progress) -> None:
        self._progress = progress
        self._waiting: list[tuple[str, float, int, int]] = []  # name, value, milliseconds since 1970, step
        self._client: Any = None
        self._id = ""
        self._try(lambda: self._open(note, name, parameters))

    def _open(self, note: Path, name: str, parameters: Mapping[str, str]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient()
        if not (note.is_file() and self._goes_on(client, note.read_text(encoding="utf-8"))):
            self._id = client.create_run(_experiment(client), run_name=name).info.run_id
            told = [Param(key, value[:_LONGEST_VALUE]) for key, value in parameters.items()]
            for first in range(0, len(told), _AT_ONCE[0]):
                client.log_batch(self._id, params=told[first : first + _AT_ONCE[0]])
            note.write_text(self._id, encoding="utf-8")
        self._client = client

    def _goes_on(self, client: Any, run_id: str) -> bool:
        """Whether the server knows the run; it may have been deleted, or this is another server."""
        from mlflow.exceptions import MlflowException

        try:
            client.update_run(run_id, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        self._id = run_id
        return True

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps them for the next `flush`: a call for each step would hold the training back."""
        if self._client is not None:
            self._waiting += [(name, value, int(1000 * time.time()), step) for name, value in values.items()]

    def flush(self) -> None:
        """Sends what is waiting."""
        if self._client is not None and self._waiting:
            self._try(self._send)
        self._waiting.clear()

    def _send(self) -> None:
        from mlflow.entities import Metric

        for first in range(0, len(self._waiting), _AT_ONCE[1]):
            several = [Metric(*values) for values in self._waiting[first : first + _AT_ONCE[1]]]
            self._client.log_batch(self._id, metrics=several)

    def close(self, status: str) -> None:
        """`status` as MLflow has it: FINISHED, FAILED or KILLED."""
        self.flush()
        if self._client is not None:
            self._try(lambda: self._client.set_terminated(self._id, status))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            with _settings(), without_chatter():
                call()
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("mlflow"):
                self._give_up(error)
                return
            self._client = None
            self._progress.log("  MLFLOW_TRACKING_URI is set, but MLflow is not installed: pip install mlflow-skinny")
        except Exception as error:  # of a server, a proxy, a store, a package: whatever it is, the training goes on
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._client = None
        reason = _without_secrets(" ".join(str(error).split()))[:300]
        self._progress.log(f"  the training goes on without MLflow: {type(error).__name__}: {reason}")


def open_run(note: Path, name: str, parameters: Mapping[str, str], progress: Progress) -> MlflowRun | None:
    """The run of a training; None where MLFLOW_TRACKING_URI is not set."""
    return MlflowRun(note, name, parameters, progress) if os.environ.get("MLFLOW_TRACKING_URI") else None


def _experiment(client: Any) -> str:
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "compressor")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))


def _without_secrets(message: str) -> str:
    """MLflow puts the server's address into what it says, with the password that may be in it."""
    for name in _SECRETS:
        if value := os.environ.get(name):
            message = message.replace(value, "***")
    return re.sub(r"//[^/\s]*@", "//***@", message)


@contextmanager
def _settings() -> Iterator[None]:
    missing = {name: value for name, value in _SETTINGS.items() if name not in os.environ}
    os.environ.update(missing)
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)
