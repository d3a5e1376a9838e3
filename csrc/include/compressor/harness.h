// Timed loops and what they cost the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "compressor/ort.h"

namespace compressor {

struct BlockCost {
  std::int64_t thread_cpu_ns;   // of the calling thread
  std::int64_t process_cpu_ns;  // of all threads of this process
};

// Runs `count` inferences, the i-th on inputs[(start + i) % inputs.size()], and writes the wall time of each to
// `elapsed_ns` [count]. Throws ort::Error when an inference fails. `inputs` must not be empty.
BlockCost run_block(const ort::Session& session, const std::vector<const ort::Inputs*>& inputs, std::size_t start,
                    std::size_t count, std::int64_t* elapsed_ns);

struct MemoryUse {
  std::int64_t resident_bytes;  // now; -1 where the system does not say
  std::int64_t peak_bytes;      // the most so far; -1 where the system does not say
};

// Of this process, from /proc/self/status.
MemoryUse memory_use();

}  // namespace compressor
