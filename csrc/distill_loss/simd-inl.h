// Vectors of COMPRESSOR_LANES floats, in the compiler's vector types: arithmetic, comparison and selection need no
// intrinsics. Here is the rest: conversion, rounding, maxima, powers of two. Included by kernel-inl.h alone.
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace compressor {
namespace COMPRESSOR_ISA {
namespace {

constexpr int kLanes = COMPRESSOR_LANES;
using F = float __attribute__((vector_size(4 * COMPRESSOR_LANES)));
using I = std::int32_t __attribute__((vector_size(4 * COMPRESSOR_LANES)));
using H = std::uint16_t __attribute__((vector_size(2 * COMPRESSOR_LANES)));  // raw bits of half precision

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

constexpr float kInfinity = __builtin_inff();

inline F set(float x) noexcept { return F{} + x; }
inline I bits_of(F x) noexcept { return (I)x; }
inline F from_bits(I x) noexcept { return (F)x; }

template <class Vector, class Element>
inline Vector unaligned(const Element* p) noexcept {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// Half precision without instructions for it: scale by 2^112 instead of moving the exponent, which also serves
// subnormal numbers; infinity and NaN are told apart.
inline F float16_to_float(H h) noexcept {
  const I wide = __builtin_convertvector(h, I);
  const I magnitude = (wide & 0x7fff) << 13;
  const F scaled = from_bits(magnitude) * 0x1p112f;
  const I special = magnitude | 0x7f800000;
  return from_bits((magnitude >= (0x7c00 << 13) ? special : bits_of(scaled)) | ((wide & 0x8000) << 16));
}

// Rounds to nearest, ties to even.
inline H float_to_float16(F x) noexcept {
  const I sign = (bits_of(x) >> 16) & 0x8000;
  const I magnitude = bits_of(x) & 0x7fffffff;
  // Adding a power of two leaves a subnormal result, rounded, in the low bits.
  const I tiny = bits_of(from_bits(magnitude) + 0.5f) - 0x3f000000;
  const I normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  I half = magnitude < (113 << 23) ? tiny : normal;
  half = magnitude >= 0x477ff000 ? I{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? I{} + 0x7e00 : half;
  return __builtin_convertvector(half | sign, H);
}

inline H float_to_bfloat16(F x) noexcept {
  const I bits = bits_of(x);
  const I rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const I quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector(((bits & 0x7fffffff) > 0x7f800000 ? quiet : rounded) & 0xffff, H);
}

inline F load(const float* p) noexcept { return unaligned<F>(p); }
inline F load(const BFloat16* p) noexcept {
  return from_bits(__builtin_convertvector(unaligned<H>(p), I) << 16);
}
inline F load(const Float16* p) noexcept {
#if defined(__AVX512F__)
  return (F)_mm512_cvtph_ps(unaligned<__m256i>(p));
#elif defined(__F16C__)
  return (F)_mm256_cvtph_ps(unaligned<__m128i>(p));
#elif COMPRESSOR_NEON
  return (F)vcvt_f32_f16(unaligned<float16x4_t>(p));
#else
  return float16_to_float(unaligned<H>(p));
#endif
}

inline F to_memory(F x, float) noexcept { return x; }
inline H to_memory(F x, BFloat16) noexcept {
#if defined(__AVX512BF16__)
  return (H)_mm512_cvtneps_pbh((__m512)x);
#else
  return float_to_bfloat16(x);
#endif
}
inline H to_memory(F x, Float16) noexcept {
#if defined(__AVX512F__)
  return (H)_mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT);
#elif defined(__F16C__)
  return (H)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT);
#elif COMPRESSOR_NEON
  return (H)vcvt_f16_f32((float32x4_t)x);
#else
  return float_to_float16(x);
#endif
}

template <class Element>
inline void store(Element* p, F x) noexcept {
  const auto raw = to_memory(x, Element{});
  std::memcpy(p, &raw, sizeof raw);
}

// Past the caches, for memory that is not read again soon; `p` is aligned to the vector.
template <class Element>
inline void stream(Element* p, F x) noexcept {
  const auto raw = to_memory(x, Element{});
#if defined(__SSE2__)
  constexpr int size = sizeof raw;
#if defined(__AVX512F__)
  if constexpr (size == 64) return _mm512_stream_si512((__m512i*)p, (__m512i)raw);
#endif
#if defined(__AVX2__)
  if constexpr (size == 32) return _mm256_stream_si256((__m256i*)p, (__m256i)raw);
#endif
  if constexpr (size == 16) return _mm_stream_si128((__m128i*)p, (__m128i)raw);
#endif
  std::memcpy(p, &raw, sizeof raw);
}

inline void streams_are_done() noexcept {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

inline float minus_infinity(float) noexcept { return -kInfinity; }
inline BFloat16 minus_infinity(BFloat16) noexcept { return {0xff80}; }
inline Float16 minus_infinity(Float16) noexcept { return {0xfc00}; }

// The first `count` elements, fewer than a vector has; -inf after them.
template <class Element>
inline F load_some(const Element* p, std::int64_t count) noexcept {
#if defined(__AVX512F__)
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  if constexpr (sizeof(Element) == 4) {
    return (F)_mm512_mask_loadu_ps((__m512)set(-kInfinity), there, p);
  } else {
    const __m256i absent = _mm256_set1_epi16((short)minus_infinity(Element{}).bits);
    const __m256i raw = _mm256_mask_loadu_epi16(absent, there, p);
    return load((const Element*)&raw);
  }
#else
  Element padded[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) padded[lane] = minus_infinity(Element{});
  for (int lane = 0; lane < count; ++lane) padded[lane] = p[lane];
  return load(padded);
#endif
}

template <class Element>
inline void store_some(Element* p, F x, std::int64_t count) noexcept {
  const auto raw = to_memory(x, Element{});
#if defined(__AVX512F__)
  const __mmask16 there = (__mmask16)((1u << count) - 1);
  if constexpr (sizeof(Element) == 4) {
    _mm512_mask_storeu_ps(p, there, (__m512)raw);
  } else {
    _mm256_mask_storeu_epi16(p, there, (__m256i)raw);
  }
#else
  Element whole[kLanes];
  std::memcpy(whole, &raw, sizeof raw);
  for (int lane = 0; lane < count; ++lane) p[lane] = whole[lane];
#endif
}

// The larger one; `x` where either is NaN.
inline F larger(F other, F x) noexcept {
#if defined(__AVX512F__)
  return (F)_mm512_max_ps((__m512)other, (__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_max_ps((__m256)other, (__m256)x);
#elif defined(__SSE2__)
  return (F)_mm_max_ps((__m128)other, (__m128)x);
#else
  return other > x ? other : x;
#endif
}
// The smaller one; `x` where either is NaN.
inline F smaller(F other, F x) noexcept {
#if defined(__AVX512F__)
  return (F)_mm512_min_ps((__m512)other, (__m512)x);
#elif defined(__AVX2__)
  return (F)_mm256_min_ps((__m256)other, (__m256)x);
#elif defined(__SSE2__)
  return (F)_mm_min_ps((__m128)other, (__m128)x);
#else
  return other < x ? other : x;
#endif
}

// 2^x within 2 units in the last place; 0 below 2^-127; 2^127 or more from there on; NaN for NaN.
#if defined(__AVX512F__)
// x = n + r with n a multiple of 1/32: the power of n's fraction from a table of two registers, that of r by a polynomial,
// minimax in relative error with 1 at 0: error 5.3e-8.
alignas(64) constexpr float kPowers[32] = {
    1.0f, 1.0218972f, 1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f, 1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f, 1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f, 1.87416768f, 1.91520655f, 1.95714414f,
};

inline F exp2(F x) noexcept {
  constexpr float kRound = 0x1.8p18f;  // what is added to it has five bits left for a fraction
  const F shifted = x + kRound;
  const F n = shifted - kRound;
  const F r = x - n;
  const F power =
      (F)_mm512_permutex2var_ps((__m512)load(kPowers), (__m512i)shifted, (__m512)load(kPowers + kLanes));
  const F p = (power * r) * (r * 0x1.ebfbdep-3f + 0x1.62e584p-1f) + power;
  // Scaling counts the whole part of n. Of minus infinity r and p are NaN; scaled by 2^-inf that is 0, as the
  // instruction defines.
  return (F)_mm512_scalef_ps((__m512)p, (__m512)n);
}
#elif defined(__AVX2__)
// x = n + r with n a multiple of 1/8. The power of n: n's bits, moved to where a float has its exponent, plus the bits of
// its fraction's power from a table of one register, less what the fraction's own three bits add there. That of r by a
// polynomial, minimax in relative error with 1 at 0: error 2.5e-8.
alignas(32) constexpr std::int32_t kPowers[8] = {
    0x3f800000, 0x3f7b95c2, 0x3f7837f0, 0x3f75fed7, 0x3f7504f3, 0x3f75672a, 0x3f7744fd, 0x3f7ac0c7,
};

inline F exp2(F x) noexcept {
  constexpr float kRound = 0x1.8p20f;  // what is added to it has three bits left for a fraction
  x = smaller(set(127.0f), larger(set(-127.0f), x));
  const F shifted = x + kRound;
  const F r = x - (shifted - kRound);
  const I fraction = (I)_mm256_permutevar8x32_epi32(unaligned<__m256i>(kPowers), (__m256i)shifted);
  const F power = from_bits(fraction + (bits_of(shifted) << 20));
  const F q = (r * 0x1.c6a002p-5f + 0x1.ec0c32p-3f) * r + 0x1.62e432p-1f;
  return (power * r) * q + power;
}
#else
inline F nearest_integer(F x) noexcept {
#if defined(__AVX2__)
  return (F)_mm256_round_ps((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif COMPRESSOR_NEON
  return (F)vrndnq_f32((float32x4_t)x);
#else
  constexpr float kRound = 0x1.8p23f;  // what is added to it has no bits left for a fraction
  return (x + kRound) - kRound;
#endif
}

// A polynomial in the fraction, minimax in relative error on [-1/2, 1/2] with 1 at 0: error 8.7e-8.
inline F exp2(F x) noexcept {
  x = smaller(set(127.0f), larger(set(-127.0f), x));
  const F n = nearest_integer(x);
  const F r = x - n;
  F p = set(0x1.5b7622p-10f);
  p = p * r + 0x1.3cee9cp-7f;
  p = p * r + 0x1.c6b848p-5f;
  p = p * r + 0x1.ebf9aep-3f;
  p = p * r + 0x1.62e428p-1f;
  p = p * r + 1.0f;
  return p * from_bits((__builtin_convertvector(n, I) + 127) << 23);
}
#endif

// ln(x) for normal x > 0; NaN for NaN. x = 2^e m with m in [sqrt(1/2), sqrt(2)); ln(m) by the series of
// 2 artanh(f / (2 + f)), f = m - 1, cut after the 11th power: error 6e-9.
inline F log(F x) noexcept {
  constexpr std::int32_t kRootHalf = 0x3f3504f3;
  const I moved = bits_of(x) - kRootHalf;
  const F e = __builtin_convertvector(moved >> 23, F);
  const F f = from_bits((moved & 0x7fffff) + kRootHalf) - 1.0f;
  const F z = f / (f + 2.0f), w = z * z;
  F tail = set(2.0f / 11);
  tail = tail * w + 2.0f / 9;
  tail = tail * w + 2.0f / 7;
  tail = tail * w + 2.0f / 5;
  tail = tail * w + 2.0f / 3;
  const F log_m = f - z * (f - tail * w);  // 2z = f - z f: f stays exact
  const F sum = e * 0x1.62e4p-1f + (log_m + e * 0x1.7f7d1cp-20f);
  return x == x ? sum : x;
}

// ln(1 + x) for x > -1: what rounding 1 + x lost is put back (Kahan).
inline F log1p(F x) noexcept {
  const F u = x + 1.0f;
  return log(u) + (x - (u - 1.0f)) / u;
}

inline float sum_of(F x) noexcept {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total[kLanes];
  std::memcpy(total, &x, sizeof x);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) total[lane] += total[lane + half];
  }
  return total[0];
#endif
}

inline float largest_of(F x) noexcept {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float top[kLanes];
  std::memcpy(top, &x, sizeof x);
  for (int lane = 1; lane < kLanes; ++lane) top[0] = top[lane] > top[0] ? top[lane] : top[0];
  return top[0];
#endif
}

}  // namespace
}  // namespace COMPRESSOR_ISA
}  // namespace compressor
