"""The fixtures live in modules from which tests can also import their types: `conftest` names no one module."""

from endpoint_runs import small_classifier
from shared_runs import begun, finished, finished_runs, image_run, inputs, run, start

__all__ = ["begun", "finished", "finished_runs", "image_run", "inputs", "run", "small_classifier", "start"]
