// The parts of the Python module that have a file of their own.
#pragma once

#include <pybind11/pybind11.h>

void bind_calibrate(pybind11::module_& module);
void bind_emulate(pybind11::module_& module);
void bind_stats(pybind11::module_& module);
void bind_machine(pybind11::module_& module);
