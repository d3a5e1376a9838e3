#include <algorithm>

#include "compressor/calibrate.h"

namespace compressor {
namespace {

// What stands for no value at all in a smoothed distribution, and is taken off the others.
constexpr double kEpsilon = 1e-4;

double taken_off(int zeros, int others) noexcept { return kEpsilon * zeros / others; }

std::int64_t sum_of(const std::int64_t* counts, int begin, int end) noexcept {
  std::int64_t sum = 0;
  for (int i = begin; i < end; ++i) sum += counts[i];
  return sum;
}

int used_of(const std::int64_t* counts, int begin, int end) noexcept {
  int used = 0;
  for (int i = begin; i < end; ++i) used += counts[i] != 0;
  return used;
}

// The divergence of the `size` counts of `clipped` from the same in `levels` steps. `inside` are the counts before what
// lay outside of the range was added to the first and the last. As in onnxruntime, a step shares out what was inside
// among all of its bins, in whole numbers, by how many of them are used; bins that are left over add to the last step
// and get nothing of it.
double divergence(const std::int64_t* clipped, const std::int64_t* inside, int size, int levels,
                  std::int64_t* level_of) noexcept {
  const int width = size / levels, stepped = levels * width;
  int spread = 0;
  double spread_total = 0.0;
  for (int step = 0; step < levels; ++step) {
    const int begin = step * width, end = begin + width;
    const int used = used_of(clipped, begin, end);
    const std::int64_t sum = sum_of(inside, begin, step == levels - 1 ? size : end);
    level_of[step] = used == 0 ? 0 : sum / used;
    if (level_of[step] == 0) continue;
    spread += width;
    spread_total += static_cast<double>(level_of[step]) * width;
  }
  const int used = used_of(clipped, 0, size);
  if (used == 0 || spread == 0) return std::numeric_limits<double>::infinity();

  const double off = taken_off(size - used, used), spread_off = taken_off(size - spread, spread);
  const double log_epsilon = std::log(kEpsilon);
  double sum = 0.0;
  const auto add = [&](int begin, int end, double log_level) {
    for (int i = begin; i < end; ++i) {
      if (clipped[i] == 0) {
        sum += kEpsilon * (log_epsilon - log_level);
      } else {
        const double smoothed = static_cast<double>(clipped[i]) - off;
        sum += smoothed * (std::log(smoothed) - log_level);
      }
    }
  };
  for (int step = 0; step < levels; ++step) {
    const double level = static_cast<double>(level_of[step]);
    add(step * width, (step + 1) * width, level_of[step] == 0 ? log_epsilon : std::log(level - spread_off));
  }
  add(stepped, size, log_epsilon);
  const auto total = static_cast<double>(sum_of(clipped, 0, size));
  return sum / total + std::log(spread_total / total);  // both distributions scaled to a sum of one
}

}  // namespace

int entropy_half_width(const std::int64_t* counts, int bins, int levels) noexcept {
  std::int64_t clipped[kBins], level_of[kBins];
  const int middle = bins / 2;
  int best = middle;
  double least = std::numeric_limits<double>::infinity();
  for (int half = levels / 2; half <= middle; ++half) {
    const int begin = middle - half, end = std::min(middle + half + 1, bins), size = end - begin;
    std::copy(counts + begin, counts + end, clipped);
    clipped[0] += sum_of(counts, 0, begin);
    clipped[size - 1] += sum_of(counts, end, bins);
    const double found = divergence(clipped, counts + begin, size, levels, level_of);
    if (found < least) {
      least = found;
      best = half;
    }
  }
  return best;
}

}  // namespace compressor
