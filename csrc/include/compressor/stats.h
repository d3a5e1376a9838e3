// Pure statistics of timing samples.
#pragma once

#include <cstddef>

namespace compressor {

// The `share` quantile (in [0, 1]) of `count` >= 1 ascending values, linear between neighbours.
double quantile(const double* ascending, std::size_t count, double share) noexcept;

// The 1-based rank k for which the k-th smallest and the k-th largest of `count` values enclose the median with at
// least the given confidence, whatever the distribution (the sign test turned round). 0 when `count` is too small.
std::size_t median_rank(std::size_t count, double confidence) noexcept;

}  // namespace compressor
