// The statistics for Python. Checks what arrays hold: the core sorts them, and NaN has no place in an order.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind.h"
#include "compressor/stats.h"

namespace py = pybind11;

namespace {

using Array = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Interval = std::tuple<double, double, double>;

template <class Got>
void demand(bool holds, const std::string& expected, const Got& got) {
  if (!holds) throw py::value_error(py::str("{}, got {}").format(expected, got));
}

std::vector<double> values_of(const Array& array, const std::string& name) {
  demand(array.ndim() == 1 && array.size() >= 1, name + " must be [count] with count >= 1", array.attr("shape"));
  std::vector<double> values(array.data(), array.data() + array.size());
  const auto odd = std::find_if(values.begin(), values.end(), [](double value) { return !std::isfinite(value); });
  if (odd != values.end()) demand(false, name + " must be finite", *odd);
  return values;
}

void check_share(double share) { demand(share >= 0.0 && share <= 1.0, "a quantile must be in 0..1", share); }

void check_confidence(double confidence) {
  demand(confidence > 0.0 && confidence < 1.0, "confidence must be between 0 and 1", confidence);
}

void check_least(double least, const char* name) {
  demand(least >= 0.0, std::string(name) + " must not be negative", least);
}

void check_ascending(const std::vector<double>& x) {
  const auto fall = std::adjacent_find(x.begin(), x.end(), [](double one, double next) { return next < one; });
  if (fall != x.end()) demand(false, "x must ascend", std::vector<double>(fall, fall + 2));
  demand(x.front() < x.back(), "x must have two different values or more", x.front());
}

void check_chunk(std::size_t chunk) { demand(chunk >= 1, "chunk must be 1 or more", chunk); }

Interval interval(const compressor::Estimate& estimate) { return {estimate.value, estimate.low, estimate.high}; }

std::vector<double> quantiles(const Array& samples, const std::vector<double>& shares) {
  std::vector<double> ascending = values_of(samples, "samples");
  std::sort(ascending.begin(), ascending.end());
  std::vector<double> found;
  for (const double share : shares) {
    check_share(share);
    found.push_back(compressor::quantile(ascending.data(), ascending.size(), share));
  }
  return found;
}

std::size_t samples_for(double share, double confidence) {
  demand(share >= 0.0 && share < 1.0, "share must be 0 or more and below 1", share);
  check_confidence(confidence);
  return compressor::samples_for(share, confidence);
}

double design_effect(const Array& samples, std::size_t chunk, double threshold) {
  check_chunk(chunk);
  const std::vector<double> values = values_of(samples, "samples");
  return compressor::design_effect(values.data(), values.size(), chunk, threshold);
}

Interval percentile(const Array& samples, std::size_t chunk, double share, double confidence) {
  check_chunk(chunk);
  check_share(share);
  check_confidence(confidence);
  return interval(compressor::percentile(values_of(samples, "samples"), chunk, share, confidence));
}

std::optional<std::tuple<bool, double, double, std::size_t>> stationarity(const Array& medians, double least_change) {
  check_least(least_change, "least_change");
  const std::vector<double> values = values_of(medians, "medians");
  const double smallest = *std::min_element(values.begin(), values.end());
  demand(smallest > 0.0, "medians must be above 0", smallest);
  const std::optional<compressor::Stationarity> found = compressor::stationarity(values, least_change);
  if (!found) return std::nullopt;
  return std::tuple{found->stationary, found->p_value, found->change, found->at};
}

std::tuple<double, double, double, const char*> compare(const Array& log_ratios, double confidence,
                                                        double least_effect) {
  check_confidence(confidence);
  check_least(least_effect, "least_effect");
  const compressor::Comparison found =
      compressor::compare(values_of(log_ratios, "log_ratios"), confidence, least_effect);
  return {found.speedup.value, found.speedup.low, found.speedup.high, compressor::name_of(found.verdict)};
}

std::tuple<double, double, double, const char*> compare_sittings(const std::vector<Array>& sittings, double confidence,
                                                                 double least_effect) {
  check_confidence(confidence);
  check_least(least_effect, "least_effect");
  demand(!sittings.empty(), "sittings must be one or more", sittings.size());
  std::vector<std::vector<double>> values;
  for (const Array& log_ratios : sittings) values.push_back(values_of(log_ratios, "log_ratios"));
  const compressor::Comparison found = compressor::compare(values, confidence, least_effect);
  return {found.speedup.value, found.speedup.low, found.speedup.high, compressor::name_of(found.verdict)};
}

double each_confidence(double together, std::size_t comparisons) {
  check_confidence(together);
  demand(comparisons >= 1, "comparisons must be 1 or more", comparisons);
  return compressor::each_confidence(together, comparisons);
}

Interval slope(const Array& x, const Array& y, double confidence) {
  check_confidence(confidence);
  const std::vector<double> across = values_of(x, "x"), up = values_of(y, "y");
  demand(across.size() == up.size(), "y must have the " + std::to_string(across.size()) + " values of x", up.size());
  check_ascending(across);
  return interval(compressor::slope(across, up, confidence));
}

std::optional<std::size_t> warm_up_length(const Array& times) {
  const std::vector<double> values = values_of(times, "times");
  compressor::WarmUp warm_up;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (warm_up.settled(values[i])) return i + 1;
  }
  return std::nullopt;
}

}  // namespace

void bind_stats(py::module_& module) {
  module.def("quantiles", &quantiles, py::arg("samples"), py::arg("shares"));
  module.def("median_rank", &compressor::median_rank, py::arg("count"), py::arg("confidence"));
  module.def("samples_for", &samples_for, py::arg("share"), py::arg("confidence"));
  module.def("design_effect", &design_effect, py::arg("samples"), py::arg("chunk"), py::arg("threshold"));
  module.def("percentile", &percentile, py::arg("samples"), py::arg("chunk"), py::arg("share"), py::arg("confidence"));
  module.def("stationarity", &stationarity, py::arg("medians"), py::arg("least_change"));
  module.def("compare", &compare, py::arg("log_ratios"), py::arg("confidence"), py::arg("least_effect"));
  module.def("compare_sittings", &compare_sittings, py::arg("sittings"), py::arg("confidence"),
             py::arg("least_effect"));
  module.def("each_confidence", &each_confidence, py::arg("together"), py::arg("comparisons"));
  module.def("slope", &slope, py::arg("x"), py::arg("y"), py::arg("confidence"));
  module.def("warm_up_length", &warm_up_length, py::arg("times"));
}
