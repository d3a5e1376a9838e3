// What saturation changes in integer products, for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>

#include "bind.h"
#include "compressor/emulate.h"

namespace py = pybind11;

namespace {

template <class Element>
using Array = py::array_t<Element, py::array::c_style>;

constexpr py::ssize_t kDeepest = 1 << 16;  // so that 32 bits hold what saturation changes

py::tuple saturation(const Array<std::uint8_t>& a, const Array<std::int8_t>& b) {
  if (a.ndim() != 2 || b.ndim() != 2 || a.shape(1) != b.shape(0) || a.shape(1) > kDeepest) {
    throw py::value_error(py::str("a must be [rows, depth] and b [depth, columns] with depth <= {}, got {} and {}")
                              .format(kDeepest, a.attr("shape"), b.attr("shape")));
  }
  const py::ssize_t rows = a.shape(0), columns = b.shape(1);
  Array<std::int32_t> excess({rows, columns});
  Array<std::int64_t> saturated(columns);
  std::int32_t* const excesses = excess.mutable_data();
  std::int64_t* const counts = saturated.mutable_data();
  {
    const py::gil_scoped_release released;
    compressor::saturation(a.data(), b.data(), rows, a.shape(1), columns, excesses, counts);
  }
  return py::make_tuple(excess, saturated);
}

}  // namespace

void bind_emulate(py::module_& module) {
  module.def("saturation", &saturation, py::arg("a").noconvert(), py::arg("b").noconvert());
}
