#include "result.h"

#include "compressor/json.h"

namespace compressor {
namespace {

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

void write_estimate(Json& json, const char* key, const Estimate& estimate, double factor) {
  json.object(key)
      .member("value", estimate.value * factor)
      .member("low", estimate.low * factor)
      .member("high", estimate.high * factor)
      .end();
}

void write_percentiles(Json& json, const char* key, const Percentiles& percentiles) {
  json.object(key).member("mean_ms", percentiles.mean_ns / 1e6);
  for (std::size_t i = 0; i < percentiles.ns.size(); ++i) {
    const char* name = kPercents[i].name;
    percentiles.ns[i] ? write_estimate(json, name, *percentiles.ns[i], 1e-6) : (void)json.null(name);
  }
  json.end();
}

void write_latency(Json& json, const Findings& found) {
  json.object("latency").member("samples", found.samples);
  write_percentiles(json, "raw", found.raw);
  if (found.corrected) {
    write_percentiles(json, "corrected", *found.corrected);
    json.member("delayed_share", 1.0 - found.corrected->mean_ns / found.raw.mean_ns);
  } else {
    json.null("corrected").null("delayed_share");
  }
  json.end();
}

void write_distribution(Json& json, const Findings& found) {
  json.object("distribution").member("corrected", found.corrected.has_value()).array("shares");
  for (const double share : found.distribution.shares) json.element(share);
  json.end().array("ms");
  for (const double ns : found.distribution.ns) json.element(ns / 1e6);
  json.end().end();
}

void write_stationarity(Json& json, const std::optional<Stationarity>& found) {
  if (!found) {
    json.null("stationarity");
    return;
  }
  json.object("stationarity")
      .member("stationary", found->stationary)
      .member("p_value", found->p_value)
      .member("change", found->change)
      .member("at_block", found->at)
      .end();
}

void write_pacing(Json& json, const Pacing& pacing) {
  json.object("pacing")
      .member("missed", pacing.missed)
      .member("dropped", pacing.dropped)
      .member("late_p50_ms", pacing.late_p50_ns / 1e6)
      .member("late_p90_ms", pacing.late_p90_ns / 1e6)
      .end();
}

void write_drift(Json& json, const std::optional<Drift>& drift) {
  json.object("drift");
  if (drift) {
    write_estimate(json, "slope_per_minute", drift->slope_per_minute, 1.0);
    json.member("last_over_first", drift->last_over_first);
  } else {
    json.null("slope_per_minute").null("last_over_first");
  }
  json.end();
}

void write_findings(Json& json, const Findings& found) {
  write_latency(json, found);
  write_distribution(json, found);
  json.member("throughput_per_s", found.throughput_per_s).member("cpu_ms", found.cpu_ns / 1e6);
  write_stationarity(json, found.stationarity);
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
  answers.finite ? json.member("outputs_finite", *answers.finite) : json.null("outputs_finite");
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

void write_model(Json& json, const Measured& measured, const std::optional<Findings>& found, std::size_t index) {
  const Loaded& model = measured.models[index];
  json.object().member("name", model.name).member("bytes", bytes_of(model.path));
  write_load(json, "load", measured.loads[index], measured.target.emulator.empty());
  json.object("warm_up")
      .member("inferences", model.warmed_up.inferences)
      .member("settled", model.warmed_up.settled)
      .end();
  json.member("inferences", model.inferences());
  if (found) {
    write_findings(json, *found);
    if (found->pacing) write_pacing(json, *found->pacing);
    if (measured.request.scenario == Scenario::kSustained) write_drift(json, found->drift);
  } else {
    for (const char* key : {"latency", "distribution", "throughput_per_s", "cpu_ms", "stationarity"}) json.null(key);
  }
  if (index < measured.answers.size()) write_answers(json, measured.answers[index]);
  if (index < measured.profiles.size()) json.member("profile", measured.profiles[index]);
  json.end();
}

void write_comparisons(Json& json, const Measured& measured, const Conclusions& conclusions) {
  json.array("comparisons");
  for (const AgainstBaseline& found : conclusions.comparisons) {
    json.object()
        .member("model", measured.models[found.model].name)
        .member("baseline", measured.models[found.baseline].name);
    write_estimate(json, "speedup", found.comparison.speedup, 1.0);
    json.member("rounds", found.rounds)
        .member("sittings", found.sittings)
        .member("confidence", found.confidence)
        .member("verdict", name_of(found.comparison.verdict))
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

void write_validity(Json& json, const Validity& validity, const std::vector<std::string>& warnings,
                    const Reading& before, const Reading& after) {
  json.object("validity").member("valid", validity.valid);
  write_texts(json, "reasons", validity.reasons);
  write_texts(json, "warnings", warnings);
  write_texts(json, "unavailable", validity.unavailable);
  write_readings(json, before, after);
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
      .member("library_bytes", bytes_of_file(request.library))
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

}  // namespace

std::string result_of(const Measured& measured, const Conclusions& conclusions) {
  Json json;
  write_head(json, measured.request, measured.version, measured.target, measured.rounds);
  json.member("complete", measured.after.has_value() && !measured.interrupted);
  json.array("models");
  for (std::size_t i = 0; i < measured.models.size(); ++i) {
    write_model(json, measured, conclusions.models[i], i);
  }
  json.end();
  write_comparisons(json, measured, conclusions);
  if (conclusions.validity) {
    write_validity(json, *conclusions.validity, conclusions.warnings, measured.before, *measured.after);
  } else {
    json.null("validity");
  }
  return json.end().text();
}

std::string cold_result(const Request& request, const Cold& cold) {
  const std::vector<ColdStarts>& starts = cold.starts;
  const Target target = describe_target("");
  const bool timed = target.emulator.empty();
  Json json;
  write_head(json, request, cold.version, target, {});
  json.member("complete", complete(request, starts)).array("models");
  for (std::size_t i = 0; i < starts.size(); ++i) {
    json.object().member("name", request.models[i].name).member("bytes", bytes_of(request.models[i].path));
    json.member("still_cached", starts[i].still_cached);
    const bool dropped = starts[i].still_cached <= kStillCachedMost;
    timed && dropped ? write_starts(json, "disk_cold", starts[i].disk_cold) : (void)json.null("disk_cold");
    timed ? write_starts(json, "disk_warm", starts[i].disk_warm) : (void)json.null("disk_warm");
    write_load(json, "load", starts[i].disk_warm.front(), timed);
    json.end();
  }
  json.end();
  write_validity(json, judged(cold, target), {}, cold.before, cold.after);
  return json.end().text();
}

}  // namespace compressor
