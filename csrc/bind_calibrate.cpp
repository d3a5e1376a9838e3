// Calibration for Python: statistics that live here while batches pass, and arrays of them at the end.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "bind.h"
#include "compressor/calibrate.h"

namespace py = pybind11;

namespace {

using compressor::TensorStatistics;
using Counts = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

class Calibrator {
 public:
  Calibrator(std::size_t tensors, int threads)
      : statistics_(tensors), scratch_(tensors), threads_(std::clamp(threads, 1, 1024)) {}

  bool observe(const std::vector<py::array>& batch, std::int64_t number) {
    if (batch.size() != statistics_.size()) {
      throw py::value_error("a batch must have " + std::to_string(statistics_.size()) + " arrays, got " +
                            std::to_string(batch.size()));
    }
    std::vector<compressor::Values> values;
    for (const py::array& array : batch) {
      if (!py::isinstance<py::array_t<float, py::array::c_style>>(array)) {
        throw py::value_error(py::str("array {} must be float32 in row-major order, got {} with strides {}")
                                  .format(values.size(), array.dtype(), array.attr("strides")));
      }
      values.push_back({static_cast<const float*>(array.data()), static_cast<std::int64_t>(array.size())});
    }
    py::gil_scoped_release released;
    const std::lock_guard<std::mutex> alone(mutex_);
    return compressor::observe(values.data(), statistics_.data(), scratch_.data(), values.size(), number, threads_);
  }

  py::dict statistics() {
    const std::lock_guard<std::mutex> alone(mutex_);
    py::dict found;
    found["values"] = column(&TensorStatistics::values);
    found["zeros"] = column(&TensorStatistics::zeros);
    found["low"] = column(&TensorStatistics::low);
    found["high"] = column(&TensorStatistics::high);
    found["sum"] = rows(compressor::ExactSum::kDigits, [](const auto& tensor) { return tensor.sum.digits; });
    found["squares"] = rows(compressor::ExactSum::kDigits, [](const auto& tensor) { return tensor.squares.digits; });
    found["exponent"] = column(&TensorStatistics::exponent);
    found["bins"] = rows(compressor::kBins, [](const auto& tensor) { return tensor.bins; });
    found["peaks"] = rows(compressor::kPeaks, [](const auto& tensor) { return tensor.peaks; });
    found["first_with_peak"] =
        rows(compressor::kPeaks, [](const auto& tensor) { return tensor.first_with_peak; });
    found["nans"] = column(&TensorStatistics::nans);
    found["infinities"] = column(&TensorStatistics::infinities);
    found["first_not_finite"] = column(&TensorStatistics::first_not_finite);
    return found;
  }

 private:
  template <class Member>
  py::array_t<Member> column(Member TensorStatistics::* member) const {
    py::array_t<Member> array(static_cast<py::ssize_t>(statistics_.size()));
    for (std::size_t i = 0; i < statistics_.size(); ++i) array.mutable_data()[i] = statistics_[i].*member;
    return array;
  }

  template <class Row>
  py::array_t<std::int64_t> rows(int width, Row row) const {
    py::array_t<std::int64_t> array({static_cast<py::ssize_t>(statistics_.size()), static_cast<py::ssize_t>(width)});
    std::int64_t* place = array.mutable_data();
    for (const TensorStatistics& tensor : statistics_) place = std::copy_n(row(tensor), width, place);
    return array;
  }

  std::mutex mutex_;
  std::vector<TensorStatistics> statistics_;
  std::vector<compressor::Summary> scratch_;
  int threads_;
};

int entropy_half_width(const Counts& counts, int levels) {
  if (counts.ndim() != 1 || levels < 2 || levels % 2 != 0 || counts.size() % 2 != 0 || counts.size() < levels ||
      counts.size() > compressor::kBins) {
    throw py::value_error(py::str("counts must be [bins], an even number from levels to {}, and levels even and 2 or "
                                  "more, got {} and {}")
                              .format(compressor::kBins, counts.attr("shape"), levels));
  }
  if (std::any_of(counts.data(), counts.data() + counts.size(), [](std::int64_t count) { return count < 0; })) {
    throw py::value_error("counts must not be negative");
  }
  py::gil_scoped_release released;
  return compressor::entropy_half_width(counts.data(), static_cast<int>(counts.size()), levels);
}

}  // namespace

void bind_calibrate(py::module_& module) {
  py::class_<Calibrator>(module, "Calibrator")
      .def(py::init<std::size_t, int>(), py::arg("tensors"), py::arg("threads"))
      .def("observe", &Calibrator::observe, py::arg("batch"), py::arg("number"))
      .def("statistics", &Calibrator::statistics);
  module.def("entropy_half_width", &entropy_half_width, py::arg("counts"), py::arg("levels"));
}
