// Which instruction set's rows run, and on which threads.
#include "instruction_sets.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace compressor {
namespace {

// Below this many elements, waking threads costs more than the work.
constexpr std::int64_t kSerialElements = std::int64_t{1} << 15;

DistillRows rows_of(InstructionSet set) noexcept {
  switch (set) {
#if defined(__x86_64__)
    case InstructionSet::kAvx2:
      return avx2::distill_rows;
    case InstructionSet::kAvx512:
      return __builtin_cpu_supports("avx512bf16") ? avx512_bf16::distill_rows : avx512::distill_rows;
#elif defined(__aarch64__)
    case InstructionSet::kNeon:
      return neon::distill_rows;
#endif
    default:
      return baseline::distill_rows;
  }
}

}  // namespace

bool supported(InstructionSet set) noexcept {
  switch (set) {
    case InstructionSet::kBaseline:
      return true;
#if defined(__x86_64__)
    case InstructionSet::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    case InstructionSet::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__)
    case InstructionSet::kNeon:
      return true;
#endif
    default:
      return false;
  }
}

std::size_t distill_scratch_floats(const DistillProblem& problem) noexcept {
  return (std::size_t)scratch_floats(problem.width);
}

void distill_loss(const DistillProblem& problem, InstructionSet set, float* scratch, int threads) noexcept {
  const DistillRows rows = rows_of(set);
  const std::int64_t elements = problem.rows * problem.width;
  if (threads > problem.rows) threads = (int)problem.rows;
  if (threads <= 1 || elements < kSerialElements) return rows(problem, 0, problem.rows, scratch);
  const std::size_t mine = distill_scratch_floats(problem);
  // Each thread takes one run of rows: the memory that it reads next is the next row.
#pragma omp parallel for num_threads(threads) schedule(static, 1)
  for (int part = 0; part < threads; ++part) {
    rows(problem, problem.rows * part / threads, problem.rows * (part + 1) / threads, scratch + part * mine);
  }
}

}  // namespace compressor
