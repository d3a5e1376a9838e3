// What calibration keeps of every tensor that a model computes: counts, moments and a histogram, in memory that does
// not grow with the number of batches. docs/quantization.md says what is made of it.
//
// All of it is integers or extremes, so it is the same whatever the order of the batches, however they are divided
// between threads and processes, and merges by addition.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

namespace compressor {

// A histogram of 8,192 bins of equal width around zero: bin k, from -4,096 on, holds k * 2^exponent <= value < (k + 1) *
// 2^exponent. The width doubles when a value lies outside, and neighbours are added up; since floor(floor(v) / 2) is
// floor(v / 2), that is the histogram which the doubled width would have given from the beginning. The exponent is the
// least at which the largest magnitude fits, so that 4,096 bins or more lie between it and its negative.
constexpr int kBins = 8192;
constexpr int kMinExponent = -126;  // the finest width whose reciprocal is a float

// A sum of doubles without rounding, as digits of 32 bits with room for carries. It holds whatever lies on the lattice
// of products of two floats (multiples of 2^-298, below 2^256), and 2^31 such terms.
struct ExactSum {
  static constexpr int kDigits = 20;
  static constexpr int kPoint = 298;  // the value is the sum of digits[i] * 2^(32 i - kPoint)
  std::int64_t digits[kDigits] = {};
  void add(double term) noexcept;
};

// How large the largest magnitude of a batch was: slot 0 for zero, else 150 + floor(log2(magnitude)).
constexpr int kPeaks = 278;
constexpr std::int64_t kNoBatch = std::numeric_limits<std::int64_t>::max();

struct TensorStatistics {
  std::int64_t values = 0, zeros = 0;  // of the batches that count
  float low = std::numeric_limits<float>::infinity(), high = -std::numeric_limits<float>::infinity();
  ExactSum sum, squares;  // of each batch the sums in double, added up without rounding
  std::int32_t exponent = kMinExponent;
  std::int64_t bins[kBins] = {};
  std::int64_t peaks[kPeaks] = {};       // how many batches had a peak of that size
  std::int64_t first_with_peak[kPeaks];  // the smallest number of such a batch, or kNoBatch
  std::int64_t nans = 0, infinities = 0;      // values in the batches that were left out
  std::int64_t first_not_finite = kNoBatch;   // the smallest number of a batch that has any here

  TensorStatistics() noexcept {
    for (std::int64_t& first : first_with_peak) first = kNoBatch;
  }
};

struct Values {
  const float* data;
  std::int64_t count;  // may be 0
};

// What one look at a batch of one tensor finds. Sums and extremes only count where all values are finite.
struct Summary {
  float low, high;
  std::int64_t zeros, nans, infinities;
  double sum, squares;
};

Summary summarise(Values values) noexcept;

// Adds one batch: `tensors` arrays, counted into as many statistics. A batch with NaN or infinity in any tensor is left
// out of all of them, and false returned. `scratch` has room for `tensors`. `number` names the batch in what is found
// wrong. Tensors are divided among `threads`.
bool observe(const Values* batch, TensorStatistics* statistics, Summary* scratch, std::size_t tensors,
             std::int64_t number, int threads) noexcept;

// How far the range of a tensor may be cut so that what int8 makes of it differs least from what it was: the half-width
// in bins, of `counts` (an even number of bins around zero, `levels` to kBins; `levels` even), with the least Kullback-Leibler
// divergence between the clipped histogram and the same in `levels` steps (Migacz, GTC 2017), as onnxruntime's
// HistogramCollector.get_entropy_threshold defines it. The range of half-width h is bins [middle - h, middle + h]. Half
// of all bins where every divergence is infinite.
int entropy_half_width(const std::int64_t* counts, int bins, int levels) noexcept;

}  // namespace compressor
