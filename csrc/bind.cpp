// The only file that knows Python. It checks extents and types, releases the GIL, and calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "compressor/distill_loss.h"
#include "compressor/harness.h"
#include "compressor/ort.h"
#include "compressor/stats.h"

namespace py = pybind11;
namespace ort = compressor::ort;

namespace {

using Floats = py::array_t<float, py::array::c_style>;
using Labels = py::array_t<std::int64_t, py::array::c_style>;

void check_distill_arguments(const Floats& student, const Floats& teacher, const std::optional<Labels>& labels,
                             const Floats& loss, const Floats& gradient, std::int64_t ignore_index) {
  if (student.ndim() != 2) {
    throw py::value_error("student must be [rows, width], got rank " + std::to_string(student.ndim()));
  }
  const auto rows = student.shape(0), width = student.shape(1);
  const auto same_extent = [&](const Floats& other) {
    return other.ndim() == 2 && other.shape(0) == rows && other.shape(1) == width;
  };
  if (!same_extent(teacher)) throw py::value_error("teacher must have the shape of student");
  if (!same_extent(gradient)) throw py::value_error("gradient must have the shape of student");
  if (loss.ndim() != 1 || loss.shape(0) != rows) throw py::value_error("loss must be [rows]");
  if (!labels) return;
  if (labels->ndim() != 1 || labels->shape(0) != rows) throw py::value_error("labels must be [rows]");
  for (py::ssize_t row = 0; row < rows; ++row) {
    const std::int64_t label = labels->at(row);
    if (label != ignore_index && (label < 0 || label >= width)) {
      throw py::value_error("labels must be in 0.." + std::to_string(width - 1) + " or " +
                            std::to_string(ignore_index) + ", got " + std::to_string(label));
    }
  }
}

void distill_loss(const Floats& student, const Floats& teacher, const std::optional<Labels>& labels, Floats& loss,
                  Floats& gradient, float temperature, float hard_weight, std::int64_t ignore_index, int threads) {
  check_distill_arguments(student, teacher, labels, loss, gradient, ignore_index);
  const std::int64_t rows = student.shape(0), width = student.shape(1);
  const std::int64_t* label_data = labels ? labels->data() : nullptr;
  const float *student_data = student.data(), *teacher_data = teacher.data();
  float *loss_data = loss.mutable_data(), *gradient_data = gradient.mutable_data();
  const int used = std::clamp<int>(threads, 1, static_cast<int>(std::clamp<std::int64_t>(rows, 1, 1024)));
  py::gil_scoped_release released;
  const std::unique_ptr<float[]> scratch(new float[static_cast<std::size_t>(used * width)]);
  compressor::distill_loss(student_data, teacher_data, label_data, rows, width,
                           {temperature, hard_weight, ignore_index}, loss_data, gradient_data, scratch.get(), used);
}

std::vector<double> quantiles(py::array_t<double, py::array::c_style | py::array::forcecast> samples,
                              const std::vector<double>& shares) {
  if (samples.ndim() != 1 || samples.size() == 0) throw py::value_error("samples must be [count] with count >= 1");
  std::vector<double> ascending(samples.data(), samples.data() + samples.size());
  std::sort(ascending.begin(), ascending.end());
  std::vector<double> found;
  for (const double share : shares) {
    if (!(share >= 0.0 && share <= 1.0)) {
      throw py::value_error("a quantile must be in 0..1, got " + std::to_string(share));
    }
    found.push_back(compressor::quantile(ascending.data(), ascending.size(), share));
  }
  return found;
}

ort::Inputs prepare(const ort::Session& session, const py::dict& arrays) {
  ort::Inputs prepared(session.library());
  for (const ort::TensorInfo& input : session.inputs()) {
    if (!arrays.contains(input.name.c_str())) throw py::value_error("input '" + input.name + "' is missing");
    const py::array array = py::array::ensure(arrays[input.name.c_str()], py::array::c_style);
    if (!array) throw py::value_error("input '" + input.name + "' is not an array");
    const std::string wanted = ort::element_name(input.type);
    if (!array.dtype().equal(py::dtype(wanted))) {
      throw py::value_error("input '" + input.name + "' must be " + wanted + ", got " +
                            py::str(array.dtype()).cast<std::string>());
    }
    prepared.add(input.type, {array.shape(), array.shape() + array.ndim()}, array.data());
  }
  if (arrays.size() != session.inputs().size()) {
    throw py::value_error("expected " + std::to_string(session.inputs().size()) + " arrays, one for each input, got " +
                          std::to_string(arrays.size()));
  }
  return prepared;
}

void check_prepared(const ort::Session& session, const ort::Inputs& inputs) {
  if (inputs.raw().size() != session.inputs().size()) throw py::value_error("inputs were prepared for another session");
}

py::list run(const ort::Session& session, const ort::Inputs& inputs) {
  check_prepared(session, inputs);
  std::vector<ort::Output> produced;
  {
    py::gil_scoped_release released;
    produced = session.run(inputs);
  }
  py::list arrays;
  for (const ort::Output& output : produced) {
    if (ort::element_size(output.type) == 0) {
      throw ort::Error("output " + std::to_string(arrays.size()) + " has an element type that is " +
                       ort::element_name(output.type));
    }
    arrays.append(py::array(py::dtype(ort::element_name(output.type)), output.shape, output.data));  // a copy
  }
  return arrays;
}

py::tuple run_block(const ort::Session& session, const std::vector<const ort::Inputs*>& inputs, std::size_t start,
                    std::size_t count) {
  if (inputs.empty() || std::find(inputs.begin(), inputs.end(), nullptr) != inputs.end()) {
    throw py::value_error("inputs must be a non-empty list of prepared inputs");
  }
  for (const ort::Inputs* prepared : inputs) check_prepared(session, *prepared);
  py::array_t<std::int64_t> elapsed(static_cast<py::ssize_t>(count));
  std::int64_t* data = elapsed.mutable_data();
  compressor::BlockCost cost;
  {
    py::gil_scoped_release released;
    cost = compressor::run_block(session, inputs, start, count, data);
  }
  return py::make_tuple(elapsed, cost.thread_cpu_ns, cost.process_cpu_ns);
}

void bind_runtime(py::module_& module) {
  py::register_exception<ort::Error>(module, "OrtError", PyExc_RuntimeError);

  py::class_<ort::Library, std::shared_ptr<ort::Library>>(module, "Library")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("version", &ort::Library::version);

  py::class_<ort::TensorInfo>(module, "TensorInfo")
      .def_readonly("name", &ort::TensorInfo::name)
      .def_property_readonly("dtype", [](const ort::TensorInfo& info) { return ort::element_name(info.type); })
      .def_readonly("shape", &ort::TensorInfo::shape)
      .def_readonly("symbols", &ort::TensorInfo::symbols);

  py::class_<ort::Inputs>(module, "Inputs");

  py::class_<ort::Session>(module, "Session")
      .def(py::init([](std::shared_ptr<ort::Library> library, const std::string& model, int threads,
                       int optimization_level, bool spin) {
             py::gil_scoped_release released;
             return std::make_unique<ort::Session>(std::move(library), model,
                                                   ort::SessionSettings{threads, optimization_level, spin});
           }),
           py::arg("library"), py::arg("model"), py::arg("threads") = 1, py::arg("optimization_level") = 99,
           py::arg("spin") = false)
      .def_property_readonly("inputs", &ort::Session::inputs)
      .def_property_readonly("outputs", &ort::Session::outputs)
      .def("prepare", &prepare, py::arg("arrays"))
      .def("run", &run, py::arg("inputs"))
      .def("run_block", &run_block, py::arg("inputs"), py::arg("start"), py::arg("count"));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("__version__") = COMPRESSOR_VERSION;
  module.def("distill_loss", &distill_loss, py::arg("student").noconvert(), py::arg("teacher").noconvert(),
             py::arg("labels").noconvert().none(true), py::arg("loss").noconvert(), py::arg("gradient").noconvert(),
             py::arg("temperature"), py::arg("hard_weight"), py::arg("ignore_index"), py::arg("threads"));
  module.def("quantiles", &quantiles, py::arg("samples"), py::arg("shares"));
  module.def("median_rank", &compressor::median_rank, py::arg("count"), py::arg("confidence"));
  module.def("memory_use", [] {
    const compressor::MemoryUse use = compressor::memory_use();
    return py::make_tuple(use.resident_bytes, use.peak_bytes);
  });
  bind_runtime(module);
}
