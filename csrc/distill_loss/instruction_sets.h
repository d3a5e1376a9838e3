// What each instruction set's file defines: the same loop, compiled for it. Nothing else leaves those files, so that no
// code with their instructions can be linked in where the processor lacks them.
#pragma once

#include "compressor/distill_loss.h"

namespace compressor {

using DistillRows = void (*)(const DistillProblem& problem, std::int64_t begin, std::int64_t end,
                             float* scratch) noexcept;

namespace baseline {
void distill_rows(const DistillProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) noexcept;
}
namespace avx2 {
void distill_rows(const DistillProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) noexcept;
}
namespace avx512 {
void distill_rows(const DistillProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) noexcept;
}
namespace avx512_bf16 {
void distill_rows(const DistillProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) noexcept;
}
namespace neon {
void distill_rows(const DistillProblem& problem, std::int64_t begin, std::int64_t end, float* scratch) noexcept;
}

// Elements that one step of the loop takes, at least and at most.
constexpr std::int64_t kSmallestBlock = 256, kLargestBlock = 1024;
// A gradient larger than this is written past the caches: it will not be there when it is read.
constexpr std::int64_t kCachedBytes = std::int64_t{8} << 20;
// Room for a row that starts anywhere in a vector, and for whole vectors at its end.
constexpr std::int64_t padded_width(std::int64_t width) noexcept { return (width + 32 + 15) / 16 * 16; }

// What a thread needs: two rows, two converted blocks, two tops for each block.
constexpr std::int64_t scratch_floats(std::int64_t width) noexcept {
  const std::int64_t padded = padded_width(width), blocks = padded / kSmallestBlock + 2;
  return 2 * padded + 2 * kLargestBlock + (2 * blocks + 15) / 16 * 16;
}

}  // namespace compressor
