#include "compressor/distill_loss.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace compressor {
namespace {

// Sums run over short blocks that are then added up: the rounding error of a long row stays small.
constexpr std::int64_t kBlock = 512;
// Below this many elements, waking threads costs more than the work.
constexpr std::int64_t kSerialElements = std::int64_t{1} << 15;

// exp(x) for x <= 0, within 2 ulp: split x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial in r, 2^n by its bits.
// Without branches, so that the compiler turns loops over it into vector code. Results below the smallest normal
// float are 0. NaN gives NaN.
inline float exp_nonpositive(float x) noexcept {
  constexpr float kSmallest = -87.33654f;
  constexpr float kLog2e = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few bits, so n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, left in the low bits

  const float clamped = x < kSmallest ? kSmallest : x;
  const float shifted = clamped * kLog2e + kRound;
  const float n = shifted - kRound;
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;

  std::uint32_t bits;
  std::memcpy(&bits, &shifted, sizeof bits);
  const std::uint32_t exponent = (bits + 127u) << 23;
  float power;
  std::memcpy(&power, &exponent, sizeof power);
  return x < kSmallest ? 0.0f : p * power;
}

float row_max(const float* row, std::int64_t width) noexcept {
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (std::int64_t i = 0; i < width; ++i) top = row[i] > top ? row[i] : top;
  return top;
}

// Writes weight * T * (softmax(s/T) - softmax(t/T)) to gradient; returns weight * T^2 * KL.
float soft_row(const float* student, const float* teacher, std::int64_t width, float temperature, float weight,
               float* gradient, float* teacher_exp) noexcept {
  const float student_max = row_max(student, width);
  const float teacher_max = row_max(teacher, width);
  const float inverse = 1.0f / temperature;
  float student_sum = 0.0f, teacher_sum = 0.0f, cross = 0.0f;
  for (std::int64_t begin = 0; begin < width; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, width);
    float student_part = 0.0f, teacher_part = 0.0f, cross_part = 0.0f;
#pragma omp simd reduction(+ : student_part, teacher_part, cross_part)
    for (std::int64_t i = begin; i < end; ++i) {
      const float a = (student[i] - student_max) * inverse;
      const float b = (teacher[i] - teacher_max) * inverse;
      const float ea = exp_nonpositive(a);
      const float eb = exp_nonpositive(b);
      gradient[i] = ea;
      teacher_exp[i] = eb;
      student_part += ea;
      teacher_part += eb;
      // Where the teacher has no mass the difference may be infinite: 0 * inf must not count.
      const float term = eb * (b - a);
      cross_part += eb == 0.0f ? 0.0f : term;
    }
    student_sum += student_part;
    teacher_sum += teacher_part;
    cross += cross_part;
  }
  const float student_scale = weight * temperature / student_sum;
  const float teacher_scale = weight * temperature / teacher_sum;
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) {
    gradient[i] = student_scale * gradient[i] - teacher_scale * teacher_exp[i];
  }
  const float divergence = cross / teacher_sum - std::log(teacher_sum) + std::log(student_sum);
  return weight * temperature * temperature * divergence;
}

// Adds weight * (softmax(s) - onehot(label)) to gradient; returns weight * CE.
float hard_row(const float* student, std::int64_t label, std::int64_t width, float weight, float* gradient,
               float* student_exp) noexcept {
  const float top = row_max(student, width);
  float sum = 0.0f;
  for (std::int64_t begin = 0; begin < width; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, width);
    float part = 0.0f;
#pragma omp simd reduction(+ : part)
    for (std::int64_t i = begin; i < end; ++i) {
      student_exp[i] = exp_nonpositive(student[i] - top);
      part += student_exp[i];
    }
    sum += part;
  }
  const float scale = weight / sum;
#pragma omp simd
  for (std::int64_t i = 0; i < width; ++i) gradient[i] += scale * student_exp[i];
  gradient[label] -= weight;
  return weight * (std::log(sum) - (student[label] - top));
}

}  // namespace

void distill_loss(const float* student, const float* teacher, const std::int64_t* labels, std::int64_t rows,
                  std::int64_t width, const DistillSettings& settings, float* loss, float* gradient,
                  float* scratch, int threads) noexcept {
  const float soft_weight = 1.0f - settings.hard_weight;
  const int used = rows * width < kSerialElements ? 1 : threads;
  (void)used;  // without OpenMP
#pragma omp parallel for num_threads(used) schedule(static) if (used > 1)
  for (std::int64_t row = 0; row < rows; ++row) {
#ifdef _OPENMP
    float* mine = scratch + omp_get_thread_num() * width;
#else
    float* mine = scratch;
#endif
    const float* s = student + row * width;
    float* g = gradient + row * width;
    float value = 0.0f;
    if (soft_weight > 0.0f) {
      value = soft_row(s, teacher + row * width, width, settings.temperature, soft_weight, g, mine);
    } else {
      std::fill(g, g + width, 0.0f);
    }
    if (labels != nullptr && settings.hard_weight > 0.0f && labels[row] != settings.ignore_index) {
      value += hard_row(s, labels[row], width, settings.hard_weight, g, mine);
    }
    loss[row] = value;
  }
}

}  // namespace compressor
