#include "compressor/stats.h"

#include <cmath>

namespace compressor {

double quantile(const double* ascending, std::size_t count, double share) noexcept {
  const double position = share * static_cast<double>(count - 1);
  const auto below = static_cast<std::size_t>(position);
  if (below + 1 >= count) return ascending[count - 1];
  const double part = position - static_cast<double>(below);
  return ascending[below] + part * (ascending[below + 1] - ascending[below]);
}

std::size_t median_rank(std::size_t count, double confidence) noexcept {
  // The number of values below the median is binomial(count, 1/2). Ranks k and count + 1 - k miss the median when
  // fewer than k values, or more than count - k, lie below it: each with probability P(X <= k - 1).
  const double tail = (1.0 - confidence) / 2.0;
  const double n = static_cast<double>(count);
  const double log_all = n * std::log(2.0);
  double missed = 0.0;
  std::size_t rank = 0;
  while (2 * rank < count) {
    const double k = static_cast<double>(rank);
    missed += std::exp(std::lgamma(n + 1.0) - std::lgamma(k + 1.0) - std::lgamma(n - k + 1.0) - log_all);
    if (missed > tail) break;
    ++rank;
  }
  return rank;
}

}  // namespace compressor
