#include <time.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <random>

#include "compressor/harness.h"

namespace compressor {
namespace {

constexpr double kReadingShare = 0.01;  // of an inference, that reading its delay may cost
constexpr double kMayHaveWaited = 1.05;  // times the block's fastest inference; a reading slows the inference after it
constexpr int kReadingsTimed = 64;

std::int64_t now_ns(clockid_t clock) noexcept {
  timespec at;
  clock_gettime(clock, &at);
  return static_cast<std::int64_t>(at.tv_sec) * 1'000'000'000 + at.tv_nsec;
}

// The longest that one of the threads waited: the others' waiting overlaps with it, or with work.
double longest(const std::vector<std::int64_t>& before, const std::vector<std::int64_t>& after) noexcept {
  std::int64_t most = 0;
  for (std::size_t i = 0; i < before.size(); ++i) most = std::max(most, after[i] - before[i]);
  return static_cast<double>(most);
}

}  // namespace

std::int64_t monotonic_ns() noexcept { return now_ns(CLOCK_MONOTONIC); }
std::int64_t process_cpu_ns() noexcept { return now_ns(CLOCK_PROCESS_CPUTIME_ID); }

DelayMeter::DelayMeter(int threads, double latency_ns)
    : delay_(threads > 1 ? RunDelay::Of::kAllThreads : RunDelay::Of::kThisThread) {
  std::vector<std::int64_t> delays = room();
  const std::int64_t begin = monotonic_ns();
  for (int i = 0; i < kReadingsTimed; ++i) read(delays);
  const double cost_ns = static_cast<double>(monotonic_ns() - begin) / kReadingsTimed;
  each_ = available() && cost_ns < kReadingShare * latency_ns;
}

void take_off_longest(std::vector<double>& values, double delay_ns) {
  if (values.empty() || delay_ns <= 0.0) return;
  std::vector<std::size_t> order(values.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return values[a] > values[b]; });
  const double median = values[order[order.size() / 2]];
  for (const std::size_t i : order) {
    const double taken = std::min(delay_ns, values[i] - median);
    if (taken <= 0.0) return;
    values[i] -= taken;
    delay_ns -= taken;
  }
}

void sum_and_thin_out(Block& block, std::size_t most, std::uint64_t seed) {
  block.wall_sum_ns = std::accumulate(block.wall_ns.begin(), block.wall_ns.end(), 0.0);
  block.corrected_sum_ns = std::accumulate(block.corrected_ns.begin(), block.corrected_ns.end(), 0.0);
  const std::size_t count = block.wall_ns.size(), step = (count + most - 1) / std::max<std::size_t>(most, 1);
  if (step < 2) return;
  std::mt19937_64 generator(seed);
  std::size_t kept = 0;
  for (std::size_t first = 0; first < count; first += step, ++kept) {
    const std::size_t chosen = first + generator() % std::min(step, count - first);
    block.wall_ns[kept] = block.wall_ns[chosen];
    if (!block.corrected_ns.empty()) block.corrected_ns[kept] = block.corrected_ns[chosen];
  }
  block.wall_ns.resize(kept);
  if (!block.corrected_ns.empty()) block.corrected_ns.resize(kept);
}

Block run_block(Feed* feeds, std::size_t feed_count, std::size_t start, std::size_t count, const DelayMeter* meter) {
  const bool metered = meter != nullptr && meter->available(), each = metered && meter->each_inference();
  std::vector<std::int64_t> before, after;
  if (metered) before = after = meter->room();
  Block block;
  block.inferences = count;
  block.wall_ns.resize(count);
  if (each) block.corrected_ns.resize(count);
  double fastest = std::numeric_limits<double>::infinity();
  const std::int64_t cpu_begin = process_cpu_ns(), span_begin = monotonic_ns();
  if (metered) meter->read(before);
  for (std::size_t i = 0; i < count; ++i) {
    Feed& feed = feeds[(start + i) % feed_count];
    const std::int64_t begin = monotonic_ns();
    feed.run();
    const double wall = static_cast<double>(monotonic_ns() - begin);
    block.wall_ns[i] = wall;
    if (!each) continue;
    double& corrected = block.corrected_ns[i] = wall;
    if (i == 0 || wall > kMayHaveWaited * fastest) {
      meter->read(after);
      const double delay = longest(before, after);
      if (delay < wall) corrected -= delay;  // a longer wait was between two inferences
      before.swap(after);
    }
    fastest = std::min(fastest, corrected);
  }
  block.span_ns = static_cast<double>(monotonic_ns() - span_begin);
  block.process_cpu_ns = static_cast<double>(process_cpu_ns() - cpu_begin);
  if (metered && !each) {
    meter->read(after);
    block.corrected_ns = block.wall_ns;
    take_off_longest(block.corrected_ns, longest(before, after));
  }
  return block;
}

}  // namespace compressor
