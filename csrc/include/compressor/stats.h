// Pure statistics of timing samples: no clock, no file. docs/benchmarking.md says why these and not others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace compressor {

// A value and what encloses it; NaN where the samples do not support that side.
struct Estimate {
  double value, low, high;
};

// The `share` quantile (in [0, 1]) of `count` >= 1 ascending values, linear between neighbours.
double quantile(const double* ascending, std::size_t count, double share) noexcept;

// The 1-based rank k for which the k-th smallest and the k-th largest of `count` values enclose the median with at
// least the given confidence, whatever the distribution (the sign test turned round). 0 when `count` is too small.
std::size_t median_rank(std::size_t count, double confidence) noexcept;

// The fewest independent samples of which the largest exceeds the `share` quantile with the given confidence: 459 for
// 0.99 and 4,603 for 0.999 at 99%. A percentile of fewer is not reported.
std::size_t samples_for(double share, double confidence) noexcept;

// How many times more samples than independent ones are needed, seen from how the share of samples that lie at or below
// `threshold` varies between consecutive chunks of `chunk` samples (the design effect of cluster sampling, Kish 1965);
// 1 or more. `samples` are in the order of time.
double design_effect(const double* samples, std::size_t count, std::size_t chunk, double threshold) noexcept;

// The `share` quantile of `samples`, which are in the order of time, between order statistics that enclose it with the
// given confidence, whatever the distribution. The number of samples counts divided by the design effect of its chunks:
// each of those left stands for a run of the sorted samples, and the interval reaches to the outer end of its runs.
Estimate percentile(const std::vector<double>& samples, std::size_t chunk, double share, double confidence);

// Whether a series of block medians stays where it is: Pettitt's test (1979), whose statistic finds a step anywhere and
// a drift, at 1%; and a change of the median across the likeliest break of more than `least_change`, so that what is
// certain but small does not count. Below 50 values the p-value is that of random orders of them (10,000, always the
// same), from then on Pettitt's approximation. Nothing below 10, where no order is as rare as 1%.
struct Stationarity {
  bool stationary;
  double p_value;  // of Pettitt's test, the approximation for one break
  double change;   // median after the likeliest break / median before it - 1
  std::size_t at;  // how many values lie before that break
};
std::optional<Stationarity> stationarity(const std::vector<double>& medians, double least_change);

enum class Verdict { kFaster, kSlower, kInconclusive };
const char* name_of(Verdict verdict) noexcept;

// What `log_ratios` (one a round: ln(baseline's block median / the model's)) say of the model's speed-up, by the median
// and its order statistics at the confidence. A verdict needs the whole interval beyond `least_effect` (0.02: 2%).
struct Comparison {
  Estimate speedup;  // low and high are NaN where there are too few rounds for the confidence: at 95% below six
  Verdict verdict;
};
Comparison compare(std::vector<double> log_ratios, double confidence, double least_effect);
// The same of several sittings, before each of which the sessions were opened anew: where memory lies is worth some
// percent and stays as it is for a sitting, so rounds of one sitting tell nothing of it. The interval encloses that of
// all rounds and that of the sittings' medians: their order statistics, or Student's interval where they are too few
// for the confidence. One sitting has no interval and gives no verdict.
Comparison compare(const std::vector<std::vector<double>>& sittings, double confidence, double least_effect);

// The confidence of each of `comparisons` intervals that hold together with the given one (Bonferroni).
double each_confidence(double together, std::size_t comparisons) noexcept;

// The median of the slopes of all pairs (Theil 1950, Sen 1968), and the order statistics of the slopes that enclose the
// true one at the confidence (Kendall's tau turned round, Sen 1968). `x` ascending, two values or more, at most some
// thousands: all pairs are looked at.
Estimate slope(const std::vector<double>& x, const std::vector<double>& y, double confidence);

// Whether a model has warmed up: a fast and a slow moving average of its times agree for a while.
class WarmUp {
 public:
  // Takes one time; whether the averages have agreed within kAgreement for kCalm times in a row.
  bool settled(double time) noexcept;

 private:
  static constexpr double kFast = 0.1, kSlow = 0.01, kAgreement = 0.04;
  static constexpr int kCalm = 40;
  double fast_ = 0.0, slow_ = 0.0;
  int calm_ = 0;
  bool begun_ = false;
};

}  // namespace compressor
