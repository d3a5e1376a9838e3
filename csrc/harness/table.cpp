#include <algorithm>
#include <cmath>
#include <cstdio>

#include "result.h"

namespace compressor {
namespace {

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

std::string percentile_text(const Findings& found, std::size_t index) {
  const std::optional<Estimate>& ns = found.best().ns[index];
  return ns ? printed("%.4g", ns->value / 1e6) : "-";
}

std::string speedup_text(const AgainstBaseline* against) {
  if (!against) return "-";
  const Comparison& found = against->comparison;
  return printed("%.3g", found.speedup.value) + " [" + printed("%.3g", found.speedup.low) + ", " +
         printed("%.3g", found.speedup.high) + "] " + name_of(found.verdict);
}

}  // namespace

std::vector<std::string> table_of(const Measured& measured, const Conclusions& conclusions) {
  std::vector<TableRow> rows{{"model", "p50 ms", "p90 ms", "p99 ms", "CPU ms", "session ms", "peak MiB", "speed-up"}};
  for (std::size_t i = 0; i < measured.models.size(); ++i) {
    const std::optional<Findings>& found = conclusions.models[i];
    const LoadCost& load = measured.loads[i];
    TableRow row{measured.models[i].name};
    if (found) {
      for (const std::size_t percent : {0u, 1u, 2u}) row.push_back(percentile_text(*found, percent));
      row.push_back(printed("%.4g", found->cpu_ns / 1e6));
      row.push_back(printed("%.1f", load.session_ms));
    } else {
      row.insert(row.end(), 5, "-");
    }
    row.push_back(printed("%.1f", load.peak_mib - load.start_mib));
    row.push_back(speedup_text(against_first(conclusions, i)));
    rows.push_back(row);
  }
  std::vector<std::string> lines = aligned(rows);
  if (conclusions.validity) {
    for (const std::string& reason : conclusions.validity->reasons) lines.push_back("INVALID: " + reason);
  }
  for (const std::string& warning : conclusions.warnings) lines.push_back("warning: " + warning);
  if (measured.interrupted) lines.push_back(kInterrupted);
  return lines;
}

std::vector<std::string> cold_table(const Request& request, const Cold& cold) {
  const std::vector<ColdStarts>& starts = cold.starts;
  const Target target = describe_target("");
  const bool timed = target.emulator.empty();
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
    if (starts[i].still_cached <= kStillCachedMost) add(request.models[i].name, "cold", starts[i].disk_cold);
    add(request.models[i].name, "warm", starts[i].disk_warm);
  }
  std::vector<std::string> lines = aligned(rows);
  for (const std::string& reason : judged(cold, target).reasons) lines.push_back("INVALID: " + reason);
  if (!complete(request, starts)) lines.push_back(kInterrupted);
  return lines;
}

}  // namespace compressor
