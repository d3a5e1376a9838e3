#include "compressor/stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

namespace compressor {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

// The largest k for which fewer than k of `count` independent values lie below their `share` quantile with a
// probability of at most `tail`: P(X <= k - 1) <= tail, where X is binomial(count, share). 0 where there is none.
std::size_t rank_below(std::size_t count, double share, double tail) noexcept {
  const double n = static_cast<double>(count);
  const double arrangements = std::lgamma(n + 1.0);
  const double hit = std::log(share), miss = std::log1p(-share);
  // Counts further below the mean than this have together less than 1e-12 of `tail` (Hoeffding 1963); with millions of
  // samples they would be most of the sum.
  const double negligible = std::sqrt(n / 2.0 * (std::log(1e12) - std::log(tail)));
  auto rank = static_cast<std::size_t>(std::max(0.0, std::floor(n * share - negligible)));
  double below = 0.0;
  for (; rank < count; ++rank) {
    const double k = static_cast<double>(rank);
    below += std::exp(arrangements - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) + k * hit + (n - k) * miss);
    if (!(below <= tail)) break;  // NaN for a share of 0, where it is 1
  }
  return rank;
}

std::vector<double> sorted(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values;
}

double median(const double* begin, const double* end) {
  const std::vector<double> ascending = sorted({begin, end});
  return quantile(ascending.data(), ascending.size(), 0.5);
}

// The z that a standard normal variable exceeds with the probability `tail`, which is at most 1/2.
double normal_upper_quantile(double tail) noexcept {
  double low = 0.0, high = 40.0;
  for (int i = 0; i < 64; ++i) {
    const double middle = (low + high) / 2.0;
    (std::erfc(middle / std::sqrt(2.0)) / 2.0 > tail ? low : high) = middle;
  }
  return high;
}

// The rank of each value, from 1; equal ones share the mean of theirs.
std::vector<double> midranks(const std::vector<double>& values) {
  const std::vector<double> ascending = sorted(values);
  std::vector<double> ranks;
  ranks.reserve(values.size());
  for (const double value : values) {
    const auto [first, last] = std::equal_range(ascending.begin(), ascending.end(), value);
    ranks.push_back(static_cast<double>((first - ascending.begin()) + (last - ascending.begin()) + 1) / 2.0);
  }
  return ranks;
}

struct Break {
  double strength;  // Pettitt's K
  std::size_t at;   // how many values lie before it
};

// The largest |U_t|: how much the first t values lie above or below the others, counted over all pairs.
Break likeliest_break(const std::vector<double>& ranks) noexcept {
  const double middle = (static_cast<double>(ranks.size()) + 1.0) / 2.0;
  Break found{-1.0, 0};
  double u = 0.0;
  for (std::size_t t = 1; t < ranks.size(); ++t) {
    u += 2.0 * (ranks[t - 1] - middle);
    if (std::abs(u) > found.strength) found = {std::abs(u), t};
  }
  return found;
}

// How often a random order of the ranks has a break as strong: exact but for the number of orders that are drawn, which
// are the same at every call. Pettitt's formula is too timid with few values.
double break_p_value(std::vector<double> order, double strength) {
  constexpr int kOrders = 10'000;
  constexpr double kRounding = 1e-9;
  std::mt19937_64 generator(1979);
  int as_strong = 0;
  for (int i = 0; i < kOrders; ++i) {
    // Written out, for std::shuffle draws differently in other libraries.
    for (std::size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[generator() % k]);
    as_strong += likeliest_break(order).strength >= strength - kRounding;
  }
  return static_cast<double>(as_strong + 1) / (kOrders + 1);
}

// The probability that |T| <= t of Student's t with `freedom` degrees: Abramowitz & Stegun (1964), 26.7.3 and 26.7.4.
double student_within(double t, std::size_t freedom) noexcept {
  const double angle = std::atan(t / std::sqrt(static_cast<double>(freedom)));
  const double cosine = std::cos(angle), sine = std::sin(angle);
  const bool odd = freedom % 2 == 1;
  double term = odd ? cosine : 1.0, sum = freedom == 1 ? 0.0 : term;
  for (std::size_t k = odd ? 3 : 2; k + 2 <= freedom; k += 2) {
    term *= cosine * cosine * static_cast<double>(k - 1) / static_cast<double>(k);
    sum += term;
  }
  return odd ? 2.0 / std::acos(-1.0) * (angle + sine * sum) : sine * sum;
}

// The t within which Student's t lies with the given confidence.
double student_quantile(double confidence, std::size_t freedom) noexcept {
  double low = 0.0, high = 1.0;
  while (student_within(high, freedom) < confidence && high < 1e9) high *= 2.0;
  for (int i = 0; i < 64; ++i) {
    const double middle = (low + high) / 2.0;
    (student_within(middle, freedom) < confidence ? low : high) = middle;
  }
  return high;
}

// What encloses the middle of values with the given confidence: two of them where there are enough, whatever their
// distribution; else Student's interval, which takes them for normal. NaN of one value.
Estimate middle_of(const std::vector<double>& ascending, double confidence) {
  const std::size_t count = ascending.size(), rank = median_rank(count, confidence);
  if (rank > 0) return {kNone, ascending[rank - 1], ascending[count - rank]};
  if (count < 2) return {kNone, kNone, kNone};
  const double n = static_cast<double>(count);
  const double mean = std::accumulate(ascending.begin(), ascending.end(), 0.0) / n;
  double squares = 0.0;
  for (const double value : ascending) squares += (value - mean) * (value - mean);
  const double reach = student_quantile(confidence, count - 1) * std::sqrt(squares / (n - 1.0) / n);
  return {mean, mean - reach, mean + reach};
}

// Ascending; pairs at the same x have no slope.
std::vector<double> pair_slopes(const std::vector<double>& x, const std::vector<double>& y) {
  std::vector<double> slopes;
  slopes.reserve(x.size() * (x.size() - 1) / 2);
  for (std::size_t i = 0; i < x.size(); ++i) {
    for (std::size_t j = i + 1; j < x.size(); ++j) {
      if (x[j] > x[i]) slopes.push_back((y[j] - y[i]) / (x[j] - x[i]));
    }
  }
  std::sort(slopes.begin(), slopes.end());
  return slopes;
}

// Of Kendall's S between `x`, which ascends, and what does not depend on it.
double kendall_variance(const std::vector<double>& x) noexcept {
  const auto part = [](double n) { return n * (n - 1.0) * (2.0 * n + 5.0) / 18.0; };
  double variance = part(static_cast<double>(x.size()));
  for (auto first = x.begin(); first != x.end();) {
    const auto next = std::upper_bound(first, x.end(), *first);
    variance -= part(static_cast<double>(next - first));  // 0 for a value that occurs once
    first = next;
  }
  return variance;
}

}  // namespace

double quantile(const double* ascending, std::size_t count, double share) noexcept {
  const double position = share * static_cast<double>(count - 1);
  const auto below = static_cast<std::size_t>(position);
  if (below + 1 >= count) return ascending[count - 1];
  const double part = position - static_cast<double>(below);
  return ascending[below] + part * (ascending[below + 1] - ascending[below]);
}

std::size_t median_rank(std::size_t count, double confidence) noexcept {
  return std::min(rank_below(count, 0.5, (1.0 - confidence) / 2.0), (count + 1) / 2);
}

std::size_t samples_for(double share, double confidence) noexcept {
  if (!(share < 1.0 && confidence < 1.0)) return std::numeric_limits<std::size_t>::max();
  const auto enough = [&](double n) { return 1.0 - std::pow(share, n) >= confidence; };
  const double n = std::max(1.0, std::ceil(std::log1p(-confidence) / std::log(share)));
  // The division may round past a whole number.
  if (!enough(n)) return static_cast<std::size_t>(n) + 1;
  return static_cast<std::size_t>(n > 1.0 && enough(n - 1.0) ? n - 1.0 : n);
}

double design_effect(const double* samples, std::size_t count, std::size_t chunk, double threshold) noexcept {
  // A chunk of one sample cannot show what samples have in common.
  if (chunk < 2 || count / chunk < 2) return 1.0;
  const std::size_t chunks = count / chunk;
  double total = 0.0, squares = 0.0;
  for (std::size_t i = 0; i < chunks; ++i) {
    const double* begin = samples + i * chunk;
    const auto below = std::count_if(begin, begin + chunk, [=](double sample) { return sample <= threshold; });
    const double share = static_cast<double>(below) / static_cast<double>(chunk);
    total += share;
    squares += share * share;
  }
  const double mean = total / static_cast<double>(chunks);
  const double expected = mean * (1.0 - mean) / static_cast<double>(chunk);  // if the samples were independent
  if (!(expected > 0.0)) return 1.0;
  const double seen = (squares - total * mean) / static_cast<double>(chunks - 1);
  return std::max(1.0, seen / expected);
}

Estimate percentile(const std::vector<double>& samples, std::size_t chunk, double share, double confidence) {
  if (samples.empty()) return {kNone, kNone, kNone};
  const std::size_t count = samples.size();
  const std::vector<double> ascending = sorted(samples);
  const double value = quantile(ascending.data(), count, share);
  const double effect = design_effect(samples.data(), count, chunk, value);
  const auto independent = std::max<std::size_t>(1, std::lround(static_cast<double>(count) / effect));
  const double tail = (1.0 - confidence) / 2.0;
  const std::size_t from_below = rank_below(independent, share, tail);
  const std::size_t from_above = rank_below(independent, 1.0 - share, tail);
  // Each independent sample stands for a run of sorted ones; the outer end of its run counts. Of very few samples the
  // interpolated value may lie outside, and is enclosed.
  const auto outer = [=](std::size_t rank) { return (rank - 1) * count / independent; };
  Estimate found{value, kNone, kNone};
  if (from_below > 0) found.low = std::min(value, ascending[outer(from_below)]);
  if (from_above > 0) found.high = std::max(value, ascending[count - 1 - outer(from_above)]);
  return found;
}

std::optional<Stationarity> stationarity(const std::vector<double>& medians, double least_change) {
  constexpr std::size_t kFewest = 10, kMany = 50;
  constexpr double kSignificant = 0.01;
  if (medians.size() < kFewest) return std::nullopt;
  const std::vector<double> ranks = midranks(medians);
  const auto [strength, at] = likeliest_break(ranks);
  const double n = static_cast<double>(medians.size());
  const double p_value = medians.size() < kMany
                             ? break_p_value(ranks, strength)
                             : std::min(1.0, 2.0 * std::exp(-6.0 * strength * strength / (n * n * n + n * n)));
  const double* const begin = medians.data();
  const double change = median(begin + at, begin + medians.size()) / median(begin, begin + at) - 1.0;
  return Stationarity{!(p_value < kSignificant && std::abs(change) > least_change), p_value, change, at};
}

namespace {

Verdict verdict_of(const Estimate& speedup, double least_effect) noexcept {
  if (speedup.low > 1.0 + least_effect) return Verdict::kFaster;
  if (speedup.high < 1.0 / (1.0 + least_effect)) return Verdict::kSlower;
  return Verdict::kInconclusive;
}

}  // namespace

Comparison compare(std::vector<double> log_ratios, double confidence, double least_effect) {
  Comparison found{{kNone, kNone, kNone}, Verdict::kInconclusive};
  if (log_ratios.empty()) return found;
  std::sort(log_ratios.begin(), log_ratios.end());
  found.speedup.value = std::exp(quantile(log_ratios.data(), log_ratios.size(), 0.5));
  const std::size_t rank = median_rank(log_ratios.size(), confidence);
  if (rank == 0) return found;
  found.speedup.low = std::exp(log_ratios[rank - 1]);
  found.speedup.high = std::exp(log_ratios[log_ratios.size() - rank]);
  found.verdict = verdict_of(found.speedup, least_effect);
  return found;
}

Comparison compare(const std::vector<std::vector<double>>& sittings, double confidence, double least_effect) {
  std::vector<double> all, medians;
  for (std::vector<double> ratios : sittings) {
    if (ratios.empty()) continue;
    all.insert(all.end(), ratios.begin(), ratios.end());
    std::sort(ratios.begin(), ratios.end());
    medians.push_back(quantile(ratios.data(), ratios.size(), 0.5));
  }
  Comparison found = compare(std::move(all), confidence, least_effect);
  std::sort(medians.begin(), medians.end());
  const Estimate between = middle_of(medians, confidence);
  if (std::isnan(found.speedup.low) || std::isnan(between.low)) {
    found.speedup.low = found.speedup.high = kNone;
    found.verdict = Verdict::kInconclusive;
    return found;
  }
  found.speedup.low = std::min(found.speedup.low, std::exp(between.low));
  found.speedup.high = std::max(found.speedup.high, std::exp(between.high));
  found.verdict = verdict_of(found.speedup, least_effect);
  return found;
}

const char* name_of(Verdict verdict) noexcept {
  return verdict == Verdict::kFaster ? "faster" : verdict == Verdict::kSlower ? "slower" : "inconclusive";
}

double each_confidence(double together, std::size_t comparisons) noexcept {
  return 1.0 - (1.0 - together) / static_cast<double>(std::max<std::size_t>(1, comparisons));
}

Estimate slope(const std::vector<double>& x, const std::vector<double>& y, double confidence) {
  const std::vector<double> slopes = pair_slopes(x, y);
  if (slopes.empty()) return {kNone, kNone, kNone};
  Estimate found{quantile(slopes.data(), slopes.size(), 0.5), kNone, kNone};
  // The true slope lies below the k-th smallest of N when S, which then has no trend to follow, is N - 2 (k - 1) or
  // more. S moves in steps of 2, hence the 1 in its normal approximation (the continuity correction).
  const double spread = normal_upper_quantile((1.0 - confidence) / 2.0) * std::sqrt(kendall_variance(x));
  const double rank = std::floor((static_cast<double>(slopes.size()) + 1.0 - spread) / 2.0);
  if (rank < 1.0) return found;
  const auto outer = static_cast<std::size_t>(rank) - 1;
  found.low = slopes[outer];
  found.high = slopes[slopes.size() - 1 - outer];
  return found;
}

bool WarmUp::settled(double time) noexcept {
  if (!begun_) fast_ = slow_ = time;
  begun_ = true;
  fast_ += kFast * (time - fast_);
  slow_ += kSlow * (time - slow_);
  calm_ = std::abs(fast_ - slow_) <= kAgreement * slow_ ? calm_ + 1 : 0;
  return calm_ >= kCalm;
}

}  // namespace compressor
