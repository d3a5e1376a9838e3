"""Prints what a recipe's training data are, for a process of its own: `python stream_process.py RECIPE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from compressor.progress import SILENT
from compressor.recipe_file import read_recipe
from compressor.tasks import task_for

recipe = read_recipe(Path(sys.argv[1]))
data = task_for(recipe).load_data(recipe.out / "cache", SILENT)
print(json.dumps({"texts": list(data.train), "labels": None if data.labels is None else data.labels.tolist()}))
