#include <algorithm>
#include <cstdio>

#include "compressor/machine.h"

namespace compressor {
namespace {

constexpr std::int64_t kThrottledNow = 0xf;           // get_throttled: under-voltage, capped, throttled, soft limit
constexpr std::int64_t kHasBeenThrottled = 0xf0000;  // the same, some time before

// Collects what judge finds.
class Findings {
 public:
  void disturbed(const char* reason) { result_.reasons.emplace_back(reason); }
  template <class... Values>
  void disturbed(const char* format, Values... values) {
    char line[256];
    std::snprintf(line, sizeof line, format, values...);
    disturbed(line);
  }
  void unavailable(const char* name) { result_.unavailable.emplace_back(name); }

  // How much a counter grew, or nothing where it is not in both readings. A counter may lose what ended threads or
  // processors that were switched off had added.
  template <class Number>
  std::optional<double> growth(const char* name, const std::optional<Number>& before,
                               const std::optional<Number>& after) {
    if (!before || !after) {
      unavailable(name);
      return std::nullopt;
    }
    return std::max(0.0, static_cast<double>(*after) - static_cast<double>(*before));
  }

  Validity result() && {
    result_.valid = result_.reasons.empty();
    return std::move(result_);
  }

 private:
  Validity result_{true, {}, {}};
};

// Notes a share of the time that is above its bound, in percent.
void judge_share(Findings& findings, const char* format, const std::optional<double>& spent_ns, double time_ns,
                 double bound) {
  if (!spent_ns || !(*spent_ns / time_ns > bound)) return;
  findings.disturbed(format, 100.0 * *spent_ns / time_ns, 100.0 * bound);
}

void judge_waiting(Findings& findings, const Reading& before, const Reading& after, double elapsed_ns,
                   const ValidityBounds& bounds) {
  const auto pressure_ns = [&](const char* name, std::optional<double> Reading::*member) {
    std::optional<double> grown = findings.growth(name, before.*member, after.*member);
    if (grown) *grown *= 1e3;
    return grown;
  };
  judge_share(findings, "this process's threads waited for a processor %.2f%% of the time (bound %.2f%%)",
              findings.growth("run_delay", before.run_delay_ns, after.run_delay_ns), elapsed_ns,
              bounds.run_delay_share);
  judge_share(findings,
              "some task, this process's own included, waited for a processor %.2f%% of the time (bound %.2f%%)",
              pressure_ns("pressure_cpu", &Reading::pressure_cpu_us), elapsed_ns, bounds.pressure_share);
  judge_share(findings, "some task waited for memory %.2f%% of the time (bound %.2f%%)",
              pressure_ns("pressure_memory", &Reading::pressure_memory_us), elapsed_ns, bounds.memory_pressure_share);
  judge_share(findings, "some task waited for a disk %.2f%% of the time (bound %.2f%%)",
              pressure_ns("pressure_io", &Reading::pressure_io_us), elapsed_ns, bounds.io_pressure_share);
}

void judge_processors(Findings& findings, const Reading& before, const Reading& after, double elapsed_ns,
                      const Target& target, const ValidityBounds& bounds) {
  const auto others_ns = findings.growth("others_cpu", before.others_cpu_ns, after.others_cpu_ns);
  if (others_ns && *others_ns / elapsed_ns > bounds.others_processors) {
    findings.disturbed("other work used %.2f processors on average (bound %.2f)", *others_ns / elapsed_ns,
                       bounds.others_processors);
  }
  judge_share(findings, "the hypervisor took %.2f%% of all processors' time (bound %.2f%%)",
              findings.growth("steal", before.steal_ns, after.steal_ns),
              elapsed_ns * std::max({1, target.processors, target.online_processors}), bounds.steal_share);
  findings.growth("involuntary_switches", before.involuntary_switches, after.involuntary_switches);
  const auto faults = findings.growth("major_faults", before.major_faults, after.major_faults);
  if (faults && *faults > static_cast<double>(bounds.major_faults)) {
    findings.disturbed("this process waited %.0f times for a page from a disk (bound %.0f)", *faults,
                       static_cast<double>(bounds.major_faults));
  }
}

void judge_throttling(Findings& findings, const Reading& before, const Reading& after) {
  const bool counted = before.throttle_events && after.throttle_events;
  const bool flagged = before.throttle_bits && after.throttle_bits;
  if (!counted && !flagged) findings.unavailable("throttling");
  if (counted && *after.throttle_events > *before.throttle_events) {
    findings.disturbed("processors were throttled for heat %.0f times (bound 0)",
                       *after.throttle_events - *before.throttle_events);
  }
  if (!flagged) return;
  // What has been may lie before the measurement, and the kernel clears it now and then; what is, counts whenever seen.
  const std::int64_t now = (*before.throttle_bits | *after.throttle_bits) & kThrottledNow;
  const std::int64_t since = *after.throttle_bits & ~*before.throttle_bits & kHasBeenThrottled;
  if ((now | since) != 0) {
    findings.disturbed("the board throttled: get_throttled was 0x%llx before and 0x%llx after",
                       static_cast<long long>(*before.throttle_bits), static_cast<long long>(*after.throttle_bits));
  }
}

void judge_speed(Findings& findings, const Reading& before, const Reading& after, const ValidityBounds& bounds) {
  if (!before.slowest_mhz || !after.slowest_mhz || *before.slowest_mhz <= 0.0) {
    findings.unavailable("frequency");
  } else if (*after.slowest_mhz / *before.slowest_mhz < bounds.frequency_ratio) {
    findings.disturbed("the slowest processor's frequency went from %.0f to %.0f MHz, to %.2f of it (bound %.2f)",
                       *before.slowest_mhz, *after.slowest_mhz, *after.slowest_mhz / *before.slowest_mhz,
                       bounds.frequency_ratio);
  }
  if (!before.hottest_celsius || !after.hottest_celsius) findings.unavailable("temperature");
  if (before.probe_ns <= 0.0 || after.probe_ns <= 0.0) {
    findings.unavailable("probe");
    return;
  }
  const double ratio = std::max(after.probe_ns / before.probe_ns, before.probe_ns / after.probe_ns);
  if (ratio > bounds.probe_ratio) {
    findings.disturbed("the same computation took %.2f ms before and %.2f ms after, a ratio of %.2f (bound %.2f)",
                       before.probe_ns / 1e6, after.probe_ns / 1e6, ratio, bounds.probe_ratio);
  }
}

}  // namespace

Validity judge(const Reading& before, const Reading& after, const Target& target, const ValidityBounds& bounds) {
  Findings findings;
  if (!target.emulator.empty()) {
    findings.disturbed("instructions are emulated (%s): times say nothing of a processor", target.emulator.c_str());
  }
  const auto elapsed_ns = static_cast<double>(after.at_ns - before.at_ns);
  if (elapsed_ns <= 0.0) {
    findings.disturbed("no time passed between the two readings");
    return std::move(findings).result();
  }
  judge_waiting(findings, before, after, elapsed_ns, bounds);
  judge_processors(findings, before, after, elapsed_ns, target, bounds);
  judge_speed(findings, before, after, bounds);
  judge_throttling(findings, before, after);
  return std::move(findings).result();
}

}  // namespace compressor
