"""What the Triton kernels do to one tile of a row: statistics of two softmaxes, divergences, gradients, in float32.

A tile is [G, L], cut from a row in order. Statistics are kept for each of its G groups, and put together once a row: so
a group of 8 columns, the 16 bytes of half-precision logits that a thread loads at once, costs no exchange between
threads while a row is read.

Exponentials are powers of two of (logit - maximum) * factor, factor = scale / T * log2(e). The cross sum of forward KL,

    C = sum e_t log2(e_t / e_s),  e = 2^((logit - maximum) * factor),  KL = ln 2 * C / sum e_t + ln(sum e_s / sum e_t)

moves with both maxima: it gains sum e_t times what the logarithm gains, then shrinks as e_t does. So logits far from 0
cost no accuracy. Reverse KL has the roles swapped.
"""

from __future__ import annotations

import triton
import triton.language as tl

from compressor.kernels.triton_arguments import Numbers

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SEED = tl.constexpr(-1e30)  # a maximum before the first logit; -inf would make 0 * inf of its products
LARGEST_RATIO = tl.constexpr(115.0)  # in bits: what lies beyond it changes no jsd in float32
LANES = tl.constexpr(8)  # columns of a group


@triton.jit
def _online(maximum: tl.tensor, total: tl.tensor, values: tl.tensor, factor: tl.tensor) -> tl.tuple:
    """A softmax's maximum and denominator [G] after the tile [G, L]; what older terms keep, [G]; the powers, [G, L]."""
    new = tl.maximum(maximum, tl.max(values, axis=1))
    kept = tl.exp2((maximum - new) * factor)
    powers = tl.exp2((values - new[:, None]) * factor)
    return new, total * kept + tl.sum(powers, axis=1), kept, powers


@triton.jit
def _moved(cross: tl.tensor, kept: tl.tensor) -> tl.tensor:
    """cross * kept, and 0 where nothing is kept, even of an infinite sum."""
    return tl.where(kept == 0, 0.0, cross * kept)


@triton.jit
def seeds(groups: tl.constexpr) -> tl.tuple:
    """The statistics of no columns: student's and teacher's maximum and sum, cross sum, CE's maximum and sum, and the
    sum that label smoothing needs; [groups] each.
    """
    low = tl.full([groups], SEED, tl.float32)
    zero = tl.zeros([groups], tl.float32)
    return low, zero, low, zero, zero, low, zero, zero


@triton.jit
def load_tile(
    student: tl.tensor,
    teacher: tl.tensor,
    columns: tl.tensor,
    sizes: tl.tuple,
    masked: tl.constexpr,
    variant: tl.constexpr,
) -> tl.tuple:
    """The student's logits in the soft part, all of its logits, and the teacher's, -inf where there are none; and which
    columns exist. `sizes`: the row's first column, its end, and the end of the columns that the teacher has too.

    Against a ghost, `teacher` is a bit for each column, and the student's logits at the unknown ones come in its place.
    """
    first, end, common_end = sizes
    inside = columns < end
    shared = columns < common_end
    if variant.shifted:
        inside = inside & (columns >= first)
        shared = shared & (columns >= first)
    if masked:
        everything = tl.load(student + columns, mask=inside, other=-float("inf")).to(tl.float32)
    else:
        everything = tl.load(student + columns).to(tl.float32)
    soft = everything
    other = everything
    if variant.divergence == "ghost":
        group = tl.min(columns, axis=1)[:, None]  # its 8 columns share a word
        word = tl.load(teacher + group // 32, mask=group < end, other=0)
        other = tl.where(((word >> (columns % 32)) & 1) == 0, everything, -float("inf"))
    elif variant.divergence != "none" and variant.divergence != "known":
        if masked:
            other = tl.load(teacher + columns, mask=shared, other=-float("inf")).to(tl.float32)
            if variant.truncated:
                soft = tl.where(shared, everything, -float("inf"))
        else:
            other = tl.load(teacher + columns).to(tl.float32)
    return soft, everything, other, inside


@triton.jit
def load_weights(class_weights: tl.tensor, columns: tl.tensor, inside: tl.tensor, masked: tl.constexpr) -> tl.tensor:
    """The class weights of a tile, 1 where there are none."""
    if class_weights is None:
        weights = tl.full(columns.shape, 1.0, tl.float32)
    elif masked:
        weights = tl.load(class_weights + columns, mask=inside, other=0.0)
    else:
        weights = tl.load(class_weights + columns)
    return weights


@triton.jit
def update(
    state: tl.tuple,
    tile: tl.tuple,
    weights: tl.tensor,
    anchor: tl.tensor,
    numbers: Numbers,
    masked: tl.constexpr,
    variant: tl.constexpr,
) -> tl.tuple:
    """The statistics after one more tile. `anchor` is what label smoothing's sum of logits is taken from."""
    s_max, s_sum, t_max, t_sum, cross, h_max, h_sum, smooth = state
    soft, everything, teacher, inside = tile
    if variant.divergence != "none":
        s_new, s_total, s_kept, s_powers = _online(s_max, s_sum, soft, numbers.student_factor)
        if variant.divergence != "known":
            t_new, t_total, t_kept, t_powers = _online(t_max, t_sum, teacher, numbers.teacher_factor)
            gained = (t_max - t_new) * numbers.teacher_factor - (s_max - s_new) * numbers.student_factor
            t_bits = (teacher - t_new[:, None]) * numbers.teacher_factor
            s_bits = (soft - s_new[:, None]) * numbers.student_factor
            if variant.divergence == "forward_kl":
                terms = tl.where(t_powers == 0, 0.0, t_powers * (t_bits - s_bits))
                cross = _moved(cross + t_sum * gained, t_kept) + tl.sum(terms, axis=1)
            if variant.divergence == "reverse_kl":
                terms = tl.where(s_powers == 0, 0.0, s_powers * (s_bits - t_bits))
                cross = _moved(cross - s_sum * gained, s_kept) + tl.sum(terms, axis=1)
            t_max, t_sum = t_new, t_total
        if variant.hard == "squared":
            h_sum = h_sum * (s_kept * s_kept) + tl.sum(s_powers * s_powers, axis=1)
        s_max, s_sum = s_new, s_total
    if variant.hard == "own":
        h_max, h_sum, _, _ = _online(h_max, h_sum, everything, numbers.hard_factor)
    if variant.smoothed:
        apart = everything - anchor
        if masked:
            apart = tl.where(inside, apart, 0.0)
        smooth += tl.sum(weights * apart, axis=1)
    return s_max, s_sum, t_max, t_sum, cross, h_max, h_sum, smooth


@triton.jit
def _joined(maximum: tl.tensor, total: tl.tensor, factor: tl.tensor) -> tl.tuple:
    """Maximum and denominator of all groups, and what each group's terms keep."""
    top = tl.max(maximum, axis=0)
    kept = tl.exp2((maximum - top) * factor)
    return top, tl.sum(total * kept, axis=0), kept


@triton.jit
def together(state: tl.tuple, numbers: Numbers, variant: tl.constexpr) -> tl.tuple:
    """The statistics of all groups as one: eight scalars."""
    s_max, s_sum, t_max, t_sum, cross, h_max, h_sum, smooth = state
    s_top, s_total, s_kept = _joined(s_max, s_sum, numbers.student_factor)
    t_top, t_total, t_kept = _joined(t_max, t_sum, numbers.teacher_factor)
    gained = (t_max - t_top) * numbers.teacher_factor - (s_max - s_top) * numbers.student_factor
    if variant.divergence == "reverse_kl":
        cross_total = tl.sum(_moved(cross - s_sum * gained, s_kept), axis=0)
    else:
        cross_total = tl.sum(_moved(cross + t_sum * gained, t_kept), axis=0)
    if variant.hard == "own":
        h_top, h_total, _ = _joined(h_max, h_sum, numbers.hard_factor)
    elif variant.hard == "squared":
        h_top, h_total = s_top, tl.sum(h_sum * (s_kept * s_kept), axis=0)
    else:
        h_top, h_total = s_top, s_total
    return s_top, s_total, t_top, t_total, cross_total, h_top, h_total, tl.sum(smooth, axis=0)


@triton.jit
def _log_mixture(bits: tl.tensor, share: tl.tensor) -> tl.tensor:
    """log(1 - share + share * 2^bits), bits <= 0; where that is the log of almost 1, what rounding took is put back."""
    power = tl.exp2(bits)
    u = share * (power - 1.0)
    close = u > -0.5
    mixture = tl.where(close, 1.0 + u, (1.0 - share) + share * power)
    return tl.log(mixture) + tl.where(close, u - (mixture - 1.0), 0.0)


@triton.jit
def _slopes(p: tl.tensor, q: tl.tensor, bits: tl.tensor, numbers: Numbers, variant: tl.constexpr) -> tl.tuple:
    """g with dD / d(student's logit / T) = q (g - sum q g), and the terms of D; `bits` is log2(p / q).

    jsd: g = log(q / m) / beta; log m is taken from the larger of p and q, the other one's share then being below 1.
    """
    if variant.divergence == "total_variation":
        g = tl.where(q > p, 0.5, tl.where(q < p, -0.5, 0.0))
        terms = tl.abs(p - q) * 0.5
    else:
        bits = tl.minimum(tl.maximum(bits, -LARGEST_RATIO), LARGEST_RATIO)
        below = bits < 0
        from_larger = _log_mixture(-tl.abs(bits), tl.where(below, numbers.beta, numbers.other_beta))
        g = (from_larger + tl.where(below, 0.0, bits * LN2)) * -numbers.per_beta
        above_p = from_larger - tl.where(below, bits * LN2, 0.0)
        terms = q * g - p * (above_p * numbers.per_other_beta)
    return g, terms


@triton.jit
def _probabilities(tile: tl.tuple, row: tl.tuple, numbers: Numbers, variant: tl.constexpr) -> tl.tuple:
    """p, q, log2(p / q), and the student's powers before they were divided; `row` is what `together` gave."""
    soft, _, teacher, _ = tile
    s_max, s_sum, t_max, t_sum, _, _, _, _ = row
    s_bits = (soft - s_max) * numbers.student_factor
    s_powers = tl.exp2(s_bits)
    q = s_powers * (1.0 / s_sum)
    p, bits = q, s_bits  # with a sparse teacher nobody asks
    if variant.divergence != "known":
        t_bits = (teacher - t_max) * numbers.teacher_factor
        p = tl.exp2(t_bits) * (1.0 / t_sum)
        bits = t_bits - s_bits + tl.log2(s_sum / t_sum)
    return p, q, bits, s_powers


@triton.jit
def values(
    sums: tl.tuple,
    tile: tl.tuple,
    row: tl.tuple,
    numbers: Numbers,
    variant: tl.constexpr,
) -> tl.tuple:
    """jsd and total variation: the sums [G] of D and of q g after one more tile."""
    p, q, bits, _ = _probabilities(tile, row, numbers, variant)
    g, terms = _slopes(p, q, bits, numbers, variant)
    value, mean = sums
    return value + tl.sum(terms, axis=1), mean + tl.sum(q * g, axis=1)


@triton.jit
def kl(row: tl.tuple, variant: tl.constexpr) -> tl.tensor:
    """Forward or reverse KL of a row from its statistics."""
    _, s_sum, _, t_sum, cross, _, _, _ = row
    if variant.divergence == "reverse_kl":
        value = LN2 * (cross / s_sum) + tl.log(t_sum / s_sum)
    else:
        value = LN2 * (cross / t_sum) + tl.log(s_sum / t_sum)
    return value


@triton.jit
def gradient_tile(
    tile: tl.tuple,
    columns: tl.tensor,
    weights: tl.tensor,
    row: tl.tuple,
    soft_terms: tl.tuple,
    hard_terms: tl.tuple,
    numbers: Numbers,
    variant: tl.constexpr,
) -> tl.tensor:
    """d(row loss) / d(student's logits) of a tile.

    `soft_terms`: what the soft part is multiplied by; D (reverse KL) or a ghost's mass on the unknown classes; sum q g
    or, for a sparse teacher, what q is multiplied by. `hard_terms`: what CE's softmax is multiplied by, what smoothing
    takes off times the class weight, what comes off at the label, and the label's column.
    """
    soft_scale, value, mean = soft_terms
    hard_scale, spread, at_label, label = hard_terms
    gradient = tl.zeros(columns.shape, tl.float32)
    if variant.divergence != "none":
        p, q, bits, s_powers = _probabilities(tile, row, numbers, variant)
        if variant.divergence == "forward_kl":
            gradient = soft_scale * (q - p)
        elif variant.divergence == "reverse_kl":
            gradient = soft_scale * tl.where(q == 0, 0.0, q * (-LN2 * bits - value))
        elif variant.divergence == "known":
            gradient = soft_scale * (q * mean)
        elif variant.divergence == "ghost":
            gradient = soft_scale * (q * mean - p * value)
        else:
            g, _ = _slopes(p, q, bits, numbers, variant)
            gradient = soft_scale * (q * (g - mean))
        if variant.hard == "same":
            gradient += s_powers * hard_scale
        if variant.hard == "squared":
            gradient += s_powers * s_powers * hard_scale
    if variant.hard == "own":
        _, _, _, _, _, h_max, _, _ = row
        gradient += tl.exp2((tile[1] - h_max) * numbers.hard_factor) * hard_scale
    if variant.hard != "none":
        if variant.smoothed:
            gradient -= spread * weights
        gradient -= tl.where(columns == label, at_label, 0.0)
    return gradient
