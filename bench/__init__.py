"""Measurements of this program: one module per question, run by `python -m bench CASE`."""
