// A row of logits of any element type, the blocks that it is taken in, and what is known of it on the way. Included by
// kernel-inl.h alone.
#include "simd-inl.h"

namespace compressor {
namespace COMPRESSOR_ISA {
namespace {

#define COMPRESSOR_INLINE __attribute__((always_inline))

enum class Soft { kNone, kForward, kReverse, kTerms, kSparse };
enum class Hard { kNone, kShared, kSquared, kOwn };  // its exponentials: u itself, u squared, or computed apart

// Elements of a block: few enough for a lane's sums to stay exact in float, and to stay in the first-level cache.
constexpr std::int64_t kBlock = 64 * kLanes;
static_assert(kBlock >= kSmallestBlock && kBlock <= kLargestBlock);

constexpr bool has_teacher(Soft soft) noexcept {
  return soft == Soft::kForward || soft == Soft::kReverse || soft == Soft::kTerms;
}

constexpr float kLog2e = 1.44269504f;
constexpr double kLn2 = 0.6931471805599453;
constexpr float kLowest = -3.402823466e+38f;
constexpr float kResidualFloor = 1e-6f;
// A top need not be the maximum: that of the first elements serves as long as no block's sum is far above it.
constexpr std::int64_t kSample = 64;
constexpr float kFarAbove = 0x1p20f;

// Asks for memory that is needed in a while, into the second-level cache: the first has too few slots for what is on its
// way. Past the end of a row the next one follows, and an address that is nobody's does no harm.
constexpr std::int64_t kAhead = 2048;
template <class Element>
inline void will_read(const Element* p) noexcept {
  __builtin_prefetch(p, 0, 2);
}

// How much of a vector there is.
struct Whole {
  static constexpr bool kPadded = false;
};
struct Part {
  static constexpr bool kPadded = true;
  std::int64_t count;
};

template <class Element>
inline F load(const Element* p, Whole) noexcept {
  return load(p);
}
template <class Element>
inline F load(const Element* p, Part part) noexcept {
  return load_some(p, part.count);
}
template <class Element>
inline void store(Element* p, F x, Whole) noexcept {
  store(p, x);
}
template <class Element>
inline void store(Element* p, F x, Part part) noexcept {
  store_some(p, x, part.count);
}

// body(i, extent) over [0, count): first `head` elements, so that the vectors after it are aligned, then whole vectors,
// then the rest.
template <class Body>
COMPRESSOR_INLINE inline void for_vectors(std::int64_t count, std::int64_t head, Body body) noexcept {
  if (head > count) head = count;
  if (head > 0) body(0, Part{head});
  std::int64_t i = head;
  for (; i + kLanes <= count; i += kLanes) body(i, Whole{});
  if (i < count) body(i, Part{count - i});
}

// A row of one of the three element types, read as float.
struct Row {
  const char* data;
  ElementType type;

  template <class Use>
  COMPRESSOR_INLINE auto as(Use use) const noexcept {
    if (type == ElementType::kBFloat16) return use((const BFloat16*)data);
    if (type == ElementType::kFloat16) return use((const Float16*)data);
    return use((const float*)data);
  }
  // `count` elements from `begin`: where they lie, or converted into `buffer`. `present` <= count are there, the rest
  // is -inf.
  const float* block(std::int64_t begin, std::int64_t count, std::int64_t present, float* buffer) const noexcept {
    if (type == ElementType::kFloat32 && present == count) return (const float*)data + begin;
    as([&](auto* p) COMPRESSOR_INLINE {
      for_vectors(present, 0, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
        will_read(p + begin + i + kAhead);
        store(buffer + i, load(p + begin + i, extent), extent);
      });
    });
    for (std::int64_t i = present; i < count; ++i) buffer[i] = -kInfinity;
    return buffer;
  }
  float at(std::int64_t column) const noexcept {
    return as([&](auto* p) COMPRESSOR_INLINE { return load_some(p + column, 1)[0]; });
  }
};

template <class Element>
inline Element* mutable_of(const Element* p) noexcept {
  return const_cast<Element*>(p);
}

inline Row row_of(const Matrix& matrix, std::int64_t row) noexcept {
  const int size = matrix.type == ElementType::kFloat32 ? 4 : 2;
  return {(const char*)matrix.data + row * matrix.stride * size, matrix.type};
}

// Sums of one side relative to `top`, which grows: sum of 2^((x - top) * rate).
struct Side {
  float rate;  // scale / temperature / ln 2
  float top = kLowest;
  double sum = 0.0;

  double log_sum() const noexcept { return __builtin_log(sum); }
  // To a higher top: the factor of everything summed so far, and by how many powers of two it moves.
  double move(float higher, double* shift) noexcept {
    *shift = ((double)top - higher) * rate;
    const double factor = sum == 0.0 ? 0.0 : *shift == 0.0 ? 1.0 : __builtin_exp2(*shift);
    top = higher;
    sum *= factor;
    return factor;
  }
};

struct Statistics {
  Side student, teacher, hard;
  double squares = 0.0;  // of the student's exponentials
  double cross = 0.0;    // sum of v (b - a), reverse: of u (a - b); a, b: exponents of student and teacher
};

// Memory of one thread for one row at a time.
struct Scratch {
  float *u, *v;                           // [width], shifted so that they are aligned as the gradient is
  float *student, *teacher;               // [kBlock], converted blocks
  float *student_tops, *teacher_tops;     // [blocks], the tops that u and v of a block are relative to
};

// How many elements the gradient's row lies past a multiple of the vector's size.
inline std::int64_t shift_of(const DistillProblem& problem, std::int64_t row) noexcept {
  if (!problem.gradient.data) return 0;
  const std::uintptr_t address = (std::uintptr_t)row_of(problem.gradient, row).data;
  return (std::int64_t)(address / (problem.gradient.type == ElementType::kFloat32 ? 4 : 2)) % kLanes;
}

// Blocks of a row: the first is shorter, so that the others start where the gradient is aligned.
struct Blocks {
  std::int64_t width, shift;

  std::int64_t count() const noexcept { return (width + shift + kBlock - 1) / kBlock; }
  // body(index, begin, count) of one block.
  template <class Body>
  COMPRESSOR_INLINE void one(std::int64_t index, Body body) const noexcept {
    const std::int64_t begin = index == 0 ? 0 : index * kBlock - shift, end = (index + 1) * kBlock - shift;
    body(index, begin, (end < width ? end : width) - begin);
  }
  template <class Body>
  COMPRESSOR_INLINE void each(Body body) const noexcept {
    for (std::int64_t index = 0; index < count(); ++index) one(index, body);
  }
  // What was written last is read first: of a row that is longer than the cache, its end is still there.
  template <class Body>
  COMPRESSOR_INLINE void each_backward(Body body) const noexcept {
    for (std::int64_t index = count() - 1; index >= 0; --index) one(index, body);
  }
  std::int64_t head(std::int64_t begin) const noexcept { return begin == 0 && shift > 0 ? kLanes - shift : 0; }
};

inline float top_of(const float* x, std::int64_t count, float top) noexcept {
  F all = set(top), more = all;
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= count; i += 2 * kLanes) {
    all = larger(load(x + i), all);
    more = larger(load(x + i + kLanes), more);
  }
  for (; i + kLanes <= count; i += kLanes) all = larger(load(x + i), all);
  if (i < count) all = larger(load_some(x + i, count - i), all);
  return largest_of(larger(all, more));
}

}  // namespace
}  // namespace COMPRESSOR_ISA
}  // namespace compressor
