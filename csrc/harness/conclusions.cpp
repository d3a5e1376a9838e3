#include "conclusions.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace compressor {
namespace {

constexpr double kReportable = 0.99;       // that the largest sample lies above a percentile, else it is not reported
constexpr double kLeastChange = 0.03;      // a smaller change over a run is no drift
constexpr std::size_t kMostPoints = 1500;  // of a slope, which looks at all pairs

using Times = std::vector<double> Block::*;

std::vector<double> all_of(const Loaded& model, Times times) {
  std::vector<double> all;
  for (const Block& block : model.blocks) all.insert(all.end(), (block.*times).begin(), (block.*times).end());
  return all;
}

double total(const Loaded& model, double Block::*what) {
  double sum = 0.0;
  for (const Block& block : model.blocks) sum += block.*what;
  return sum;
}

bool has_corrected(const Loaded& model) { return !model.blocks.empty() && !model.blocks.front().corrected_ns.empty(); }

// The times that conclusions are drawn from.
Times best_times(const Loaded& model) { return has_corrected(model) ? &Block::corrected_ns : &Block::wall_ns; }

std::vector<double> block_medians(const Loaded& model) {
  const Times times = best_times(model);
  std::vector<double> medians;
  for (const Block& block : model.blocks) medians.push_back(quantile_of(block.*times, 0.5));
  return medians;
}

// `sum`: of all times, also those that are not kept. Samples that hang together may be too few for a percentile
// although their number is not: then nothing bounds it above.
Percentiles percentiles_of(const Loaded& model, Times times, double Block::*sum) {
  const std::vector<double> all = all_of(model, times);
  const std::size_t chunk = (model.blocks.front().*times).size();
  Percentiles found{total(model, sum) / static_cast<double>(model.inferences()), {}};
  for (const Percent& percent : kPercents) {
    found.ns.emplace_back();
    if (all.size() < samples_for(percent.share, kReportable)) continue;
    const Estimate estimate = percentile(all, chunk, percent.share, kConfidence);
    if (percent.share == 0.5 || !std::isnan(estimate.high)) found.ns.back() = estimate;
  }
  return found;
}

Distribution distribution_of(const Loaded& model) {
  std::vector<double> ascending = all_of(model, best_times(model));
  std::sort(ascending.begin(), ascending.end());
  Distribution found;
  for (int i = 0; i <= 100; ++i) found.shares.push_back(i / 100.0);
  for (const double tail : {0.995, 0.999}) {
    if (ascending.size() >= samples_for(tail, kReportable)) found.shares.insert(found.shares.end() - 1, tail);
  }
  for (const double share : found.shares) found.ns.push_back(quantile(ascending.data(), ascending.size(), share));
  return found;
}

double throughput_of(const Loaded& model, const Request& request) {
  const bool by_span = request.scenario == Scenario::kThroughput || request.scenario == Scenario::kPaced;
  const double spent_ns = total(model, by_span ? &Block::span_ns : &Block::wall_sum_ns);
  return static_cast<double>(request.batch) * 1e9 * static_cast<double>(model.inferences()) / spent_ns;
}

Pacing pacing_of(const Loaded& model) {
  const std::vector<double> late = all_of(model, &Block::late_ns);
  Pacing found{0, 0, quantile_of(late, 0.5), quantile_of(late, 0.9)};
  for (const Block& block : model.blocks) found.missed += block.missed, found.dropped += block.dropped;
  return found;
}

std::optional<Drift> drift_of(const Loaded& model, const std::vector<double>& medians) {
  const std::size_t step = medians.size() / kMostPoints + 1;
  const double middle = quantile_of(medians, 0.5), first_at = model.blocks.front().at_s;
  const double length_s = model.blocks.back().at_s - first_at;
  std::vector<double> minutes, relative, first, last;
  for (std::size_t i = 0; i < medians.size(); i += step) {
    const double at_s = model.blocks[i].at_s - first_at;
    minutes.push_back(at_s / 60.0);
    relative.push_back(medians[i] / middle);
    if (at_s < length_s / 10) first.push_back(medians[i]);
    if (at_s > length_s * 9 / 10) last.push_back(medians[i]);
  }
  if (minutes.size() < 3) return std::nullopt;
  return Drift{slope(minutes, relative, kConfidence), quantile_of(last, 0.5) / quantile_of(first, 0.5)};
}

Findings findings_of(const Loaded& model, const Request& request) {
  Findings found{};
  for (const Block& block : model.blocks) found.samples += block.wall_ns.size();
  found.block_medians = block_medians(model);
  found.raw = percentiles_of(model, &Block::wall_ns, &Block::wall_sum_ns);
  if (has_corrected(model)) {
    found.corrected = percentiles_of(model, &Block::corrected_ns, &Block::corrected_sum_ns);
  }
  found.distribution = distribution_of(model);
  found.throughput_per_s = throughput_of(model, request);
  found.cpu_ns = total(model, &Block::process_cpu_ns) / static_cast<double>(model.inferences());
  found.stationarity = stationarity(found.block_medians, kLeastChange);
  if (request.scenario == Scenario::kPaced) found.pacing = pacing_of(model);
  if (request.scenario == Scenario::kSustained) found.drift = drift_of(model, found.block_medians);
  return found;
}

double rate_of(const Block& block) { return static_cast<double>(block.inferences) * 1e9 / block.span_ns; }

// ln(baseline's time / the model's), or of rates the other way round, for each round that both have, by sitting.
std::vector<std::vector<double>> log_ratios(const Measured& measured, const Conclusions& found, std::size_t index,
                                            std::size_t against) {
  const Loaded& baseline = measured.models[against];
  const Loaded& model = measured.models[index];
  std::vector<std::vector<double>> sittings;
  const std::size_t rounds = std::min(baseline.blocks.size(), model.blocks.size());
  const std::vector<double>& base = found.models[against]->block_medians;
  const std::vector<double>& own = found.models[index]->block_medians;
  for (std::size_t i = 0; i < rounds; ++i) {
    const double ratio = measured.request.scenario == Scenario::kThroughput
                             ? rate_of(model.blocks[i]) / rate_of(baseline.blocks[i])
                             : base[i] / own[i];
    if (!(ratio > 0.0 && std::isfinite(ratio))) continue;
    sittings.resize(std::max(sittings.size(), model.blocks[i].sitting + 1));
    sittings[model.blocks[i].sitting].push_back(std::log(ratio));
  }
  return sittings;
}

// Adds the comparisons of all models after `against` with it.
void compare_with(const Measured& measured, std::size_t against, Conclusions& found) {
  const Request& request = measured.request;
  // Models that ran one after the other have no common rounds.
  if (request.scenario == Scenario::kSustained || !found.models[against]) return;
  const double confidence = each_confidence(kConfidence, request.comparisons());
  for (std::size_t index = against + 1; index < measured.models.size(); ++index) {
    if (!found.models[index]) continue;
    const auto ratios = log_ratios(measured, found, index, against);
    if (ratios.empty()) continue;
    std::size_t rounds = 0;
    for (const std::vector<double>& sitting : ratios) rounds += sitting.size();
    found.comparisons.push_back({index, against, compare(ratios, confidence, request.least_effect), rounds,
                                 ratios.size(), confidence});
  }
}

// Where more threads are asked for than there are processors, they wait for each other: that disturbs nothing.
bool waits_for_itself(const Measured& measured) {
  const Request& request = measured.request;
  int threads = request.session.threads;
  if (request.scenario == Scenario::kThroughput) threads *= request.sessions * request.callers;
  return threads > measured.target.processors || request.session.spin;
}

Validity judged(const Measured& measured) {
  ValidityBounds bounds;
  if (waits_for_itself(measured)) bounds.run_delay_share = bounds.pressure_share = HUGE_VAL;
  return judge(measured.before, *measured.after, measured.target, bounds);
}

std::string moved(const Loaded& model, const Stationarity& found) {
  char change[64];
  std::snprintf(change, sizeof change, "%+.1f%%", found.change * 100);
  return model.name + " is not stationary: its time changed by " + change + " after block " + std::to_string(found.at) +
         " of " + std::to_string(model.blocks.size());
}

std::vector<std::string> warnings_of(const Measured& measured, const Conclusions& found) {
  std::vector<std::string> warnings;
  for (std::size_t i = 0; i < measured.models.size(); ++i) {
    const Loaded& model = measured.models[i];
    if (!found.models[i]) continue;
    const std::optional<Stationarity>& stationarity = found.models[i]->stationarity;
    if (stationarity && !stationarity->stationary) warnings.push_back(moved(model, *stationarity));
    if (!stationarity) {
      warnings.push_back(model.name + ": too few blocks (" + std::to_string(model.blocks.size()) +
                         ") to tell whether its time changed on the way");
    }
    if (!model.warmed_up.settled) warnings.push_back(model.name + ": its time had not settled when the warm-up ended");
    const AgainstBaseline* compared = against_first(found, i);
    if (compared && compared->sittings < 2) {
      warnings.push_back(model.name + ": was opened once, and where its memory lies is worth some percent: no verdict");
    }
  }
  if (waits_for_itself(measured)) {
    warnings.push_back("threads wait for each other, or busily: waiting for a processor is not judged");
  }
  if (!measured.request.session.profile_prefix.empty()) warnings.push_back("times include ONNX Runtime's profiler");
  return warnings;
}

}  // namespace

const AgainstBaseline* against_first(const Conclusions& found, std::size_t model) {
  for (const AgainstBaseline& each : found.comparisons) {
    if (each.baseline == 0 && each.model == model) return &each;
  }
  return nullptr;
}

double quantile_of(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  return quantile(values.data(), values.size(), share);
}

bool complete(const Request& request, const std::vector<ColdStarts>& starts) {
  return starts.back().disk_warm.size() == static_cast<std::size_t>(request.processes);
}

Validity judged(const Cold& cold, const Target& target) {
  ValidityBounds bounds;
  bounds.io_pressure_share = HUGE_VAL;
  return judge(cold.before, cold.after, target, bounds);
}

Conclusions conclude(const Measured& measured) {
  Conclusions all;
  for (std::size_t i = 0; i < measured.models.size(); ++i) {
    const Loaded& model = measured.models[i];
    all.models.emplace_back();
    if (!measured.target.emulator.empty() || model.blocks.empty()) continue;
    all.models.back() = findings_of(model, measured.request);
  }
  compare_with(measured, 0, all);
  if (measured.request.also_against > 0) compare_with(measured, measured.request.also_against, all);
  all.warnings = warnings_of(measured, all);
  if (measured.after) all.validity = judged(measured);
  return all;
}

}  // namespace compressor
