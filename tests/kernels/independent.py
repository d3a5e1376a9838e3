"""The distillation loss in NumPy, float64, written from the formulas alone: value and gradient by hand."""

import numpy as np
import torch
from scipy.special import log_softmax, xlogy

from compressor.kernels.settings import LossInputs, LossSettings


def _soft(s, t, settings, policy_width):
    """D and d D / d s of one row of scaled logits; s may be longer than what the divergence sees."""
    width, temperature = policy_width, settings.temperature
    log_q = log_softmax(s[:width] / temperature)
    log_p = np.full(width, -np.inf)
    log_p[: len(t)] = log_softmax(t / temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    settings = settings.at_the_ends()
    with np.errstate(divide="ignore", invalid="ignore"):
        if settings.divergence == "forward_kl":
            value, slope = np.where(p > 0, p * (log_p - log_q), 0).sum(), None
            gradient = q - p
        elif settings.divergence == "reverse_kl":
            value = np.where(q > 0, q * (log_q - log_p), 0).sum()
            slope = np.where(q > 0, log_q - log_p, 0)
        elif settings.divergence == "total_variation":
            value, slope = np.abs(p - q).sum() / 2, np.sign(q - p) / 2
        else:
            beta = settings.beta
            m = beta * p + (1 - beta) * q
            value = (xlogy(p, p / m) / (1 - beta) + xlogy(q, q / m) / beta)[m > 0].sum()
            slope = np.where(q > 0, np.log(q / m) / beta, 0)
        if slope is not None:
            gradient = q * (slope - (q * slope).sum())
    whole = np.zeros(len(s))
    whole[:width] = gradient / temperature
    return value, whole


def _hard(s, label, settings, class_weights):
    log_p = log_softmax(s)
    target = class_weights * settings.label_smoothing / len(s)
    target[label] += class_weights[label] * (1 - settings.label_smoothing)
    return -(target * log_p)[target > 0].sum(), target.sum() * np.exp(log_p) - target


def dense(inputs: LossInputs, settings: LossSettings):
    """Losses [N] and gradient [N, V] of a dense teacher."""
    student, teacher = (x.detach().double().numpy() for x in (inputs.student, inputs.teacher))
    rows, width = student.shape
    labels = None if inputs.labels is None else inputs.labels.numpy()
    row_weights = np.ones(rows) if inputs.row_weights is None else inputs.row_weights.double().numpy()
    class_weights = np.ones(width) if inputs.class_weights is None else inputs.class_weights.double().numpy()
    common = min(width, teacher.shape[1])
    seen = width if settings.vocabulary == "mask" else common
    losses, gradient = np.zeros(rows), np.zeros((rows, width))
    for row in range(rows):
        if labels is not None and labels[row] == settings.ignore_index:
            continue
        s = student[row] * settings.student_scale
        if settings.soft_weight:
            value, slope = _soft(s, teacher[row, :common] * settings.teacher_scale, settings, seen)
            losses[row] += settings.soft_weight * value
            gradient[row] += settings.soft_weight * settings.student_scale * slope
        if settings.hard_weight:
            value, slope = _hard(s, labels[row], settings, class_weights)
            losses[row] += settings.hard_weight * value
            gradient[row] += settings.hard_weight * settings.student_scale * slope
        losses[row] *= row_weights[row]
        gradient[row] *= row_weights[row]
    return losses, gradient


def sparse(student, indices, values, mode, settings):
    """Losses [N] and gradient [N, V] of a sparse teacher without a hard part; indices [N, K] with -1 for padding."""
    logits, temperature = student.detach().double().numpy() * settings.student_scale, settings.temperature
    rows, width = logits.shape
    losses, gradient = np.zeros(rows), np.zeros((rows, width))
    for row in range(rows):
        there = indices[row] >= 0
        known, value = indices[row][there].numpy(), values[row][there].double().numpy()
        log_q = log_softmax(logits[row] / temperature)
        q = np.exp(log_q)
        if mode == "zero":
            value = log_softmax(value * settings.teacher_scale / temperature)
        p = np.exp(value)
        target = np.zeros(width)
        np.add.at(target, known, p)
        if mode == "sampled":
            losses[row] = -(p * log_q[known]).sum()
        else:
            losses[row] = (p * (value - log_q[known])).sum()
        if mode == "ghost":
            elsewhere = np.setdiff1d(np.arange(width), known)
            rest, student_rest = 1 - p.sum(), q[elsewhere].sum()
            if rest >= 1e-6:
                losses[row] += rest * np.log(rest / student_rest)
                target[elsewhere] = rest * q[elsewhere] / student_rest
        gradient[row] = (target.sum() * q - target) / temperature
    return settings.soft_weight * losses, settings.soft_weight * settings.student_scale * gradient


def randn(*shape, seed, scale=3.0, dtype=torch.float32):
    """Normal numbers from a seed of their own."""
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
