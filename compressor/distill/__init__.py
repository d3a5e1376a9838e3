"""Distillation: record what the teacher answers, then train the student on it."""

from __future__ import annotations

from compressor.distill import respelled, team
from compressor.distill.batches import steps_per_epoch
from compressor.distill.cache import SignalReader, intact
from compressor.distill.record import (
    ALONE,
    Crew,
    Inputs,
    answers_at,
    outputs_of,
    record_signals,
    whole_answers,
    write_outputs,
)
from compressor.distill.sharding import sharded
from compressor.distill.taps import Taps, inside_signals, tap_pairs
from compressor.distill.texts import read_texts, write_texts
from compressor.distill.training import check_precision, train
from compressor.distill.training_inputs import TrainingData, Workplace

__all__ = [
    "ALONE",
    "Crew",
    "Inputs",
    "SignalReader",
    "Taps",
    "TrainingData",
    "Workplace",
    "answers_at",
    "check_precision",
    "inside_signals",
    "intact",
    "outputs_of",
    "read_texts",
    "record_signals",
    "respelled",
    "sharded",
    "steps_per_epoch",
    "tap_pairs",
    "team",
    "train",
    "whole_answers",
    "write_outputs",
    "write_texts",
]
