#include <time.h>

#include "compressor/harness.h"

namespace compressor {
namespace {

std::int64_t now_ns(clockid_t clock) noexcept {
  timespec at;
  clock_gettime(clock, &at);
  return static_cast<std::int64_t>(at.tv_sec) * 1'000'000'000 + at.tv_nsec;
}

}  // namespace

BlockCost run_block(const ort::Session& session, const std::vector<const ort::Inputs*>& inputs, std::size_t start,
                    std::size_t count, std::int64_t* elapsed_ns) {
  std::vector<void*> outputs(session.outputs().size(), nullptr);
  const std::int64_t process_start = now_ns(CLOCK_PROCESS_CPUTIME_ID);
  const std::int64_t thread_start = now_ns(CLOCK_THREAD_CPUTIME_ID);
  for (std::size_t i = 0; i < count; ++i) {
    const ort::Inputs& current = *inputs[(start + i) % inputs.size()];
    const std::int64_t begin = now_ns(CLOCK_MONOTONIC);
    void* status = session.run_raw(current, outputs.data());
    elapsed_ns[i] = now_ns(CLOCK_MONOTONIC) - begin;
    session.library()->check(status);
    session.release_outputs(outputs.data());
  }
  const std::int64_t thread_end = now_ns(CLOCK_THREAD_CPUTIME_ID);
  return {thread_end - thread_start, now_ns(CLOCK_PROCESS_CPUTIME_ID) - process_start};
}

}  // namespace compressor
