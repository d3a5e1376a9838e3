#include <algorithm>
#include <cstdlib>

#include "compressor/calibrate.h"

namespace compressor {
namespace {

constexpr int kLanes = 16;  // independent accumulators, so that the loop over them becomes vector instructions

std::int64_t count_nans(Values values) noexcept {
  std::int64_t nans = 0;
  for (std::int64_t i = 0; i < values.count; ++i) nans += values.data[i] != values.data[i];
  return nans;
}

// Doubles the width `times` times. What moves towards the middle never overtakes what is still to be read.
void widen(std::int64_t* bins, int times) noexcept {
  const int shift = std::min(times, 13);  // by then all lies in the two bins beside zero
  std::int64_t* const middle = bins + kBins / 2;
  for (int i = 1; i < kBins / 2; ++i) {
    const std::int64_t above = middle[i], below = middle[-1 - i];
    middle[i] = middle[-1 - i] = 0;
    middle[i >> shift] += above;
    middle[-1 - (i >> shift)] += below;
  }
}

// Adds to `bins` where the values lie. They are counted in a histogram of 32 bits first, which fits a core's first cache.
void fill(Values values, int exponent, std::int64_t* bins) noexcept {
  constexpr int kRun = 256;
  constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const float reciprocal = std::ldexp(1.0f, -exponent);
  std::int32_t places[kRun];
  for (std::int64_t from = 0; from < values.count; from += kMost) {
    const std::int64_t to = std::min(values.count, from + kMost);
    std::int32_t counts[kBins] = {};
    for (std::int64_t begin = from; begin < to; begin += kRun) {
      const int run = static_cast<int>(std::min<std::int64_t>(kRun, to - begin));
      for (int i = 0; i < run; ++i) {
        const float value = values.data[begin + i];
        const float scaled = value * reciprocal;  // exact, or so small that it may be lost: then the sign tells
        const auto towards_zero = static_cast<std::int32_t>(scaled);
        const bool above = scaled < static_cast<float>(towards_zero) || (towards_zero == 0 && value < 0.0f);
        places[i] = towards_zero - above + kBins / 2;
      }
      for (int i = 0; i < run; ++i) ++counts[places[i]];
    }
    for (int bin = 0; bin < kBins; ++bin) bins[bin] += counts[bin];
  }
}

void count_in(Values values, const Summary& summary, std::int64_t number, TensorStatistics& statistics) noexcept {
  if (values.count == 0) return;
  statistics.values += values.count;
  statistics.zeros += summary.zeros;
  statistics.low = std::min(statistics.low, summary.low);
  statistics.high = std::max(statistics.high, summary.high);
  statistics.sum.add(summary.sum);
  statistics.squares.add(summary.squares);
  const float peak = std::max(std::fabs(summary.low), std::fabs(summary.high));
  const int size = peak == 0.0f ? 0 : std::ilogb(peak);
  const int slot = peak == 0.0f ? 0 : size + 150;
  ++statistics.peaks[slot];
  statistics.first_with_peak[slot] = std::min(statistics.first_with_peak[slot], number);
  // peak < 2^(size + 1) = kBins / 2 * 2^(size - 11)
  const int exponent = peak == 0.0f ? kMinExponent : std::max(size - 11, kMinExponent);
  if (exponent > statistics.exponent) {
    widen(statistics.bins, exponent - statistics.exponent);
    statistics.exponent = exponent;
  }
  fill(values, statistics.exponent, statistics.bins);
}

}  // namespace

void ExactSum::add(double term) noexcept {
  if (term == 0.0) return;
  int exponent = 0;
  const double fraction = std::frexp(term, &exponent);  // term = fraction * 2^exponent, 0.5 <= |fraction| < 1
  auto mantissa = static_cast<std::int64_t>(std::ldexp(fraction, 53));
  int place = exponent - 53 + kPoint;
  if (place < 0) {
    mantissa /= std::int64_t{1} << std::min(-place, 62);  // zeros: the term lies on the lattice
    place = 0;
  }
  const bool negative = mantissa < 0;
  unsigned __int128 rest = static_cast<unsigned __int128>(std::llabs(mantissa)) << (place % 32);
  for (int i = place / 32; rest != 0 && i < kDigits; ++i, rest >>= 32) {
    const auto digit = static_cast<std::int64_t>(static_cast<std::uint32_t>(rest));
    digits[i] += negative ? -digit : digit;
  }
}

Summary summarise(Values values) noexcept {
  float low[kLanes], high[kLanes];
  double sum[kLanes] = {}, squares[kLanes] = {};
  std::int64_t zeros = 0, not_finite = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = std::numeric_limits<float>::infinity();
    high[lane] = -std::numeric_limits<float>::infinity();
  }
  const auto look = [&](const float* data, int lanes) {
    std::int32_t zeros_here = 0, not_finite_here = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      const float value = data[lane];
      low[lane] = value < low[lane] ? value : low[lane];
      high[lane] = value > high[lane] ? value : high[lane];
      sum[lane] += static_cast<double>(value);
      squares[lane] += static_cast<double>(value) * static_cast<double>(value);
      zeros_here += value == 0.0f;
      not_finite_here += !(value - value == 0.0f);
    }
    zeros += zeros_here;
    not_finite += not_finite_here;
  };
  const std::int64_t whole = values.count - values.count % kLanes;
  for (std::int64_t i = 0; i < whole; i += kLanes) look(values.data + i, kLanes);
  look(values.data + whole, static_cast<int>(values.count - whole));

  const std::int64_t nans = not_finite == 0 ? 0 : count_nans(values);
  Summary summary{low[0], high[0], zeros, nans, not_finite - nans, 0.0, 0.0};
  for (int lane = 0; lane < kLanes; ++lane) {
    summary.low = std::min(summary.low, low[lane]);
    summary.high = std::max(summary.high, high[lane]);
    summary.sum += sum[lane];
    summary.squares += squares[lane];
  }
  return summary;
}

bool observe(const Values* batch, TensorStatistics* statistics, Summary* scratch, std::size_t tensors,
             std::int64_t number, int threads) noexcept {
  const auto count = static_cast<std::int64_t>(tensors);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t i = 0; i < count; ++i) scratch[i] = summarise(batch[i]);
  bool finite = true;
  for (std::int64_t i = 0; i < count; ++i) {
    if (scratch[i].nans + scratch[i].infinities == 0) continue;
    finite = false;
    statistics[i].nans += scratch[i].nans;
    statistics[i].infinities += scratch[i].infinities;
    statistics[i].first_not_finite = std::min(statistics[i].first_not_finite, number);
  }
  if (!finite) return false;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (std::int64_t i = 0; i < count; ++i) count_in(batch[i], scratch[i], number, statistics[i]);
  return true;
}

}  // namespace compressor
