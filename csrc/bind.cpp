// With the other bind_*.cpp all that knows Python. It checks extents and types, releases the GIL, and
// calls the core.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bind.h"
#include "compressor/distill_loss.h"
#include "compressor/harness.h"
#include "compressor/ort.h"

namespace py = pybind11;
namespace ort = compressor::ort;

namespace {

using compressor::DistillProblem;
using compressor::Matrix;

// Names at the border, enumerators inside.
template <class Value>
using Names = std::map<std::string, Value>;

const Names<compressor::ElementType> kElementTypes{{"float32", compressor::ElementType::kFloat32},
                                                   {"bfloat16", compressor::ElementType::kBFloat16},
                                                   {"float16", compressor::ElementType::kFloat16}};
const Names<compressor::Divergence> kDivergences{{"forward_kl", compressor::Divergence::kForwardKl},
                                                 {"reverse_kl", compressor::Divergence::kReverseKl},
                                                 {"jsd", compressor::Divergence::kJensenShannon},
                                                 {"total_variation", compressor::Divergence::kTotalVariation}};
const Names<compressor::SparseMode> kSparseModes{{"zero", compressor::SparseMode::kZero},
                                                 {"ghost", compressor::SparseMode::kGhost},
                                                 {"sampled", compressor::SparseMode::kSampled}};
const Names<compressor::InstructionSet> kInstructionSets{{"baseline", compressor::InstructionSet::kBaseline},
                                                         {"avx2", compressor::InstructionSet::kAvx2},
                                                         {"avx512", compressor::InstructionSet::kAvx512},
                                                         {"neon", compressor::InstructionSet::kNeon}};

template <class Value>
Value named(const Names<Value>& names, const std::string& name) {
  const auto found = names.find(name);
  if (found == names.end()) throw py::value_error("no such name: " + name);
  return found->second;
}

template <class Pointer>
Pointer pointer(std::uintptr_t address) {
  return reinterpret_cast<Pointer>(address);
}

// Extents and ranges that the core relies on. What the addresses point to is the caller's word.
void check_problem(const DistillProblem& problem) {
  const auto demand = [](bool holds, const char* what) {
    if (!holds) throw py::value_error(what);
  };
  demand(problem.rows >= 0 && problem.width >= 1, "rows must be >= 0 and width >= 1");
  demand(problem.soft_width >= 1 && problem.soft_width <= problem.width, "soft_width must be in 1..width");
  demand(problem.teacher_width >= 1 && problem.teacher_width <= problem.soft_width,
         "teacher_width must be in 1..soft_width");
  demand(problem.temperature > 0 && problem.student_scale > 0 && problem.teacher_scale > 0,
         "temperature and scales must be above 0");
  demand(problem.soft_weight >= 0 && problem.hard_weight >= 0, "weights must not be negative");
  demand(problem.divergence != compressor::Divergence::kJensenShannon || (problem.beta > 0 && problem.beta < 1),
         "beta must be between 0 and 1");
  if (problem.rows == 0) return;
  demand(problem.student.data && problem.loss, "student and loss must be given");
  demand(problem.soft_weight == 0 || problem.teacher.data || (problem.indices && problem.values),
         "a soft part needs a teacher");
  demand(problem.hard_weight == 0 || problem.labels, "a hard part needs labels");
  demand(problem.gradient.data == nullptr || problem.gradient.type == problem.student.type ||
             problem.gradient.type == compressor::ElementType::kFloat32,
         "gradient must have the student's type, or be float32");
  for (std::int64_t row = 0; problem.labels && row < problem.rows; ++row) {
    const std::int64_t label = problem.labels[row];
    demand(label == problem.ignore_index || (label >= 0 && label < problem.width),
           "labels must be in 0..width - 1 or ignore_index");
  }
  for (std::int64_t i = 0; problem.indices && i < problem.rows * problem.known; ++i) {
    demand(problem.indices[i] < problem.width, "indices must be below width");
  }
}

void distill_loss(const DistillProblem& problem, const std::string& instruction_set, int threads) {
  const compressor::InstructionSet set = named(kInstructionSets, instruction_set);
  if (!compressor::supported(set)) throw py::value_error("this processor or build lacks " + instruction_set);
  py::gil_scoped_release released;
  check_problem(problem);
  const int used = std::clamp<int>(threads, 1, static_cast<int>(std::clamp<std::int64_t>(problem.rows, 1, 1024)));
  constexpr std::size_t kAlignment = 64;
  const std::size_t bytes = compressor::distill_scratch_floats(problem) * used * sizeof(float);
  const std::unique_ptr<float[], void (*)(float*)> scratch(
      static_cast<float*>(::operator new(bytes, std::align_val_t{kAlignment})),
      [](float* memory) { ::operator delete(memory, std::align_val_t{kAlignment}); });
  compressor::distill_loss(problem, set, scratch.get(), used);
}

std::vector<std::string> instruction_sets() {
  std::vector<std::string> found;
  for (const char* name : {"baseline", "avx2", "avx512", "neon"}) {
    if (compressor::supported(kInstructionSets.at(name))) found.push_back(name);
  }
  return found;
}

void bind_distill_loss(py::module_& module) {
  py::class_<Matrix>(module, "Matrix")
      .def(py::init([](std::uintptr_t address, std::int64_t stride, const std::string& dtype) {
             return Matrix{pointer<void*>(address), stride, named(kElementTypes, dtype)};
           }),
           py::arg("address"), py::arg("stride"), py::arg("dtype"));
  // A member holding an address or a name is set as such, and not read back.
  const auto address = [](auto member) {
    return [member](DistillProblem& problem, std::uintptr_t value) {
      problem.*member = pointer<std::decay_t<decltype(problem.*member)>>(value);
    };
  };
  const auto hidden = [](const DistillProblem&) -> py::object { throw py::attribute_error("can be set only"); };
  py::class_<DistillProblem>(module, "DistillProblem")
      .def(py::init<>())
      .def_readwrite("rows", &DistillProblem::rows)
      .def_readwrite("width", &DistillProblem::width)
      .def_readwrite("soft_width", &DistillProblem::soft_width)
      .def_readwrite("teacher_width", &DistillProblem::teacher_width)
      .def_readwrite("student", &DistillProblem::student)
      .def_readwrite("teacher", &DistillProblem::teacher)
      .def_readwrite("gradient", &DistillProblem::gradient)
      .def_property("labels", hidden, address(&DistillProblem::labels))
      .def_property("row_weights", hidden, address(&DistillProblem::row_weights))
      .def_property("class_weights", hidden, address(&DistillProblem::class_weights))
      .def_property("loss", hidden, address(&DistillProblem::loss))
      .def_property("indices", hidden, address(&DistillProblem::indices))
      .def_property("values", hidden, address(&DistillProblem::values))
      .def_readwrite("known", &DistillProblem::known)
      .def_property("sparse_mode", hidden,
                    [](DistillProblem& problem, const std::string& name) {
                      problem.sparse_mode = named(kSparseModes, name);
                    })
      .def_property("divergence", hidden,
                    [](DistillProblem& problem, const std::string& name) {
                      problem.divergence = named(kDivergences, name);
                    })
      .def_readwrite("beta", &DistillProblem::beta)
      .def_readwrite("temperature", &DistillProblem::temperature)
      .def_readwrite("student_scale", &DistillProblem::student_scale)
      .def_readwrite("teacher_scale", &DistillProblem::teacher_scale)
      .def_readwrite("soft_weight", &DistillProblem::soft_weight)
      .def_readwrite("hard_weight", &DistillProblem::hard_weight)
      .def_readwrite("label_smoothing", &DistillProblem::label_smoothing)
      .def_readwrite("gradient_scale", &DistillProblem::gradient_scale)
      .def_readwrite("ignore_index", &DistillProblem::ignore_index);
  module.def("distill_loss", &distill_loss, py::arg("problem"), py::arg("instruction_set"), py::arg("threads"));
  module.def("instruction_sets", &instruction_sets);
}

using compressor::Feed;

std::unique_ptr<Feed> prepare(const ort::Session& session, const py::dict& arrays) {
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
  auto feed = std::make_unique<Feed>(session, std::move(prepared));
  py::gil_scoped_release released;
  feed->prepare();
  return feed;
}

py::list run(Feed& feed) {
  std::vector<ort::Output> produced;
  {
    py::gil_scoped_release released;
    feed.run();
    produced = feed.outputs();
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

py::tuple run_block(Feed& feed, std::size_t count, const compressor::DelayMeter* meter) {
  if (count == 0) throw py::value_error("count must be 1 or more");
  compressor::Block block;
  {
    py::gil_scoped_release released;
    block = compressor::run_block(&feed, 1, 0, count, meter);
  }
  const auto array = [](const std::vector<double>& values) {
    return py::array_t<double>(static_cast<py::ssize_t>(values.size()), values.data());
  };
  return py::make_tuple(array(block.wall_ns), array(block.corrected_ns), block.process_cpu_ns);
}

// Of times of one block: those that are kept, and the sum of all.
py::tuple thin_out(std::vector<double> times, std::size_t most, std::uint64_t seed) {
  if (most == 0) throw py::value_error("most must be 1 or more");
  compressor::Block block;
  block.wall_ns = std::move(times);
  compressor::sum_and_thin_out(block, most, seed);
  return py::make_tuple(block.wall_ns, block.wall_sum_ns);
}

// Nanoseconds of `count` inferences with one reading of the clock before and one after all of them.
double run_bare(Feed& feed, std::size_t count) {
  py::gil_scoped_release released;
  const std::int64_t begin = compressor::monotonic_ns();
  for (std::size_t i = 0; i < count; ++i) feed.run();
  return static_cast<double>(compressor::monotonic_ns() - begin);
}

void bind_runtime(py::module_& module) {
  py::register_exception<ort::Error>(module, "OrtError", PyExc_RuntimeError);

  py::class_<ort::Library, std::shared_ptr<ort::Library>>(module, "Library")
      .def(py::init<const std::string&>(), py::arg("path"))
      .def_property_readonly("version", &ort::Library::version)
      .def_property_readonly("providers", &ort::Library::providers);

  py::class_<ort::TensorInfo>(module, "TensorInfo")
      .def_readonly("name", &ort::TensorInfo::name)
      .def_property_readonly("dtype", [](const ort::TensorInfo& info) { return ort::element_name(info.type); })
      .def_readonly("shape", &ort::TensorInfo::shape)
      .def_readonly("symbols", &ort::TensorInfo::symbols);

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
      .def("prepare", &prepare, py::arg("arrays"), py::keep_alive<0, 1>());

  py::class_<compressor::DelayMeter>(module, "DelayMeter")
      .def(py::init<int, double>(), py::arg("threads"), py::arg("latency_ns"))
      .def_property_readonly("available", &compressor::DelayMeter::available)
      .def_property_readonly("each_inference", &compressor::DelayMeter::each_inference);

  py::class_<Feed>(module, "Feed")
      .def_property_readonly("keeps_outputs", &Feed::keeps_outputs)
      .def("run", &run)
      .def("run_block", &run_block, py::arg("count"), py::arg("meter") = py::none())
      .def("run_bare", &run_bare, py::arg("count"));
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.attr("__version__") = COMPRESSOR_VERSION;
  bind_distill_loss(module);
  module.def("memory_use", [] {
    const compressor::MemoryUse use = compressor::memory_use();
    return py::make_tuple(use.resident_bytes, use.peak_bytes);
  });
  module.def("thin_out", &thin_out, py::arg("times"), py::arg("most"), py::arg("seed"));
  bind_calibrate(module);
  bind_stats(module);
  bind_emulate(module);
  bind_machine(module);
  bind_runtime(module);
}
