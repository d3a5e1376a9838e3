// Work in a child process, so that a model that crashes or hangs ONNX Runtime takes only that down.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "compressor/measure.h"

namespace compressor {

struct Limits {
  double silence_s = 120.0;        // without a line for so long, the child counts as hanging
  std::int64_t memory_mib = 0;     // of address space; 0: none
  std::int64_t file_mib = 4096;    // that the child may write into one file
};

// Set by SIGINT and SIGTERM in this process and, passed on, in its child.
extern std::atomic<bool> stop_asked;

// From here on SIGINT and SIGTERM set `stop_asked`. A second one ends the child at once.
void catch_signals();

// Forks. The child does `work`, whose lines arrive at `on_line` here; MeasureError, NpyError and ort::Error of it arrive as
// a MeasureError of this call, as do a signal that ended the child, a hang, and an exit without a last line. The child never
// outlives the call. This process must have one thread only.
void in_child(const Limits& limits, const std::function<void(const Tell&)>& work, const Tell& on_line);

}  // namespace compressor
