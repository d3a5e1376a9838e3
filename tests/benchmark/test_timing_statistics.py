"""The statistics of timing samples where the truth is known: made-up samples, brute force, SciPy. No clock is read."""

import itertools
import math

import numpy as np
import pytest
from scipy.signal import lfilter
from scipy.stats import binom, norm, t, theilslopes

from compressor import native

seeded = np.random.default_rng


def two_modes(generator, count, slow=0.15):
    """1 to 2 for most, 50 to 51 for a part of `slow`."""
    return np.where(generator.random(count) < slow, 50.0, 1.0) + generator.random(count)


def two_modes_quantile(share, slow=0.15):
    return 1.0 + share / (1.0 - slow) if share < 1.0 - slow else 50.0 + (share - 1.0 + slow) / slow


def autoregressive(generator, count, memory=0.9):
    """Standard normal values, each `memory` times the one before it plus something new."""
    news = generator.standard_normal(count) * math.sqrt(1.0 - memory**2)
    news[0] = generator.standard_normal()
    return lfilter([1.0], [1.0, -memory], news)


def shifted_blocks(generator, count, size=100, weight=0.7):
    """Standard normal values of which those of a block have a part in common."""
    shared = np.repeat(generator.standard_normal(count // size), size)
    return weight * shared + math.sqrt(1.0 - weight**2) * generator.standard_normal(count)


# Which times of a block are kept


@pytest.mark.parametrize("period", [2, 3, 8])
def test_what_is_kept_does_not_keep_step_with_the_inputs(period):
    """Inputs of different length come round in turn: of every sort there must be as many left as there were."""
    times = np.arange(8000) % period + 1.0
    kept, total = native.load().thin_out(times, 1000, 3)
    assert total == times.sum()
    assert len(kept) == 1000
    for sort in range(1, period + 1):
        assert np.mean(np.array(kept) == sort) == pytest.approx(1 / period, abs=0.06)


def test_few_times_are_all_kept():
    assert native.load().thin_out([3.0, 1.0, 2.0], 3, 0) == ([3.0, 1.0, 2.0], 6.0)
    kept, total = native.load().thin_out([3.0, 1.0, 2.0], 2, 0)
    assert (len(kept), total) == (2, 6.0)
    assert kept[1] == 2.0


# How many samples a percentile needs


@pytest.mark.parametrize(("share", "count"), [(0.99, 459), (0.999, 4603)])
def test_samples_for_a_tail(share, count):
    assert native.load().samples_for(share, 0.99) == count


# The last three are those where the quotient of the logarithms rounds past a whole number, one way or the other.
@pytest.mark.parametrize(
    ("share", "confidence"),
    [
        *itertools.product([0.0, 0.01, 0.25, 0.5, 0.9, 0.95, 0.99], [0.1, 0.5, 0.75, 0.9, 0.95, 0.99]),
        (0.33, 0.67),
        (0.08, 0.92),
        (0.05, 0.9975),
    ],
)
def test_samples_for_is_the_fewest(share, confidence):
    want = next(n for n in range(1, 1000) if 1.0 - share**n >= confidence)
    assert native.load().samples_for(share, confidence) == want


# The design effect


def test_design_effect_of_chunks_that_are_all_of_a_kind():
    samples = np.repeat([1.0, 2.0] * 10, 7)
    # 20 shares of 0 or 1 vary by 20/19 * 1/4, those of independent samples by 1/4 / 7.
    assert native.load().design_effect(samples, 7, 1.0) == pytest.approx(7 * 20 / 19)


@pytest.mark.parametrize("chunk", [2, 13, 50, 500])
def test_design_effect_by_its_definition(chunk):
    samples = autoregressive(seeded(chunk), 1000)
    threshold = 0.3
    shares = np.array([np.mean(samples[i : i + chunk] <= threshold) for i in range(0, 1000 - chunk + 1, chunk)])
    want = shares.var(ddof=1) / (shares.mean() * (1.0 - shares.mean()) / chunk)
    assert native.load().design_effect(samples, chunk, threshold) == pytest.approx(max(1.0, want))


def test_a_last_short_chunk_does_not_count():
    samples = autoregressive(seeded(0), 1000)
    effect = native.load().design_effect
    assert effect(np.append(samples, [1e9] * 99), 100, 0.0) == effect(samples, 100, 0.0) > 2.0
    assert effect(np.append(samples, [1e9] * 100), 100, 0.0) != effect(samples, 100, 0.0)


@pytest.mark.parametrize(
    ("count", "chunk", "threshold"), [(199, 100, 0.5), (1000, 100, -1.0), (1000, 100, 1.0), (1000, 1, 0.5)]
)
def test_design_effect_is_one_where_nothing_can_be_seen(count, chunk, threshold):
    samples = np.repeat(seeded(0).random(count // 10 + 1), 10)[:count]
    assert native.load().design_effect(samples, chunk, threshold) == 1.0


def test_design_effect_of_independent_samples_is_about_one():
    effects = [native.load().design_effect(seeded(seed).random(3000), 50, 0.9) for seed in range(200)]
    assert min(effects) == 1.0
    assert np.mean(effects) < 1.15


# Percentiles


def brute_force_ranks(count, share, confidence):
    """1-based; 0 and count + 1 where there is none."""
    tail = (1.0 - confidence) / 2.0
    low = max(rank for rank in range(count + 1) if binom.cdf(rank - 1, count, share) <= tail)
    high = min(rank for rank in range(1, count + 2) if binom.sf(rank - 1, count, share) <= tail)
    return low, high


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("count", [10, 30, 100, 459, 1000])
def test_independent_samples_have_the_classic_interval(count, share, confidence):
    samples = seeded(count).lognormal(0.0, 1.0, count)
    value, low, high = native.load().percentile(samples, 1, share, confidence)
    assert value == pytest.approx(np.quantile(samples, share), rel=1e-14)
    bounded = np.concatenate([[np.nan], np.sort(samples), [np.nan]])
    np.testing.assert_array_equal([low, high], bounded[list(brute_force_ranks(count, share, confidence))])


def test_a_side_without_support_is_not_a_number():
    value, low, high = native.load().percentile(np.arange(100.0), 1, 0.99, 0.95)
    assert low < value
    assert math.isnan(high)
    value, low, high = native.load().percentile(np.arange(100.0), 1, 0.01, 0.95)
    assert math.isnan(low)
    assert high > value


@pytest.mark.parametrize(("share", "sides"), [(0.0, (math.nan, 0.0)), (1.0, (99.0, math.nan))])
def test_the_ends_are_bounded_on_one_side(share, sides):
    np.testing.assert_array_equal(native.load().percentile(np.arange(100.0), 1, share, 0.95)[1:], sides)


def test_an_interval_holds_its_value_even_of_two_samples():
    for share in (0.01, 0.99):
        value, low, high = native.load().percentile([1.0, 2.0], 1, share, 0.95)
        assert not low > value
        assert not high < value


@pytest.mark.parametrize("repeats", [10, 40])
def test_repeating_each_sample_adds_nothing(repeats):
    # A pattern in which the share of each chunk is 0 or 1 and alternates: the design effect is `repeats` * 60/59.
    levels = np.where(np.arange(60) % 2, 1.0, -1.0) * seeded(1).permutation(np.arange(1.0, 61.0))
    _, low, high = native.load().percentile(np.repeat(levels, repeats), repeats, 0.5, 0.95)
    ascending = np.sort(levels)
    rank_low, rank_high = brute_force_ranks(59, 0.5, 0.95)
    assert low == ascending[math.floor((rank_low - 1) * 60 / 59)]
    assert high == ascending[math.ceil(rank_high * 60 / 59) - 1]


def coverage(draw, truth, share, chunk, runs):
    """How often a 95% interval holds the truth, and how often it has two sides."""
    intervals = np.array([native.load().percentile(draw(seeded(seed)), chunk, share, 0.95) for seed in range(runs)])
    _, low, high = intervals.T
    return np.mean(~(low > truth) & ~(high < truth)), np.mean(~np.isnan(low) & ~np.isnan(high))


# 1,000 runs at 95% vary by 0.7 points (one standard deviation).
@pytest.mark.parametrize("chunk", [1, 50])
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda generator: generator.lognormal(0.0, 1.0, 1000), lambda share: math.exp(norm.ppf(share))),
        (lambda generator: two_modes(generator, 1000), two_modes_quantile),
    ],
    ids=["lognormal", "two modes"],
)
def test_intervals_hold_the_truth_of_independent_samples(draw, truth, share, chunk):
    held, two_sided = coverage(draw, truth(share), share, chunk, 1000)
    assert 0.935 <= held <= 0.99
    assert two_sided > 0.99


@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("draw", [autoregressive, shifted_blocks])
def test_intervals_hold_the_truth_of_samples_that_hang_together(draw, share):
    def samples(generator):
        return np.exp(draw(generator, 3000))

    truth = math.exp(norm.ppf(share))
    plain, _ = coverage(samples, truth, share, 1, 400)
    corrected, two_sided = coverage(samples, truth, share, 100, 800)
    assert plain < 0.7
    assert 0.92 <= corrected <= 0.985
    assert two_sided == 1.0


# Whether a series stays where it is

BLOCKS = 60
LEAST_CHANGE = 0.03


def brute_force_pettitt(values):
    """K, its p-value, and the first t at which |U_t| is K."""
    signs = np.sign(values[:, None] - values[None, :])
    strengths = np.array([abs(signs[:t, t:].sum()) for t in range(1, values.size)])
    largest = strengths.max()
    p_value = min(1.0, 2.0 * math.exp(-6.0 * largest**2 / (values.size**3 + values.size**2)))
    return largest, p_value, int(strengths.argmax()) + 1


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [50, 51, 101])
def test_pettitts_test_by_brute_force(count, ties):
    for seed in range(20):
        values = seeded(seed).lognormal(0.0, 0.3, count) + np.linspace(0.0, seed / 20.0, count)
        if ties:
            values = np.ceil(4.0 * values)
        _, want, break_at = brute_force_pettitt(values)
        _, p_value, change, at = native.load().stationarity(values, 0.0)
        assert p_value == pytest.approx(want, rel=1e-9)
        assert at == break_at
        assert change == pytest.approx(np.median(values[at:]) / np.median(values[:at]) - 1.0)


def moving(draw, runs, least_change=LEAST_CHANGE):
    """The part of `runs` series that are called moving."""
    return np.mean([not native.load().stationarity(draw(seeded(seed)), least_change)[0] for seed in range(runs)])


def noisy(generator, level, noise):
    return 0.002 * level * (1.0 + noise * generator.standard_normal(BLOCKS))


@pytest.mark.parametrize("noise", [0.01, 0.02])
@pytest.mark.parametrize("direction", [1, -1])
def test_a_drift_is_found(noise, direction):
    level = np.linspace(1.0, 1.1, BLOCKS)[::direction]
    assert moving(lambda generator: noisy(generator, level, noise), 200) >= 0.98


@pytest.mark.parametrize("noise", [0.01, 0.02])
@pytest.mark.parametrize("at", [BLOCKS // 4, BLOCKS // 2, 3 * BLOCKS // 4])
@pytest.mark.parametrize("factor", [1.05, 1 / 1.05])
def test_a_step_is_found(noise, at, factor):
    level = np.where(np.arange(BLOCKS) < at, 1.0, factor)
    assert moving(lambda generator: noisy(generator, level, noise), 200) >= 0.95


def test_a_step_is_found_where_it_is():
    level = np.where(np.arange(BLOCKS) < 20, 1.0, 1.5)
    stationary, p_value, change, at = native.load().stationarity(noisy(seeded(0), level, 0.01), LEAST_CHANGE)
    assert not stationary
    assert p_value < 1e-4
    assert change == pytest.approx(0.5, abs=0.02)
    assert at == 20


STEADY = {
    "normal": lambda generator: noisy(generator, 1.0, 0.02),
    "two modes": lambda generator: two_modes(generator, BLOCKS, 0.3),
    "two even modes": lambda generator: two_modes(generator, BLOCKS, 0.5),
    "heavy tail": lambda generator: 1.0 + np.abs(generator.standard_cauchy(BLOCKS)),
}


@pytest.mark.parametrize("kind", STEADY)
def test_what_stays_is_not_called_moving(kind):
    assert moving(STEADY[kind], 500) <= 0.03
    assert moving(STEADY[kind], 500, least_change=0.0) <= 0.03


def test_what_is_certain_but_small_is_not_called_moving():
    level = np.where(np.arange(BLOCKS) < BLOCKS // 2, 1.0, 1.01)
    assert moving(lambda generator: noisy(generator, level, 0.003), 100) == 0.0
    assert moving(lambda generator: noisy(generator, level, 0.003), 100, least_change=0.001) == 1.0


@pytest.mark.parametrize("count", [1, 2, 9])
def test_few_values_say_nothing(count):
    assert native.load().stationarity(2.0 ** np.arange(count), 0.0) is None


@pytest.mark.parametrize("count", [10, 12, 15, 30])
def test_a_doubling_in_the_middle_shows_even_among_few(count):
    stationary, p_value, change, at = native.load().stationarity(np.arange(count) // ((count + 1) // 2) + 1.0, 0.1)
    assert (stationary, change, at) == (False, 1.0, (count + 1) // 2)
    assert p_value < 0.01


@pytest.mark.parametrize("count", [10, 11])
def test_few_values_by_all_their_orders(count):
    """Of two kinds of value there are few enough orders to count them all: by combinations."""
    ones = count // 2
    strengths = []
    for places in itertools.combinations(range(count), ones):
        values = np.zeros(count)
        values[list(places)] = 1.0
        strengths.append((brute_force_pettitt(values + 1.0)[0], values + 1.0))
    all_strengths = np.array([strength for strength, _ in strengths])
    for strength, values in strengths[:: len(strengths) // 7]:
        want = np.mean(all_strengths >= strength)
        assert native.load().stationarity(values, 0.0)[1] == pytest.approx(want, abs=0.02)


@pytest.mark.parametrize("count", [10, 20, 49])
def test_few_values_that_stay_are_seldom_called_moving(count):
    found = [native.load().stationarity(seeded(s).lognormal(0.0, 0.5, count), 0.0)[0] for s in range(500)]
    assert 0.975 <= np.mean(found) <= 1.0


def test_equal_values_stay():
    assert native.load().stationarity(np.full(50, 2.5), 0.0) == (True, 1.0, 0.0, 1)


# Comparisons


def verdicts(draw, runs, confidence=0.95, least_effect=0.02):
    found = [native.load().compare(draw(seeded(seed)), confidence, least_effect)[3] for seed in range(runs)]
    return {name: found.count(name) / runs for name in ("faster", "slower", "inconclusive")}


@pytest.mark.parametrize("rounds", [6, 7, 30, 101])
def test_a_speed_up_is_the_median_between_the_sign_tests_ranks(rounds):
    ratios = seeded(rounds).normal(0.3, 0.1, rounds)
    value, low, high, _ = native.load().compare(ratios, 0.95, 0.02)
    rank_low, rank_high = brute_force_ranks(rounds, 0.5, 0.95)
    assert value == pytest.approx(math.exp(np.median(ratios)))
    assert (low, high) == pytest.approx(tuple(np.exp(np.sort(ratios)[[rank_low - 1, rank_high - 1]])))


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.0199, "inconclusive"), (1.0201, "faster"), (0.5, "slower"), (1.0, "inconclusive")]
)
def test_a_verdict_needs_the_least_effect(factor, verdict):
    compare = native.load().compare
    opposite = {"faster": "slower", "slower": "faster", "inconclusive": "inconclusive"}[verdict]
    ratios = np.full(30, math.log(factor))
    assert compare(ratios, 0.95, 0.02)[3] == verdict
    assert compare(-ratios, 0.95, 0.02)[3] == opposite


def test_five_rounds_are_too_few_for_a_verdict():
    value, low, high, verdict = native.load().compare(np.full(5, 1.0), 0.95, 0.02)
    assert value == pytest.approx(math.e)
    assert math.isnan(low)
    assert math.isnan(high)
    assert verdict == "inconclusive"


EQUALS = {
    "two modes": lambda generator: two_modes(generator, 30, 0.4),
    "heavy tail": lambda generator: 1.0 + 0.1 * np.abs(generator.standard_cauchy(30)),
}


@pytest.mark.parametrize("kind", EQUALS)
def test_equals_are_seldom_told_apart(kind):
    def ratios(generator):
        return np.log(EQUALS[kind](generator) / EQUALS[kind](generator))

    assert verdicts(ratios, 1000)["inconclusive"] >= 0.95
    # Without a least effect all that holds is the confidence: 95.7% with 30 rounds.
    assert 0.93 <= verdicts(ratios, 1000, least_effect=0.0)["inconclusive"] <= 0.98


def slowed(generator, factor=1.05, noise=0.015):
    own, baseline = 1.0 + noise * generator.standard_normal((2, 30))
    return np.log(baseline / (factor * own))


def test_a_small_slowdown_is_found():
    assert verdicts(slowed, 500)["slower"] >= 0.95
    assert verdicts(lambda generator: -slowed(generator), 500)["faster"] >= 0.95


def test_a_slowdown_below_the_least_effect_is_none():
    assert verdicts(lambda generator: slowed(generator, factor=1.01), 500)["inconclusive"] >= 0.98


def sitting_ratios(generator, truth=0.0, sittings=8, rounds=7, between=0.01, within=0.003):
    """Log ratios of rounds: each sitting has an error of its own, which its rounds share."""
    shared = generator.normal(truth, between, (sittings, 1))
    return list(shared + generator.normal(0.0, within, (sittings, rounds)))


def test_what_a_sitting_shares_is_counted():
    """All rounds alone take the sittings' errors for knowledge: their interval seldom holds the truth."""
    compare, compare_sittings = native.load().compare, native.load().compare_sittings
    alone = together = 0
    for seed in range(400):
        ratios = sitting_ratios(seeded(seed))
        low, high = compare_sittings(ratios, 0.95, 0.0)[1:3]
        together += low <= 1 <= high
        low, high = compare(np.concatenate(ratios), 0.95, 0.0)[1:3]
        alone += low <= 1 <= high
    assert together >= 0.95 * 400
    assert alone < 0.8 * 400


def test_the_interval_of_sittings_by_hand():
    """Of eight sittings the least and the largest median enclose the median with 99%."""
    medians = np.array([0.01, -0.02, 0.03, 0.0, 0.02, -0.01, 0.04, 0.05])
    ratios = [np.full(7, median) for median in medians]
    value, low, high, verdict = native.load().compare_sittings(ratios, 0.95, 0.02)
    assert (value, low, high) == pytest.approx(np.exp([np.median(np.concatenate(ratios)), -0.02, 0.05]))
    assert verdict == "inconclusive"


def test_a_slowdown_is_found_through_sittings():
    found = [native.load().compare_sittings(sitting_ratios(seeded(s), -0.049), 0.95, 0.02)[3] for s in range(200)]
    assert found.count("slower") >= 0.95 * 200


@pytest.mark.parametrize("sittings", [2, 3, 4, 5])
def test_few_sittings_have_students_interval(sittings):
    """Against SciPy, and no narrower than that of all rounds."""
    ratios = sitting_ratios(seeded(sittings), sittings=sittings, rounds=20)
    medians = np.array([np.median(row) for row in ratios])
    want = t.interval(0.95, sittings - 1, medians.mean(), medians.std(ddof=1) / math.sqrt(sittings))
    rounds = native.load().compare(np.concatenate(ratios), 0.95, 0.02)[1:3]
    low, high = native.load().compare_sittings(ratios, 0.95, 0.02)[1:3]
    assert low == pytest.approx(min(math.exp(want[0]), rounds[0]))
    assert high == pytest.approx(max(math.exp(want[1]), rounds[1]))


@pytest.mark.parametrize(("sittings", "confidence"), [(2, 0.95), (3, 0.95), (5, 0.95), (8, 0.9929), (3, 0.9929)])
def test_few_sittings_hold_the_truth(sittings, confidence):
    held = 0
    for seed in range(400):
        ratios = sitting_ratios(seeded(seed), sittings=sittings, rounds=20)
        low, high = native.load().compare_sittings(ratios, confidence, 0.0)[1:3]
        held += low <= 1 <= high
    assert held / 400 >= confidence - 0.02


def test_one_sitting_gives_no_verdict():
    value, low, high, verdict = native.load().compare_sittings([np.full(50, 0.7)], 0.95, 0.02)
    assert value == pytest.approx(math.exp(0.7))
    assert math.isnan(low)
    assert math.isnan(high)
    assert verdict == "inconclusive"


def test_no_sittings_are_refused():
    compare_sittings = native.load().compare_sittings
    with pytest.raises(ValueError, match="sittings must be one or more, got 0"):
        compare_sittings([], 0.95, 0.02)


def test_confidence_of_each_of_several():
    each = native.load().each_confidence
    assert each(0.95, 1) == pytest.approx(0.95)
    assert each(0.95, 5) == pytest.approx(0.99)


def test_several_comparisons_hold_together():
    family, rounds, runs = 8, 30, 400

    def all_hold(confidence):
        held = 0
        for seed in range(runs):
            ratios = seeded(seed).standard_normal((family, rounds))
            intervals = [native.load().compare(row, confidence, 0.0)[1:3] for row in ratios]
            held += all(low <= 1.0 <= high for low, high in intervals)
        return held / runs

    assert all_hold(0.95) < 0.85
    assert all_hold(native.load().each_confidence(0.95, family)) >= 0.93


# The slope


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_the_slope_is_theil_and_sens(count, ties):
    generator = seeded(count)
    x = np.sort(generator.random(count) * 10.0)
    if ties:
        x = np.floor(x)
        x[-1] += 1.0
    y = 3.0 * x + generator.standard_cauchy(count)
    assert native.load().slope(x, y, 0.95)[0] == pytest.approx(theilslopes(y, x).slope, rel=1e-12)


def kendall_rank(count, confidence):
    """The exact rank, from 1, of the slope that encloses the true one; 0 where there is none."""
    arrangements = np.array([1.0])
    for size in range(2, count + 1):  # by the number of pairs in the wrong order
        arrangements = np.convolve(arrangements, np.ones(size))
    tails = np.cumsum(arrangements) / arrangements.sum()
    return int(np.searchsorted(tails, (1.0 - confidence) / 2.0, side="right"))


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [4, 5, 6, 10, 20, 50])
def test_the_slopes_interval_is_kendalls(count, confidence):
    x = np.arange(float(count))
    y = seeded(count).standard_normal(count)
    low, high = native.load().slope(x, y, confidence)[1:]
    slopes = np.sort([(y[j] - y[i]) / (j - i) for i in range(count) for j in range(i + 1, count)])
    exact = kendall_rank(count, confidence)
    # The normal approximation finds the exact rank or, to be safe, the next one outward; NaN outside the first.
    bounded = np.concatenate([[np.nan], slopes, [np.nan]])
    assert any(
        np.array_equal([low, high], bounded[[rank, -1 - rank]], equal_nan=True) for rank in {exact, max(exact - 1, 0)}
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("noise", ["standard_normal", "standard_cauchy"])
def test_the_slopes_interval_holds_the_truth(noise, ties):
    x = np.arange(40.0) // 20 if ties else np.arange(40.0)  # two places: then it is Mann and Whitney's interval
    intervals = np.array(
        [native.load().slope(x, 0.5 * x + getattr(seeded(seed), noise)(40), 0.95)[1:] for seed in range(1000)]
    )
    held = np.mean((intervals[:, 0] <= 0.5) & (intervals[:, 1] >= 0.5))
    assert 0.93 <= held <= 0.97


# The warm-up


def falling(excess, memory, noise=0.0, count=4000):
    times = 1.0 + excess * np.exp(-np.arange(count) / memory)
    return times * (1.0 + noise * seeded(0).standard_normal(count))


@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("memory", [5.0, 20.0, 50.0, 100.0])
@pytest.mark.parametrize("excess", [1.0, 5.0, 20.0])
def test_a_model_that_speeds_up_has_warmed_up_when_it_no_longer_does(excess, memory, noise):
    length = native.load().warm_up_length(falling(excess, memory, noise))
    assert 40 < length < 1000
    assert falling(excess, memory)[length - 1] < 1.02


def test_a_slower_fall_takes_longer():
    lengths = [native.load().warm_up_length(falling(5.0, memory)) for memory in (5.0, 20.0, 50.0, 100.0)]
    assert lengths == sorted(set(lengths))


def test_flat_times_have_warmed_up_at_once():
    warm_up_length = native.load().warm_up_length
    assert warm_up_length(np.full(40, 0.002)) == 40
    assert warm_up_length(np.full(39, 0.002)) is None
    assert all(warm_up_length(falling(0.0, 1.0, 0.02) * unit) == 40 for unit in (1e-6, 1.0, 1e6))


def test_an_outlier_starts_the_calm_anew():
    times = np.full(400, 1.0)
    times[30] = 3.0
    assert native.load().warm_up_length(times) > 71


def test_what_never_settles_has_not_warmed_up():
    assert native.load().warm_up_length(1.01 ** np.arange(2000)) is None


# Refusals


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("design_effect", ([], 1, 0.5), r"samples must be \[count\] with count >= 1, got \(0,\)"),
        ("design_effect", ([1.0], 0, 0.5), "chunk must be 1 or more, got 0"),
        ("percentile", ([], 1, 0.5, 0.9), r"samples must be .*, got \(0,\)"),
        ("percentile", ([[1.0, 2.0]], 1, 0.5, 0.9), r"samples must be .*, got \(1, 2\)"),
        ("percentile", ([1.0, math.nan], 1, 0.5, 0.9), "samples must be finite, got nan"),
        ("percentile", ([1.0, -math.inf], 1, 0.5, 0.9), "samples must be finite, got -inf"),
        ("percentile", ([1.0], 0, 0.5, 0.9), "chunk must be 1 or more, got 0"),
        ("percentile", ([1.0], 1, 1.5, 0.9), r"a quantile must be in 0\.\.1, got 1\.5"),
        ("percentile", ([1.0], 1, math.nan, 0.9), r"a quantile must be in 0\.\.1, got nan"),
        ("percentile", ([1.0], 1, 0.5, 1.0), "confidence must be between 0 and 1, got 1"),
        ("quantiles", ([1.0, math.nan], [0.5]), "samples must be finite, got nan"),
        ("samples_for", (1.0, 0.99), "share must be 0 or more and below 1, got 1"),
        ("samples_for", (0.99, 1.0), "confidence must be between 0 and 1, got 1"),
        ("stationarity", ([], 0.1), r"medians must be .*, got \(0,\)"),
        ("stationarity", ([1.0, 0.0], 0.1), "medians must be above 0, got 0"),
        ("stationarity", ([1.0, 2.0], -0.1), r"least_change must not be negative, got -0\.1"),
        ("compare", ([], 0.95, 0.02), r"log_ratios must be .*, got \(0,\)"),
        ("compare", ([1.0], 0.0, 0.02), "confidence must be between 0 and 1, got 0"),
        ("compare", ([1.0], 0.95, -0.02), r"least_effect must not be negative, got -0\.02"),
        ("each_confidence", (0.95, 0), "comparisons must be 1 or more, got 0"),
        ("each_confidence", (1.5, 2), r"confidence must be between 0 and 1, got 1\.5"),
        ("slope", ([], [], 0.9), r"x must be .*, got \(0,\)"),
        ("slope", ([1.0, 2.0], [1.0], 0.9), "y must have the 2 values of x, got 1"),
        ("slope", ([1.0, 3.0, 2.0], [1.0, 2.0, 3.0], 0.9), r"x must ascend, got \[3\.0, 2\.0\]"),
        ("slope", ([1.0, 1.0], [1.0, 2.0], 0.9), r"x must have two different values or more, got 1\.0"),
        ("warm_up_length", ([],), r"times must be .*, got \(0,\)"),
    ],
)
def test_refusals_say_what_was_expected(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(native.load(), function)(*arguments)
