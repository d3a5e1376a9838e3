#include "conclusions.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace compressor {
namespace {

constexpr double kConfidence = 0.95;
constexpr double kReportable = 0.99;       // that the largest sample lies above a percentile, else it is not reported
constexpr double kLeastChange = 0.03;      // a smaller change over a run is no drift
constexpr std::size_t kMostPoints = 1500;  // of a slope, which looks at all pairs

using Times = std::vector<double> Block::*;

std::vector<double> all_of(const Loaded& model, Times times) {
  std::vector<double> all;
  for (const Block& block : model.blocks) all.insert(all.end(), (block.*times).begin(), (block.*times).end());
  return all;
}

double mean_of(const std::vector<double>& values) {
  double sum = 0.0;
  for (const double value : values) sum += value;
  return values.empty() ? std::nan("") : sum / static_cast<double>(values.size());
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

Percentiles percentiles_of(const Loaded& model, Times times) {
  const std::vector<double> all = all_of(model, times);
  const std::size_t chunk = (model.blocks.front().*times).size();
  Percentiles found{mean_of(all), {}};
  for (const Percent& percent : kPercents) {
    found.ns.emplace_back();
    if (all.size() < samples_for(percent.share, kReportable)) continue;
    found.ns.back() = percentile(all, chunk, percent.share, kConfidence);
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
  const double batch_s = static_cast<double>(request.batch) * 1e9;
  if (request.scenario != Scenario::kThroughput) return batch_s / mean_of(all_of(model, &Block::wall_ns));
  return batch_s * static_cast<double>(model.inferences()) / total(model, &Block::span_ns);
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
  const std::vector<double> medians = block_medians(model);
  Findings found{};
  found.samples = all_of(model, &Block::wall_ns).size();
  found.raw = percentiles_of(model, &Block::wall_ns);
  if (has_corrected(model)) found.corrected = percentiles_of(model, &Block::corrected_ns);
  found.distribution = distribution_of(model);
  found.throughput_per_s = throughput_of(model, request);
  found.cpu_ns = total(model, &Block::process_cpu_ns) / static_cast<double>(model.inferences());
  found.stationarity = stationarity(medians, kLeastChange);
  if (request.scenario == Scenario::kPaced) found.pacing = pacing_of(model);
  if (request.scenario == Scenario::kSustained) found.drift = drift_of(model, medians);
  return found;
}

double rate_of(const Block& block) { return static_cast<double>(block.inferences) * 1e9 / block.span_ns; }

// ln(baseline's time / the model's), or of rates the other way round, for each round that both have, by sitting.
std::vector<std::vector<double>> log_ratios(const Request& request, const Loaded& baseline, const Loaded& model) {
  std::vector<std::vector<double>> sittings;
  const std::size_t rounds = std::min(baseline.blocks.size(), model.blocks.size());
  const std::vector<double> base = block_medians(baseline), own = block_medians(model);
  for (std::size_t i = 0; i < rounds; ++i) {
    const double ratio = request.scenario == Scenario::kThroughput
                             ? rate_of(model.blocks[i]) / rate_of(baseline.blocks[i])
                             : base[i] / own[i];
    if (!(ratio > 0.0 && std::isfinite(ratio))) continue;
    sittings.resize(std::max(sittings.size(), model.blocks[i].sitting + 1));
    sittings[model.blocks[i].sitting].push_back(std::log(ratio));
  }
  return sittings;
}

std::optional<AgainstBaseline> against_baseline(const Measured& measured, std::size_t index) {
  const Request& request = measured.request;
  // Models that ran one after the other have no common rounds.
  if (index == 0 || request.scenario == Scenario::kSustained) return std::nullopt;
  const auto ratios = log_ratios(request, measured.models[0], measured.models[index]);
  if (ratios.empty()) return std::nullopt;
  const double confidence = each_confidence(kConfidence, measured.models.size() - 1);
  std::size_t rounds = 0;
  for (const std::vector<double>& sitting : ratios) rounds += sitting.size();
  return AgainstBaseline{compare(ratios, confidence, request.least_effect), rounds, ratios.size(), confidence};
}

// Where more threads are asked for than there are processors, they wait for each other: that disturbs nothing.
Validity judged(const Measured& measured) {
  const Request& request = measured.request;
  int threads = request.session.threads;
  if (request.scenario == Scenario::kThroughput) threads *= request.sessions * request.callers;
  ValidityBounds bounds;
  if (threads > measured.target.processors || request.session.spin) {
    bounds.run_delay_share = bounds.pressure_share = HUGE_VAL;
  }
  return judge(measured.before, *measured.after, measured.target, bounds);
}

std::string warning_of(const Loaded& model, const Stationarity& found) {
  char change[64];
  std::snprintf(change, sizeof change, "%+.1f%%", found.change * 100);
  return model.name + " is not stationary: its time changed by " + change + " after block " + std::to_string(found.at) +
         " of " + std::to_string(model.blocks.size());
}

}  // namespace

double quantile_of(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  return quantile(values.data(), values.size(), share);
}

bool complete(const Request& request, const std::vector<ColdStarts>& starts) {
  return starts.back().disk_warm.size() == static_cast<std::size_t>(request.processes);
}

Conclusions conclude(const Measured& measured) {
  Conclusions all;
  for (std::size_t i = 0; i < measured.models.size(); ++i) {
    const Loaded& model = measured.models[i];
    all.models.emplace_back();
    all.comparisons.emplace_back();
    if (!measured.target.emulator.empty() || model.blocks.empty()) continue;
    const Findings& found = all.models.back().emplace(findings_of(model, measured.request));
    all.comparisons.back() = against_baseline(measured, i);
    if (!found.stationarity.stationary) all.warnings.push_back(warning_of(model, found.stationarity));
  }
  if (measured.after) all.validity = judged(measured);
  return all;
}

}  // namespace compressor
