// The machine, JSON and arrays in files, for Python: readings become dicts, and back.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bind.h"
#include "compressor/json.h"
#include "compressor/machine.h"
#include "compressor/measure.h"
#include "compressor/npy.h"

namespace py = pybind11;
namespace ort = compressor::ort;

namespace {

using compressor::Json;
using compressor::Reading;
using compressor::Target;
using compressor::ValidityBounds;

constexpr int kDeepest = 200;  // containers in one another: json_text calls itself

template <class Any, class Visit>
void each_member(Any& any, Visit visit) {
  using Type = std::remove_const_t<Any>;
  if constexpr (std::is_same_v<Type, Target>) {
    visit("architecture", any.architecture);
    visit("processor", any.processor);
    visit("system", any.system);
    visit("processors", any.processors);
    visit("online_processors", any.online_processors);
    visit("memory_mib", any.memory_mib);
    visit("virtual_machine", any.virtual_machine);
    visit("emulator", any.emulator);
  } else if constexpr (std::is_same_v<Type, Reading>) {
    visit("at_ns", any.at_ns);
    visit("pressure_cpu_us", any.pressure_cpu_us);
    visit("pressure_memory_us", any.pressure_memory_us);
    visit("pressure_io_us", any.pressure_io_us);
    visit("run_delay_ns", any.run_delay_ns);
    visit("others_cpu_ns", any.others_cpu_ns);
    visit("steal_ns", any.steal_ns);
    visit("involuntary_switches", any.involuntary_switches);
    visit("major_faults", any.major_faults);
    visit("slowest_mhz", any.slowest_mhz);
    visit("hottest_celsius", any.hottest_celsius);
    visit("throttle_events", any.throttle_events);
    visit("throttle_bits", any.throttle_bits);
    visit("probe_ns", any.probe_ns);
  } else {
    visit("run_delay_share", any.run_delay_share);
    visit("pressure_share", any.pressure_share);
    visit("memory_pressure_share", any.memory_pressure_share);
    visit("io_pressure_share", any.io_pressure_share);
    visit("others_processors", any.others_processors);
    visit("steal_share", any.steal_share);
    visit("probe_ratio", any.probe_ratio);
    visit("frequency_ratio", any.frequency_ratio);
    visit("major_faults", any.major_faults);
  }
}

template <class Any>
py::dict dict_of(const Any& any) {
  py::dict members;
  each_member(any, [&](const char* name, const auto& value) { members[name] = value; });
  return members;
}

// Members that the dict lacks keep their defaults.
template <class Any>
Any from_dict(const py::dict& members) {
  Any any;
  std::size_t known = 0;
  each_member(any, [&](const char* name, auto& value) {
    if (!members.contains(name)) return;
    value = py::cast<std::decay_t<decltype(value)>>(members[name]);
    ++known;
  });
  if (known != members.size()) {
    std::string names;
    each_member(any, [&](const char* name, auto&) { names += (names.empty() ? "" : ", ") + std::string(name); });
    throw py::value_error("expected members of " + names + ", got others");
  }
  return any;
}

Reading read_machine(const std::string& root) {
  py::gil_scoped_release released;
  return compressor::read_machine(root);
}

std::tuple<bool, std::vector<std::string>, std::vector<std::string>> judge(const py::dict& before,
                                                                           const py::dict& after,
                                                                           const py::dict& target,
                                                                           const py::dict& bounds) {
  compressor::Validity found = compressor::judge(from_dict<Reading>(before), from_dict<Reading>(after),
                                                 from_dict<Target>(target), from_dict<ValidityBounds>(bounds));
  return {found.valid, std::move(found.reasons), std::move(found.unavailable)};
}

std::vector<std::int64_t> run_delay(bool all_threads) {
  using Of = compressor::RunDelay::Of;
  const compressor::RunDelay opened(all_threads ? Of::kAllThreads : Of::kThisThread);
  std::vector<std::int64_t> delays(opened.threads());
  opened.read(delays.data());
  return delays;
}

void write_value(Json& json, const std::optional<std::string>& key, const py::handle& value, int depth);

void write_container(Json& json, const std::optional<std::string>& key, const py::handle& value, int depth) {
  if (depth > kDeepest) {
    throw py::value_error("expected at most " + std::to_string(kDeepest) + " containers in one another, got more");
  }
  if (py::isinstance<py::list>(value)) {
    key ? json.array(*key) : json.array();
    for (const py::handle element : value) write_value(json, std::nullopt, element, depth);
  } else {
    key ? json.object(*key) : json.object();
    for (const auto& [name, member] : value.cast<py::dict>()) {
      if (!py::isinstance<py::str>(name)) throw py::type_error("expected text as a key");
      write_value(json, name.cast<std::string>(), member, depth);
    }
  }
  json.end();
}

void write_value(Json& json, const std::optional<std::string>& key, const py::handle& value, int depth) {
  const auto put = [&](const auto& plain) { key ? json.member(*key, plain) : json.element(plain); };
  if (value.is_none()) {
    key ? json.null(*key) : json.null();
  } else if (py::isinstance<py::bool_>(value)) {
    put(value.cast<bool>());
  } else if (py::isinstance<py::int_>(value)) {
    put(value.cast<std::int64_t>());
  } else if (py::isinstance<py::float_>(value)) {
    put(value.cast<double>());
  } else if (py::isinstance<py::str>(value) || py::isinstance<py::bytes>(value)) {
    put(value.cast<std::string>());
  } else if (py::isinstance<py::list>(value) || py::isinstance<py::dict>(value)) {
    write_container(json, key, value, depth + 1);
  } else {
    throw py::type_error("expected None, bool, int, float, str, bytes, list or dict, got " +
                         py::str(py::type::of(value)).cast<std::string>());
  }
}

std::string json_text(const py::object& value) {
  Json json;
  write_value(json, std::nullopt, value, 0);
  return json.text();
}

py::array read_npy(const std::string& path) {
  std::optional<compressor::Array> array;
  {
    py::gil_scoped_release released;
    array = compressor::read_npy(path);
  }
  return py::array(py::dtype(ort::element_name(array->type)), array->shape, array->data());  // a copy
}

ort::ElementType type_of(const py::array& array) {
  constexpr int kLastType = static_cast<int>(ort::ElementType::kUint64);
  for (int number = 0; number <= kLastType; ++number) {
    const auto type = static_cast<ort::ElementType>(number);
    if (ort::element_size(type) > 0 && array.dtype().equal(py::dtype(ort::element_name(type)))) return type;
  }
  throw compressor::NpyError("expected an array of numbers or truths in this machine's byte order, got " +
                             py::str(array.dtype()).cast<std::string>());
}

void write_npy(const std::string& path, const py::array& array) {
  const ort::ElementType type = type_of(array);
  const py::array rows = py::array::ensure(array, py::array::c_style);
  const std::vector<std::int64_t> shape(rows.shape(), rows.shape() + rows.ndim());
  py::gil_scoped_release released;
  compressor::write_npy(path, type, shape, rows.data());
}

}  // namespace

void bind_machine(py::module_& module) {
  py::register_exception<compressor::NpyError>(module, "NpyError", PyExc_ValueError);
  module.def("describe_target", [](const std::string& root) { return dict_of(compressor::describe_target(root)); },
             py::arg("root") = "");
  module.def("read_machine", [](const std::string& root) { return dict_of(read_machine(root)); }, py::arg("root") = "");
  module.def("judge", &judge, py::arg("before"), py::arg("after"), py::arg("target"), py::arg("bounds") = py::dict());
  module.def("probe_ns", &compressor::probe_ns, py::call_guard<py::gil_scoped_release>());
  module.def("run_delay", &run_delay, py::arg("all_threads"));
  module.def("json_text", &json_text, py::arg("value"));
  module.def("external_data", [](const std::string& model) {
    std::vector<py::bytes> places;  // names of files have no encoding
    for (const std::string& place : compressor::external_data(model)) places.emplace_back(place);
    return places;
  }, py::arg("model"));
  module.def("read_npy", &read_npy, py::arg("path"));
  module.def("write_npy", &write_npy, py::arg("path"), py::arg("array"));
}
