// From what was measured to what it says: computed once, for the JSON and for the table.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "compressor/machine.h"
#include "compressor/measure.h"
#include "compressor/stats.h"
#include "scenarios.h"

namespace compressor {

// How a model's outputs compare, and with what; `against` is "" where they do not.
struct Answers {
  std::string against;  // "expected", or the baseline's name
  std::string reason;   // why they are not compared
  Agreement agreement;
  std::optional<bool> finite;  // all outputs, compared or not; none where their type is not looked into
};

struct Measured {
  const Request& request;
  std::string version;  // of the runtime
  Target target;
  std::vector<LoadCost> loads;
  const std::vector<Loaded>& models;
  Rounds rounds;
  Reading before;
  std::optional<Reading> after;  // none while the rounds still run
  std::vector<Answers> answers;  // of each model; empty while the rounds still run
  std::vector<std::string> profiles;
  bool interrupted = false;
};

struct Percent {
  const char* name;
  double share;
};
inline constexpr Percent kPercents[] = {{"p50_ms", 0.5}, {"p90_ms", 0.9}, {"p99_ms", 0.99}, {"p999_ms", 0.999}};

struct Percentiles {
  double mean_ns;
  std::vector<std::optional<Estimate>> ns;  // of each of kPercents; none where the samples do not support it
};

struct Distribution {
  std::vector<double> shares, ns;  // points of the quantile function
};

struct Pacing {
  std::size_t missed, dropped;
  double late_p50_ns, late_p90_ns;
};

struct Drift {
  Estimate slope_per_minute;  // relative to the median
  double last_over_first;     // the median of the last tenth of the time over that of the first
};

// Of one model; the percentiles and the distribution are of a request, the rest of an inference.
struct Findings {
  std::size_t samples;
  std::vector<double> block_medians;     // of the corrected times where there are any
  Percentiles raw;
  std::optional<Percentiles> corrected;  // none where nobody tells how long the threads waited
  Distribution distribution;             // of the corrected times where there are any
  double throughput_per_s;               // paced: as many as the period lets through
  double cpu_ns;
  std::optional<Stationarity> stationarity;  // none of too few blocks
  std::optional<Pacing> pacing;  // paced
  std::optional<Drift> drift;    // sustained, of three blocks or more

  const Percentiles& best() const { return corrected ? *corrected : raw; }
};

struct AgainstBaseline {
  std::size_t model, baseline;
  Comparison comparison;
  std::size_t rounds, sittings;
  double confidence;
};

struct Conclusions {
  std::vector<std::optional<Findings>> models;               // none where nothing was timed, or on an emulator
  std::vector<AgainstBaseline> comparisons;                  // those with the first model come first
  std::optional<Validity> validity;                          // none while the rounds still run
  std::vector<std::string> warnings;                         // what does not spoil a measurement, but should be known
};

Conclusions conclude(const Measured& measured);

// Of `model` with the first, or nullptr.
const AgainstBaseline* against_first(const Conclusions& found, std::size_t model);

// The `share` quantile of values in any order; NaN of none.
double quantile_of(std::vector<double> values, double share);

// Share of the files that may stay in memory for a start to count as disk-cold.
inline constexpr double kStillCachedMost = 0.1;

// Whether as many cold starts were measured as were asked for.
bool complete(const Request& request, const std::vector<ColdStarts>& starts);
// Whether the machine let them be. Waiting for the disk is what they are for; how long the starting processes waited
// for a processor is told by the whole machine's pressure alone.
Validity judged(const Cold& cold, const Target& target);

}  // namespace compressor
