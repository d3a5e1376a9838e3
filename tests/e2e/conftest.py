"""The fixtures live in `shared_runs`, from which tests can also import their types: `conftest` names no one module."""

from shared_runs import begun, finished, finished_runs, image_run, inputs, run, start

__all__ = ["begun", "finished", "finished_runs", "image_run", "inputs", "run", "start"]
