#include <algorithm>
#include <cstdint>
#include <limits>

#include "compressor/emulate.h"

namespace compressor {
namespace {

// Columns that are searched together.
constexpr std::int64_t kTile = 32;

// Marks (by a negative value) those of `count` columns in which a pair's sum leaves 16 bits: there it has another sign
// than both of its products, which fit.
inline void search(const std::uint8_t* a, const std::int8_t* b, std::int64_t depth, std::int64_t columns,
                   std::int64_t count, std::int16_t* marked) noexcept {
  for (std::int64_t k = 0; k + 1 < depth; k += 2) {
    const auto first = static_cast<std::int16_t>(a[k]), second = static_cast<std::int16_t>(a[k + 1]);
    if (first == 0 || second == 0) continue;  // after a ReLU most are
    const std::int8_t *above = b + k * columns, *below = above + columns;
    for (std::int64_t n = 0; n < count; ++n) {
      const auto one = static_cast<std::int16_t>(first * above[n]);
      const auto other = static_cast<std::int16_t>(second * below[n]);
      const auto sum = static_cast<std::int16_t>(static_cast<std::uint16_t>(one) + static_cast<std::uint16_t>(other));
      marked[n] = static_cast<std::int16_t>(marked[n] | ((one ^ sum) & (other ^ sum)));
    }
  }
}

struct Column {
  std::int32_t excess = 0;
  std::int64_t saturated = 0;
};

Column measure(const std::uint8_t* a, const std::int8_t* b, std::int64_t depth, std::int64_t columns) noexcept {
  constexpr std::int32_t kLowest = std::numeric_limits<std::int16_t>::min();
  constexpr std::int32_t kHighest = std::numeric_limits<std::int16_t>::max();
  Column found;
  for (std::int64_t k = 0; k + 1 < depth; k += 2) {
    const std::int32_t sum = a[k] * b[k * columns] + a[k + 1] * b[(k + 1) * columns];
    const std::int32_t kept = std::clamp(sum, kLowest, kHighest);
    found.excess += kept - sum;
    found.saturated += kept != sum;
  }
  return found;
}

}  // namespace

void saturation(const std::uint8_t* a, const std::int8_t* b, std::int64_t rows, std::int64_t depth,
                std::int64_t columns, std::int32_t* excess, std::int64_t* saturated) noexcept {
  std::fill(excess, excess + rows * columns, 0);
  std::fill(saturated, saturated + columns, 0);
  for (std::int64_t from = 0; from < columns; from += kTile) {
    const std::int64_t count = std::min(kTile, columns - from);
    for (std::int64_t row = 0; row < rows; ++row) {
      std::int16_t marked[kTile] = {};
      // A loop of known length becomes vector code.
      if (count == kTile) {
        search(a + row * depth, b + from, depth, columns, kTile, marked);
      } else {
        search(a + row * depth, b + from, depth, columns, count, marked);
      }
      for (std::int64_t n = 0; n < count; ++n) {
        if (marked[n] >= 0) continue;
        const Column found = measure(a + row * depth, b + from + n, depth, columns);
        excess[row * columns + from + n] = found.excess;
        saturated[from + n] += found.saturated;
      }
    }
  }
}

}  // namespace compressor
