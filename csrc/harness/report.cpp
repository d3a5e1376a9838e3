#include "report.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include "compressor/json.h"
#include "compressor/stats.h"

namespace compressor {
namespace {

constexpr double kConfidence = 0.95;
constexpr double kReportable = 0.99;    // that the largest sample lies above a percentile, else it is not reported
constexpr double kLeastChange = 0.03;   // a smaller change over a run is no drift
constexpr std::size_t kMostPoints = 1500;  // of a slope, which looks at all pairs
constexpr char kInterrupted[] = "interrupted: this is what was measured until then";
constexpr double kDropped = 0.1;        // share of the files that may stay in memory for a start to count as disk-cold

struct Percent {
  const char* name;
  double share;
};
constexpr Percent kPercents[] = {{"p50_ms", 0.5}, {"p90_ms", 0.9}, {"p99_ms", 0.99}, {"p999_ms", 0.999}};

const char* name_of(Scenario scenario) {
  switch (scenario) {
    case Scenario::kStream: return "stream";
    case Scenario::kPaced: return "paced";
    case Scenario::kThroughput: return "throughput";
    case Scenario::kSustained: return "sustained";
    case Scenario::kCold: return "cold";
  }
  return "";
}

const char* name_of(Verdict verdict) {
  return verdict == Verdict::kFaster ? "faster" : verdict == Verdict::kSlower ? "slower" : "inconclusive";
}

using Times = std::vector<double> Block::*;

std::vector<double> all_of(const Loaded& model, Times times) {
  std::vector<double> all;
  for (const Block& block : model.blocks) all.insert(all.end(), (block.*times).begin(), (block.*times).end());
  return all;
}

double quantile_of(std::vector<double> values, double share) {
  if (values.empty()) return std::nan("");
  std::sort(values.begin(), values.end());
  return quantile(values.data(), values.size(), share);
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

bool corrected(const Loaded& model) { return !model.blocks.empty() && !model.blocks.front().corrected_ns.empty(); }

// The times that conclusions are drawn from.
Times best_times(const Loaded& model) { return corrected(model) ? &Block::corrected_ns : &Block::wall_ns; }

std::vector<double> block_medians(const Loaded& model) {
  std::vector<double> medians;
  for (const Block& block : model.blocks) medians.push_back(quantile_of(block.*best_times(model), 0.5));
  return medians;
}

double rate_of(const Block& block) { return static_cast<double>(block.inferences) * 1e9 / block.span_ns; }

void write_estimate(Json& json, const char* key, const Estimate& estimate, double factor) {
  json.object(key)
      .member("value", estimate.value * factor)
      .member("low", estimate.low * factor)
      .member("high", estimate.high * factor)
      .end();
}

void write_percentiles(Json& json, const char* key, const Loaded& model, Times times) {
  const std::vector<double> all = all_of(model, times);
  const std::size_t chunk = (model.blocks.front().*times).size();
  json.object(key).member("mean_ms", mean_of(all) / 1e6);
  for (const Percent& percent : kPercents) {
    if (all.size() < samples_for(percent.share, kReportable)) {
      json.null(percent.name);
    } else {
      write_estimate(json, percent.name, percentile(all, chunk, percent.share, kConfidence), 1e-6);
    }
  }
  json.end();
}

void write_latency(Json& json, const Loaded& model) {
  const std::vector<double> raw = all_of(model, &Block::wall_ns), better = all_of(model, &Block::corrected_ns);
  json.object("latency").member("samples", raw.size());
  write_percentiles(json, "raw", model, &Block::wall_ns);
  if (corrected(model)) {
    write_percentiles(json, "corrected", model, &Block::corrected_ns);
    json.member("delayed_share", 1.0 - mean_of(better) / mean_of(raw));
  } else {
    json.null("corrected").null("delayed_share");
  }
  json.end();
}

// The quantile function, for drawing.
void write_distribution(Json& json, const Loaded& model) {
  std::vector<double> ascending = all_of(model, best_times(model));
  std::sort(ascending.begin(), ascending.end());
  std::vector<double> shares;
  for (int i = 0; i <= 100; ++i) shares.push_back(i / 100.0);
  for (const double tail : {0.995, 0.999}) {
    if (ascending.size() >= samples_for(tail, kReportable)) shares.insert(shares.end() - 1, tail);
  }
  json.object("distribution").member("corrected", corrected(model)).array("shares");
  for (const double share : shares) json.element(share);
  json.end().array("ms");
  for (const double share : shares) json.element(quantile(ascending.data(), ascending.size(), share) / 1e6);
  json.end().end();
}

void write_throughput(Json& json, const Loaded& model, const Request& request) {
  if (request.scenario != Scenario::kThroughput) {
    const double mean_ns = mean_of(all_of(model, &Block::wall_ns));
    json.member("throughput_per_s", static_cast<double>(request.batch) * 1e9 / mean_ns);
    return;
  }
  double inferences = 0.0;
  for (const Block& block : model.blocks) inferences += static_cast<double>(block.inferences);
  json.member("throughput_per_s",
              static_cast<double>(request.batch) * inferences * 1e9 / total(model, &Block::span_ns));
}

void write_pacing(Json& json, const Loaded& model) {
  std::size_t missed = 0, dropped = 0;
  for (const Block& block : model.blocks) missed += block.missed, dropped += block.dropped;
  const std::vector<double> late = all_of(model, &Block::late_ns);
  json.object("pacing")
      .member("missed", missed)
      .member("dropped", dropped)
      .member("late_p50_ms", quantile_of(late, 0.5) / 1e6)
      .member("late_p90_ms", quantile_of(late, 0.9) / 1e6)
      .end();
}

void write_drift(Json& json, const Loaded& model) {
  const std::vector<double> medians = block_medians(model);
  const std::size_t step = medians.size() / kMostPoints + 1;
  std::vector<double> minutes, relative;
  const double middle = quantile_of(medians, 0.5), first_at = model.blocks.front().at_s;
  std::vector<double> first, last;
  for (std::size_t i = 0; i < medians.size(); i += step) {
    const double at_s = model.blocks[i].at_s - first_at;
    minutes.push_back(at_s / 60.0);
    relative.push_back(medians[i] / middle);
    const double length_s = model.blocks.back().at_s - first_at;
    if (at_s < length_s / 10) first.push_back(medians[i]);
    if (at_s > length_s * 9 / 10) last.push_back(medians[i]);
  }
  json.object("drift");
  if (minutes.size() < 3) {
    json.null("slope_per_minute").null("last_over_first");
  } else {
    write_estimate(json, "slope_per_minute", slope(minutes, relative, kConfidence), 1.0);
    json.member("last_over_first", quantile_of(last, 0.5) / quantile_of(first, 0.5));
  }
  json.end();
}

void write_stationarity(Json& json, const Loaded& model) {
  const Stationarity found = stationarity(block_medians(model), kLeastChange);
  json.object("stationarity")
      .member("stationary", found.stationary)
      .member("p_value", found.p_value)
      .member("change", found.change)
      .member("at_block", found.at)
      .end();
}

void write_load(Json& json, const char* key, const LoadCost& cost, bool with_times) {
  json.object(key);
  const auto time = [&](const char* name, double value) { with_times ? json.member(name, value) : json.null(name); };
  time("library_ms", cost.library_ms);
  time("session_ms", cost.session_ms);
  time("first_inference_ms", cost.first_inference_ms);
  json.object("memory_mib")
      .member("start", cost.start_mib)
      .member("library", cost.library_mib)
      .member("session", cost.session_mib)
      .member("first_inference", cost.first_inference_mib)
      .member("peak", cost.peak_mib)
      .end()
      .end();
}

void write_answers(Json& json, const Answers& answers) {
  if (answers.against.empty()) {
    json.null("answers").member("answers_unknown", answers.reason);
    return;
  }
  const Agreement& agreement = answers.agreement;
  json.object("answers")
      .member("against", answers.against)
      .member("cases", agreement.cases)
      .member("equal", agreement.equal)
      .member("finite", agreement.finite)
      .member("max_abs_error", agreement.max_abs_error)
      .member("min_cosine", agreement.min_cosine)
      .end();
}

std::int64_t file_bytes(const std::string& path) {
  struct stat state {};
  return stat(path.c_str(), &state) == 0 ? static_cast<std::int64_t>(state.st_size) : 0;
}

void write_model(Json& json, const Measured& measured, std::size_t index) {
  const Loaded& model = measured.models[index];
  const Request& request = measured.request;
  const bool timed = measured.target.emulator.empty() && !model.blocks.empty();
  json.object().member("name", model.name).member("bytes", file_bytes(model.path));
  write_load(json, "load", measured.loads[index], measured.target.emulator.empty());
  json.object("warm_up")
      .member("inferences", model.warmed_up.inferences)
      .member("settled", model.warmed_up.settled)
      .end();
  json.member("inferences", model.inferences());
  if (timed) {
    write_latency(json, model);
    write_distribution(json, model);
    write_throughput(json, model, request);
    json.member("cpu_ms", total(model, &Block::process_cpu_ns) / 1e6 / static_cast<double>(model.inferences()));
    write_stationarity(json, model);
  } else {
    for (const char* key : {"latency", "distribution", "throughput_per_s", "cpu_ms", "stationarity"}) json.null(key);
  }
  if (timed && request.scenario == Scenario::kPaced) write_pacing(json, model);
  if (timed && request.scenario == Scenario::kSustained) write_drift(json, model);
  if (index < measured.answers.size()) write_answers(json, measured.answers[index]);
  if (index < measured.profiles.size()) json.member("profile", measured.profiles[index]);
  json.end();
}

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

std::size_t count_of(const std::vector<std::vector<double>>& sittings) {
  std::size_t count = 0;
  for (const std::vector<double>& ratios : sittings) count += ratios.size();
  return count;
}

void write_comparisons(Json& json, const Measured& measured) {
  const Request& request = measured.request;
  json.array("comparisons");
  // Models that ran one after the other have no common rounds.
  const bool compared = request.scenario != Scenario::kSustained && measured.target.emulator.empty();
  const double confidence = each_confidence(kConfidence, measured.models.size() - 1);
  for (std::size_t i = 1; compared && i < measured.models.size(); ++i) {
    const auto ratios = log_ratios(request, measured.models[0], measured.models[i]);
    if (ratios.empty()) continue;
    const Comparison found = compare(ratios, confidence, request.least_effect);
    json.object().member("model", measured.models[i].name).member("baseline", measured.models[0].name);
    write_estimate(json, "speedup", found.speedup, 1.0);
    json.member("rounds", count_of(ratios))
        .member("sittings", ratios.size())
        .member("confidence", confidence)
        .member("verdict", name_of(found.verdict))
        .end();
  }
  json.end();
}

void write_number(Json& json, const char* key, const std::optional<double>& value) {
  value ? json.member(key, *value) : json.null(key);
}

template <class Number>
std::optional<double> between(const std::optional<Number>& before, const std::optional<Number>& after) {
  if (!before || !after) return std::nullopt;
  return static_cast<double>(*after - *before);
}

void write_readings(Json& json, const Reading& before, const Reading& after) {
  json.object("readings").member("seconds", static_cast<double>(after.at_ns - before.at_ns) / 1e9);
  write_number(json, "pressure_cpu_us", between(before.pressure_cpu_us, after.pressure_cpu_us));
  write_number(json, "pressure_memory_us", between(before.pressure_memory_us, after.pressure_memory_us));
  write_number(json, "pressure_io_us", between(before.pressure_io_us, after.pressure_io_us));
  write_number(json, "run_delay_ns", between(before.run_delay_ns, after.run_delay_ns));
  write_number(json, "others_cpu_ns", between(before.others_cpu_ns, after.others_cpu_ns));
  write_number(json, "steal_ns", between(before.steal_ns, after.steal_ns));
  write_number(json, "involuntary_switches", between(before.involuntary_switches, after.involuntary_switches));
  write_number(json, "major_faults", between(before.major_faults, after.major_faults));
  write_number(json, "throttle_events", between(before.throttle_events, after.throttle_events));
  write_number(json, "slowest_mhz_before", before.slowest_mhz);
  write_number(json, "slowest_mhz_after", after.slowest_mhz);
  write_number(json, "hottest_celsius_before", before.hottest_celsius);
  write_number(json, "hottest_celsius_after", after.hottest_celsius);
  json.member("probe_ns_before", before.probe_ns).member("probe_ns_after", after.probe_ns).end();
}

void write_texts(Json& json, const char* key, const std::vector<std::string>& texts) {
  json.array(key);
  for (const std::string& text : texts) json.element(text);
  json.end();
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

// What does not spoil a measurement, but should be known.
std::vector<std::string> warnings_of(const std::vector<Loaded>& models) {
  std::vector<std::string> warnings;
  for (const Loaded& model : models) {
    if (model.blocks.empty()) continue;
    const Stationarity found = stationarity(block_medians(model), kLeastChange);
    if (found.stationary) continue;
    char change[64];
    std::snprintf(change, sizeof change, "%+.1f%%", found.change * 100);
    warnings.push_back(model.name + " is not stationary: its time changed by " + change + " after block " +
                       std::to_string(found.at) + " of " + std::to_string(model.blocks.size()));
  }
  return warnings;
}

void write_validity(Json& json, const Measured& measured) {
  if (!measured.after) {
    json.null("validity");
    return;
  }
  const Validity validity = judged(measured);
  json.object("validity").member("valid", validity.valid);
  write_texts(json, "reasons", validity.reasons);
  write_texts(json, "warnings", warnings_of(measured.models));
  write_texts(json, "unavailable", validity.unavailable);
  write_readings(json, measured.before, *measured.after);
  json.end();
}

void write_conditions(Json& json, const Request& request, const Rounds& rounds) {
  json.object("conditions")
      .member("threads", request.session.threads)
      .member("optimization_level", request.session.optimization_level)
      .member("spin", request.session.spin)
      .member("provider", request.session.provider)
      .member("batch", request.batch)
      .object("shapes");
  for (const auto& [name, size] : request.shapes) json.member(name, size);
  json.end()
      .member("seed", static_cast<std::int64_t>(request.seed))
      .member("budget_s", request.budget_s)
      .member("least_effect", request.least_effect)
      .member("rounds", rounds.done)
      .member("block", rounds.block);
  if (request.scenario == Scenario::kPaced) json.member("period_ms", request.period_ms);
  if (request.scenario == Scenario::kSustained) json.member("duration_s", request.duration_s);
  if (request.scenario == Scenario::kThroughput) {
    json.member("sessions", request.sessions).member("callers", request.callers);
  }
  if (request.scenario == Scenario::kCold) json.member("processes", request.processes);
  json.end();
}

void write_target(Json& json, const Target& target) {
  json.object("target")
      .member("architecture", target.architecture)
      .member("processor", target.processor)
      .member("system", target.system)
      .member("processors", target.processors);
  write_number(json, "memory_mib", target.memory_mib);
  target.virtual_machine ? json.member("virtual_machine", *target.virtual_machine) : json.null("virtual_machine");
  target.emulator.empty() ? json.null("emulator") : json.member("emulator", target.emulator);
  json.end();
}

void write_head(Json& json, const Request& request, const std::string& version, const Target& target,
                const Rounds& rounds) {
  json.object()
      .member("format_version", kResultVersion)
      .member("scenario", name_of(request.scenario))
      .object("runtime")
      .member("version", version)
      .member("library_bytes", file_bytes(request.library))
      .end();
  write_target(json, target);
  write_conditions(json, request, rounds);
}

// The median, least and most of one figure of several starts.
void write_spread(Json& json, const char* key, const std::vector<LoadCost>& starts, double LoadCost::*figure) {
  std::vector<double> values;
  for (const LoadCost& start : starts) values.push_back(start.*figure);
  json.object(key)
      .member("median", quantile_of(values, 0.5))
      .member("least", quantile_of(values, 0.0))
      .member("most", quantile_of(values, 1.0))
      .end();
}

void write_starts(Json& json, const char* key, const std::vector<LoadCost>& starts) {
  json.object(key).member("processes", starts.size());
  write_spread(json, "library_ms", starts, &LoadCost::library_ms);
  write_spread(json, "session_ms", starts, &LoadCost::session_ms);
  write_spread(json, "first_inference_ms", starts, &LoadCost::first_inference_ms);
  write_spread(json, "peak_mib", starts, &LoadCost::peak_mib);
  json.end();
}

bool complete(const Request& request, const std::vector<ColdStarts>& starts) {
  return starts.back().disk_warm.size() == static_cast<std::size_t>(request.processes);
}

std::string printed(const char* format, double value) {
  if (std::isnan(value)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

using TableRow = std::vector<std::string>;

// The first column to the left, the others to the right.
std::vector<std::string> aligned(const std::vector<TableRow>& rows) {
  std::vector<std::size_t> widths(rows.front().size());
  for (const TableRow& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::vector<std::string> lines;
  for (const TableRow& row : rows) {
    std::string line = row[0] + std::string(widths[0] - row[0].size(), ' ');
    for (std::size_t i = 1; i < row.size(); ++i) line += "  " + std::string(widths[i] - row[i].size(), ' ') + row[i];
    lines.push_back(line);
  }
  return lines;
}

std::string percentile_text(const Loaded& model, double share) {
  const std::vector<double> all = all_of(model, best_times(model));
  if (all.size() < samples_for(share, kReportable)) return "-";
  return printed("%.4g", quantile_of(all, share) / 1e6);
}

std::string speedup_text(const Measured& measured, std::size_t index) {
  const auto ratios = log_ratios(measured.request, measured.models[0], measured.models[index]);
  if (index == 0 || measured.request.scenario == Scenario::kSustained || ratios.empty()) return "-";
  const double confidence = each_confidence(kConfidence, measured.models.size() - 1);
  const Comparison found = compare(ratios, confidence, measured.request.least_effect);
  return printed("%.3g", found.speedup.value) + " [" + printed("%.3g", found.speedup.low) + ", " +
         printed("%.3g", found.speedup.high) + "] " + name_of(found.verdict);
}

}  // namespace

std::vector<std::string> table_of(const Measured& measured) {
  std::vector<TableRow> rows{{"model", "p50 ms", "p90 ms", "p99 ms", "CPU ms", "session ms", "peak MiB", "speed-up"}};
  for (std::size_t i = 0; i < measured.models.size(); ++i) {
    const Loaded& model = measured.models[i];
    const LoadCost& load = measured.loads[i];
    if (!measured.target.emulator.empty() || model.blocks.empty()) {
      rows.push_back({model.name, "-", "-", "-", "-", "-", printed("%.1f", load.peak_mib - load.start_mib), "-"});
      continue;
    }
    rows.push_back({model.name, percentile_text(model, 0.5), percentile_text(model, 0.9), percentile_text(model, 0.99),
                    printed("%.4g", total(model, &Block::process_cpu_ns) / 1e6 / static_cast<double>(model.inferences())),
                    printed("%.1f", load.session_ms), printed("%.1f", load.peak_mib - load.start_mib),
                    speedup_text(measured, i)});
  }
  std::vector<std::string> lines = aligned(rows);
  const Validity validity = judged(measured);
  for (const std::string& reason : validity.reasons) lines.push_back("INVALID: " + reason);
  for (const std::string& warning : warnings_of(measured.models)) lines.push_back("warning: " + warning);
  if (measured.interrupted) lines.push_back(kInterrupted);
  return lines;
}

std::vector<std::string> cold_table(const Request& request, const std::vector<ColdStarts>& starts) {
  const bool timed = describe_target("").emulator.empty();
  std::vector<TableRow> rows{{"model", "disk cache", "library ms", "session ms", "first inference ms"}};
  const auto add = [&](const std::string& name, const char* state, const std::vector<LoadCost>& costs) {
    TableRow row{name, state};
    for (double LoadCost::*figure : {&LoadCost::library_ms, &LoadCost::session_ms, &LoadCost::first_inference_ms}) {
      std::vector<double> values;
      for (const LoadCost& cost : costs) values.push_back(cost.*figure);
      row.push_back(printed("%.4g", timed ? quantile_of(values, 0.5) : std::nan("")));
    }
    rows.push_back(row);
  };
  for (std::size_t i = 0; i < starts.size(); ++i) {
    if (starts[i].still_cached <= kDropped) add(request.models[i].name, "cold", starts[i].disk_cold);
    add(request.models[i].name, "warm", starts[i].disk_warm);
  }
  std::vector<std::string> lines = aligned(rows);
  if (!timed) lines.push_back("INVALID: instructions are emulated: times say nothing of a processor");
  if (!complete(request, starts)) lines.push_back(kInterrupted);
  return lines;
}

std::string result_of(const Measured& measured) {
  Json json;
  write_head(json, measured.request, measured.version, measured.target, measured.rounds);
  json.member("complete", measured.after.has_value() && !measured.interrupted);
  json.array("models");
  for (std::size_t i = 0; i < measured.models.size(); ++i) write_model(json, measured, i);
  json.end();
  write_comparisons(json, measured);
  write_validity(json, measured);
  return json.end().text();
}

std::string cold_result(const Request& request, const std::string& version, const std::vector<ColdStarts>& starts) {
  const Target target = describe_target("");
  const bool timed = target.emulator.empty();
  Json json;
  write_head(json, request, version, target, {});
  json.member("complete", complete(request, starts)).array("models");
  for (std::size_t i = 0; i < starts.size(); ++i) {
    json.object().member("name", request.models[i].name).member("bytes", file_bytes(request.models[i].path));
    json.member("still_cached", starts[i].still_cached);
    const bool dropped = starts[i].still_cached <= kDropped;
    timed && dropped ? write_starts(json, "disk_cold", starts[i].disk_cold) : (void)json.null("disk_cold");
    timed ? write_starts(json, "disk_warm", starts[i].disk_warm) : (void)json.null("disk_warm");
    write_load(json, "load", starts[i].disk_warm.front(), timed);
    json.end();
  }
  return json.end().end().text();
}

}  // namespace compressor
