// The distillation loss of rows of logits, once for all instruction sets. Their files define
//   COMPRESSOR_ISA    the namespace     COMPRESSOR_LANES    floats in a vector
// and include this. Functions of the standard library that are not built into the compiler have no place here: their
// instances would carry these instructions into the rest of the program.
//
// A row goes through three steps:
//   statistics  once over student and teacher, block by block: exponentials u (student) and v (teacher) below a top,
//               kept in scratch memory, and sums; a block that rises far above the top raises it and moves the sums
//   terms       for JSD and total variation only, whose terms need the finished sums: u = q, v = d term / d q
//   gradient    from u and v alone; exponentials of an earlier block are brought to the last top by a factor
// A row's exponents are counted in powers of two.
#include "instruction_sets.h"
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

// The exponentials of one block below tops that are set, and what they add to the sums. Unguarded it trusts that the tops
// are near enough and that no difference of exponents is infinite where there is no mass; where a sum shows that this is
// not so, it adds nothing and returns false.
template <Soft kSoft, bool kSquares, bool kGuarded>
inline bool add_block(const float* s, const float* t, std::int64_t count, std::int64_t head, Statistics& all, float* u,
                      float* v) noexcept {
  constexpr bool kTeacher = has_teacher(kSoft);
  const F student_top = set(all.student.top), student_rate = set(all.student.rate);
  const F teacher_top = set(all.teacher.top), teacher_rate = set(all.teacher.rate);
  F student_sum{}, teacher_sum{}, squares{}, cross{};
  for_vectors(count, head, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
    const F a = (load(s + i, extent) - student_top) * student_rate;
    const F ea = exp2(a);
    student_sum += ea;
    if constexpr (kSquares) squares += ea * ea;
    if constexpr (kSoft != Soft::kTerms) store(u + i, ea, extent);
    if constexpr (kTeacher) {
      will_read(s + i + kAhead);
      will_read(t + i + kAhead);
      const F b = (load(t + i, extent) - teacher_top) * teacher_rate;
      const F eb = exp2(b);
      teacher_sum += eb;
      constexpr bool kLook = kGuarded || decltype(extent)::kPadded;
      if constexpr (kSoft == Soft::kForward) {
        store(v + i, eb, extent);
        const F term = eb * (b - a);
        cross += kLook ? (eb == 0.0f ? F{} : term) : term;
      }
      if constexpr (kSoft == Soft::kReverse) {
        const F difference = kLook ? (ea == 0.0f ? F{} : a - b) : a - b;
        store(v + i, difference, extent);
        cross += ea * difference;
      }
    }
  });
  const float cross_sum = sum_of(cross), block_sum = sum_of(student_sum), teacher_block_sum = sum_of(teacher_sum);
  if (!kGuarded && !(block_sum < kFarAbove && teacher_block_sum < kFarAbove && cross_sum == cross_sum)) return false;
  all.student.sum += block_sum;
  if constexpr (kSquares) all.squares += sum_of(squares);
  if constexpr (kTeacher) all.teacher.sum += teacher_block_sum;
  if constexpr (kSoft == Soft::kForward || kSoft == Soft::kReverse) all.cross += cross_sum;
  return true;
}

// Raises the tops to the first `count` elements' maxima, and moves the sums. The cross term is a sum of differences: it
// moves with both.
template <Soft kSoft>
inline void raise_tops(Statistics& all, const float* s, const float* t, std::int64_t count) noexcept {
  const float student_top = top_of(s, count, all.student.top);
  const float teacher_top = has_teacher(kSoft) ? top_of(t, count, all.teacher.top) : all.teacher.top;
  double student_shift = 0.0, teacher_shift = 0.0;
  const double student_before = all.student.sum, teacher_before = all.teacher.sum;
  const double student_factor = all.student.move(student_top, &student_shift);
  all.squares *= student_factor * student_factor;
  const double teacher_factor = all.teacher.move(teacher_top, &teacher_shift);
  if (kSoft == Soft::kForward && teacher_before != 0.0) {
    all.cross = teacher_factor * (all.cross + teacher_before * (teacher_shift - student_shift));
  }
  if (kSoft == Soft::kReverse && student_before != 0.0) {
    all.cross = student_factor * (all.cross + student_before * (student_shift - teacher_shift));
  }
}

inline void add_hard_block(const float* s, std::int64_t count, Side& hard) noexcept {
  const float top = top_of(s, count, hard.top);
  if (top > hard.top) {
    double shift;
    hard.move(top, &shift);
  }
  const F at = set(hard.top), rate = set(hard.rate);
  F sum{};
  for_vectors(count, 0, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
    sum += exp2((load(s + i, extent) - at) * rate);
  });
  hard.sum += sum_of(sum);
}

template <Soft kSoft, Hard kHard>
inline Statistics statistics_of(const DistillProblem& problem, Row student, Row teacher, Blocks blocks,
                                const Scratch& scratch, Statistics all) noexcept {
  constexpr bool kTeacher = has_teacher(kSoft), kSquares = kHard == Hard::kSquared;
  blocks.each([&](std::int64_t index, std::int64_t begin, std::int64_t count) COMPRESSOR_INLINE {
    const float* s = student.block(begin, count, count, scratch.student);
    if constexpr (kHard == Hard::kOwn) add_hard_block(s, count, all.hard);
    // Columns beyond the soft part's: exponentials of 0.
    std::int64_t soft = count;
    if constexpr (kSoft != Soft::kNone) {
      soft = problem.soft_width - begin < count ? problem.soft_width - begin : count;
      if (soft < 0) soft = 0;
      for (std::int64_t i = soft; i < count; ++i) scratch.u[begin + i] = scratch.v[begin + i] = 0.0f;
    }
    const float* t = s;
    if constexpr (kTeacher) {
      std::int64_t present = problem.teacher_width - begin;
      present = present < 0 ? 0 : present < soft ? present : soft;
      t = teacher.block(begin, soft, present, scratch.teacher);
    }
    float *u = scratch.u + begin, *v = scratch.v + begin;
    const std::int64_t head = blocks.head(begin);
    if (index == 0) raise_tops<kSoft>(all, s, t, soft < kSample ? soft : kSample);
    if (!add_block<kSoft, kSquares, false>(s, t, soft, head, all, u, v)) {
      raise_tops<kSoft>(all, s, t, soft);
      add_block<kSoft, kSquares, true>(s, t, soft, head, all, u, v);
    }
    scratch.student_tops[index] = all.student.top;
    scratch.teacher_tops[index] = all.teacher.top;
  });
  return all;
}

// What a divergence amounts to, and how d value / d a follows from u and v, a being an exponent of the student's:
//   student * u - teacher * v        forward KL, a sparse teacher
//   u * (student * v + offset)       the others
struct SoftPart {
  double value = 0.0;
  double student = 0.0, teacher = 0.0, offset = 0.0;
};

// The terms of JSD / (beta (1 - beta)) and of total variation. With d = ln(p / q) and m = beta p + (1 - beta) q,
//   JSD: g = ln(q / m) / beta, h = ln(p / m) / (1 - beta), value = sum p h + q g
//   TV:  g = sign(q - p) / 2, value = sum |p - q| / 2
// and d value / d a = q (g - sum q g). For beta <= 1/2, ln(m / q) = ln(1 + beta (e^d - 1)) is computed and ln(m / p)
// follows; else the other way round: both stay exact when beta nears an end.
inline SoftPart terms_of(const DistillProblem& problem, Row student, Row teacher, Blocks blocks,
                         const Scratch& scratch, const Statistics& all) noexcept {
  const F student_top = set(all.student.top), student_rate = set(all.student.rate);
  const F teacher_top = set(all.teacher.top), teacher_rate = set(all.teacher.rate);
  const F student_log = set((float)(all.student.log_sum() / kLn2)), teacher_log = set((float)(all.teacher.log_sum() / kLn2));
  const bool total_variation = problem.divergence == Divergence::kTotalVariation, flipped = problem.beta > 0.5f;
  const float near = flipped ? 1.0f - problem.beta : problem.beta;
  const F sign = set(flipped ? -1.0f : 1.0f);
  double value = 0.0, mean = 0.0;
  blocks.each([&](std::int64_t, std::int64_t begin, std::int64_t count) COMPRESSOR_INLINE {
    std::int64_t soft = problem.soft_width - begin < count ? problem.soft_width - begin : count;
    if (soft <= 0) return;
    std::int64_t present = problem.teacher_width - begin;
    present = present < 0 ? 0 : present < soft ? present : soft;
    const float* s = student.block(begin, soft, soft, scratch.student);
    const float* t = teacher.block(begin, soft, present, scratch.teacher);
    F values{}, means{};
    for_vectors(soft, 0, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
      const F log_q = (load(s + i, extent) - student_top) * student_rate - student_log;
      const F log_p = (load(t + i, extent) - teacher_top) * teacher_rate - teacher_log;
      const F q = exp2(log_q), p = exp2(log_p);
      F g, term;
      if (total_variation) {
        g = q > p ? set(0.5f) : q < p ? set(-0.5f) : q - p;
        term = g * (q - p);
      } else {
        const F d = smaller(set(80.0f), larger(set(-80.0f), (log_p - log_q) * (float)kLn2));
        const F first = log1p((exp2(sign * d * kLog2e) - 1.0f) * near);  // ln(m / q), flipped: ln(m / p)
        g = (flipped ? first + d : first) * (-1.0f / problem.beta);
        const F h = (flipped ? first : first - d) * (-1.0f / (1.0f - problem.beta));
        g = q == 0.0f ? F{} : g;
        term = (p == 0.0f ? F{} : p * h) + q * g;
      }
      store(scratch.u + begin + i, q, extent);
      store(scratch.v + begin + i, g, extent);
      values += term;
      means += q * g;
    });
    value += sum_of(values);
    mean += sum_of(means);
  });
  return {value, 1.0, 0.0, -mean};
}

// Forward KL to a teacher known at a few classes. Leaves in v what is taken off there, and in u nothing where v has all.
inline SoftPart sparse_part(const DistillProblem& problem, std::int64_t row, Row student, Blocks blocks,
                            const Scratch& scratch, const Statistics& all) noexcept {
  const std::int64_t* indices = problem.indices + row * problem.known;
  const float* values = problem.values + row * problem.known;
  const double log_sum = all.student.log_sum();
  const auto log_q = [&](std::int64_t k) {
    return kLn2 * (double)((student.at(indices[k]) - all.student.top) * all.student.rate) - log_sum;
  };
  double log_total = 0.0;
  const double rate = problem.sparse_mode == SparseMode::kZero ? (double)problem.teacher_scale / problem.temperature : 1.0;
  if (problem.sparse_mode == SparseMode::kZero) {
    double top = -(double)kInfinity, total = 0.0;
    for (std::int64_t k = 0; k < problem.known; ++k) {
      if (indices[k] >= 0 && !(values[k] * rate <= top)) top = values[k] * rate;
    }
    for (std::int64_t k = 0; k < problem.known; ++k) {
      if (indices[k] >= 0) total += __builtin_exp(values[k] * rate - top);
    }
    log_total = top + __builtin_log(total);  // of no class at all: NaN
  }
  for (std::int64_t i = 0; i < problem.width; ++i) scratch.v[i] = 0.0f;
  double value = 0.0, mass = 0.0, known_sum = 0.0;
  for (std::int64_t k = 0; k < problem.known; ++k) {
    if (indices[k] < 0) continue;
    const double log_p = values[k] * rate - log_total, p = __builtin_exp(log_p), lq = log_q(k);
    mass += p;
    known_sum += __builtin_exp(lq);
    scratch.v[indices[k]] += (float)p;
    if (p != 0.0) value += p * (problem.sparse_mode == SparseMode::kSampled ? -lq : log_p - lq);
  }
  if (problem.sparse_mode == SparseMode::kZero) value += 0.0 * log_total;
  if (problem.sparse_mode != SparseMode::kGhost) return {value, mass / all.student.sum, 1.0, 0.0};

  double rest = 1.0 - mass, student_rest = 1.0 - known_sum;
  if (rest < kResidualFloor) rest = 0.0;
  const double together = mass + rest;
  for (std::int64_t k = 0; k < problem.known; ++k) {
    if (indices[k] < 0) continue;
    scratch.u[indices[k]] = 0.0f;
    scratch.v[indices[k]] = (float)(__builtin_exp(values[k]) - together * __builtin_exp(log_q(k)));
  }
  if (!(student_rest > 0.05)) {  // a difference of nearly equal numbers: add up what is left instead
    student_rest = 0.0;
    blocks.each([&](std::int64_t index, std::int64_t begin, std::int64_t count) {
      F sum{};
      for_vectors(count, 0, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
        sum += larger(F{}, load(scratch.u + begin + i, extent));
      });
      const double shift = ((double)scratch.student_tops[index] - all.student.top) * all.student.rate;
      student_rest += sum_of(sum) * __builtin_exp2(shift);
    });
    student_rest /= all.student.sum;
  }
  if (rest == 0.0) return {value, together / all.student.sum, 1.0, 0.0};
  value += rest * (__builtin_log(rest) - __builtin_log(student_rest));
  return {value, (together - rest / student_rest) / all.student.sum, 1.0, 0.0};
}

template <Soft kSoft>
inline SoftPart soft_part(const DistillProblem& problem, std::int64_t row, Row student, Row teacher, Blocks blocks,
                          const Scratch& scratch, const Statistics& all) noexcept {
  const double student_sum = all.student.sum, teacher_sum = all.teacher.sum;
  if constexpr (kSoft == Soft::kForward) {
    const double value = kLn2 * all.cross / teacher_sum - all.teacher.log_sum() + all.student.log_sum();
    return {value, 1.0 / student_sum, 1.0 / teacher_sum, 0.0};
  }
  if constexpr (kSoft == Soft::kReverse) {
    const double mean = kLn2 * all.cross / student_sum;
    const double value = mean - all.student.log_sum() + all.teacher.log_sum();
    return {value, kLn2 / student_sum, 0.0, -mean / student_sum};
  }
  if constexpr (kSoft == Soft::kTerms) return terms_of(problem, student, teacher, blocks, scratch, all);
  if constexpr (kSoft == Soft::kSparse) return sparse_part(problem, row, student, blocks, scratch, all);
  return {};
}

// Cross-entropy to (1 - smoothing) w[label] at the label and smoothing / width * w[class] at every class.
struct HardPart {
  double value = 0.0;
  double top = 0.0, sum = 1.0;  // of its exponentials
  double together = 0.0;        // all that it has of weights
  double label = 0.0;           // at the label
  double spread = 0.0;          // at a class of weight 1
};

template <Hard kHard>
inline HardPart hard_part(const DistillProblem& problem, Row student, std::int64_t label, double class_weight_sum,
                          Blocks blocks, const Scratch& scratch, const Statistics& all) noexcept {
  if constexpr (kHard == Hard::kNone) return {};
  HardPart part;
  part.top = kHard == Hard::kOwn ? all.hard.top : all.student.top;
  part.sum = kHard == Hard::kOwn ? all.hard.sum : kHard == Hard::kSquared ? all.squares : all.student.sum;
  const double smoothing = problem.label_smoothing, scale = problem.student_scale;
  part.label = (1.0 - smoothing) * (problem.class_weights ? problem.class_weights[label] : 1.0f);
  part.spread = smoothing / (double)problem.width;
  part.together = part.label + part.spread * class_weight_sum;
  part.value = part.together * __builtin_log(part.sum);
  if (part.label != 0.0) part.value -= part.label * scale * (student.at(label) - (float)part.top);
  if (smoothing == 0.0f) return part;
  const F top = set((float)part.top), one = set(1.0f);
  double below = 0.0;
  blocks.each([&](std::int64_t, std::int64_t begin, std::int64_t count) {
    const float* s = student.block(begin, count, count, scratch.student);
    F sum{};
    for_vectors(count & -kLanes, 0, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
      const F weight = problem.class_weights ? load(problem.class_weights + begin + i, extent) : one;
      sum += weight * (load(s + i, extent) - top);
    });
    below += sum_of(sum);
    for (std::int64_t i = count & -kLanes; i < count; ++i) {
      below += (problem.class_weights ? problem.class_weights[begin + i] : 1.0f) * (s[i] - (float)part.top);
    }
  });
  part.value -= part.spread * scale * below;
  return part;
}

// The gradient's formula with everything in it that is equal for the vectors of a block.
template <Soft kSoft, Hard kHard>
struct Gradient {
  F student, teacher, offset, hard, spread, hard_top, hard_rate;

  COMPRESSOR_INLINE inline F operator()(F u, F v, F s, F class_weight) const noexcept {
    const F taken = spread * class_weight;
    F g;
    if constexpr (kSoft == Soft::kForward || kSoft == Soft::kSparse) {
      g = student * u - (teacher * v + taken);
    } else if constexpr (kSoft == Soft::kNone) {
      g = student * u - taken;
    } else {
      g = u * (student * v + offset) - taken;
    }
    if constexpr (kHard == Hard::kSquared) g += hard * (u * u);
    if constexpr (kHard == Hard::kOwn) g += hard * exp2((s - hard_top) * hard_rate);
    return g;
  }
};

template <Soft kSoft, Hard kHard>
inline Gradient<kSoft, kHard> gradient_of_block(std::int64_t index, const DistillProblem& problem, const Scratch& scratch,
                                                const Statistics& all, const SoftPart& soft, const HardPart& hard,
                                                double weight) noexcept {
  const auto shift_of = [&](const float* tops, const Side& side) {
    return ((double)tops[index] - side.top) * side.rate;
  };
  const double student_shift = shift_of(scratch.student_tops, all.student);
  const auto power = [](double x) { return x == 0.0 ? 1.0 : __builtin_exp2(x); };
  double student_factor = power(student_shift), teacher_factor = 1.0, offset = soft.offset;
  if constexpr (kSoft == Soft::kForward) teacher_factor = power(shift_of(scratch.teacher_tops, all.teacher));
  if constexpr (kSoft == Soft::kReverse) {
    offset += soft.student * (student_shift - shift_of(scratch.teacher_tops, all.teacher));
  }
  // Terms left the probabilities themselves in u.
  double hard_factor = student_factor / all.student.sum, squares_factor = student_factor * student_factor / hard.sum;
  if constexpr (kSoft == Soft::kTerms) {
    student_factor = hard_factor = 1.0;
    squares_factor = all.student.sum * all.student.sum / hard.sum;
  }
  const double soft_weight = weight * problem.soft_weight * problem.student_scale / problem.temperature;
  const double hard_weight = weight * problem.hard_weight * problem.student_scale;
  double student = soft_weight * soft.student * student_factor;
  offset *= soft_weight * student_factor;
  if constexpr (kHard == Hard::kShared) {
    constexpr bool kProduct = kSoft == Soft::kReverse || kSoft == Soft::kTerms;
    (kProduct ? offset : student) += hard_weight * hard.together * hard_factor;
  }
  const double own = kHard == Hard::kSquared ? squares_factor : 1.0 / hard.sum;
  return {set((float)student),
          set((float)(soft_weight * soft.teacher * teacher_factor)),
          set((float)offset),
          set((float)(hard_weight * hard.together * own)),
          set((float)(hard_weight * hard.spread)),
          set((float)hard.top),
          set(all.hard.rate)};
}

template <class Element>
inline void put(Element* p, F g, Whole whole, bool past_caches) noexcept {
  past_caches ? stream(p, g) : store(p, g, whole);
}
template <class Element>
inline void put(Element* p, F g, Part part, bool) noexcept {
  store(p, g, part);
}

template <Soft kSoft, Hard kHard>
void distill_row(const DistillProblem& problem, std::int64_t row, double class_weight_sum, bool past_caches,
                 Scratch scratch) noexcept {
  const Row student = row_of(problem.student, row), teacher = row_of(problem.teacher, row);
  const std::int64_t label = problem.labels ? problem.labels[row] : 0;
  const double row_weight = problem.row_weights ? problem.row_weights[row] : 1.0f;
  const std::int64_t shift = shift_of(problem, row);
  scratch.u += shift;
  scratch.v += shift;
  const Blocks blocks{problem.width, shift};
  const float hard_rate = kLog2e * problem.student_scale;
  const Side student_side{kSoft == Soft::kNone ? hard_rate : hard_rate / problem.temperature};
  const Side teacher_side{kLog2e * problem.teacher_scale / problem.temperature};
  const Statistics all = statistics_of<kSoft, kHard>(problem, student, teacher, blocks, scratch,
                                                     {student_side, teacher_side, {hard_rate}});
  const SoftPart soft = soft_part<kSoft>(problem, row, student, teacher, blocks, scratch, all);
  const HardPart hard = hard_part<kHard>(problem, student, label, class_weight_sum, blocks, scratch, all);
  double loss = 0.0;
  if constexpr (kSoft != Soft::kNone) loss += problem.soft_weight * soft.value;
  if constexpr (kHard != Hard::kNone) loss += problem.hard_weight * hard.value;
  problem.loss[row] = (float)(row_weight * loss);
  if (!problem.gradient.data) return;

  const double weight = row_weight * problem.gradient_scale;
  const float at_label = (float)(weight * problem.hard_weight * problem.student_scale * hard.label);
  const F one = set(1.0f);
  row_of(problem.gradient, row).as([&](auto* read_only) COMPRESSOR_INLINE {
    auto* gradient = mutable_of(read_only);
    blocks.each_backward([&](std::int64_t index, std::int64_t begin, std::int64_t count) COMPRESSOR_INLINE {
      const auto formula = gradient_of_block<kSoft, kHard>(index, problem, scratch, all, soft, hard, weight);
      const float* s = scratch.student;
      if constexpr (kHard == Hard::kOwn) s = student.block(begin, count, count, scratch.student);
      const float *u = scratch.u + begin, *v = scratch.v + begin;
      const float* class_weights = problem.class_weights ? problem.class_weights + begin : nullptr;
      for_vectors(count, blocks.head(begin), [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
        F other{}, logits{};
        if constexpr (kSoft != Soft::kNone) other = load(v + i, extent);
        if constexpr (kHard == Hard::kOwn) logits = load(s + i, extent);
        const F class_weight = class_weights ? load(class_weights + i, extent) : one;
        F g = formula(load(u + i, extent), other, logits, class_weight);
        if constexpr (kHard != Hard::kNone) {
          const std::int64_t lane = label - begin - i;
          if (lane >= 0 && lane < kLanes) g[lane] -= at_label;
        }
        put(gradient + begin + i, g, extent, past_caches);
      });
    });
  });
}

void ignore_row(const DistillProblem& problem, std::int64_t row) noexcept {
  problem.loss[row] = 0.0f;
  if (!problem.gradient.data) return;
  const std::size_t size = problem.gradient.type == ElementType::kFloat32 ? 4 : 2;
  std::memset((char*)row_of(problem.gradient, row).data, 0, problem.width * size);
}

using RowFunction = void (*)(const DistillProblem&, std::int64_t, double, bool, Scratch) noexcept;

template <Soft kSoft>
RowFunction with_hard_part(const DistillProblem& problem) noexcept {
  if (problem.hard_weight == 0.0f) return distill_row<kSoft, Hard::kNone>;
  if constexpr (kSoft != Soft::kSparse) {
    if (problem.soft_width == problem.width && problem.temperature == 1.0f) return distill_row<kSoft, Hard::kShared>;
    if (problem.soft_width == problem.width && problem.temperature == 2.0f) return distill_row<kSoft, Hard::kSquared>;
  }
  return distill_row<kSoft, Hard::kOwn>;
}

RowFunction function_for(const DistillProblem& problem) noexcept {
  if (problem.soft_weight == 0.0f) return distill_row<Soft::kNone, Hard::kShared>;
  if (problem.indices) return with_hard_part<Soft::kSparse>(problem);
  if (problem.divergence == Divergence::kForwardKl) return with_hard_part<Soft::kForward>(problem);
  if (problem.divergence == Divergence::kReverseKl) return with_hard_part<Soft::kReverse>(problem);
  return with_hard_part<Soft::kTerms>(problem);
}

}  // namespace

void distill_rows(const DistillProblem& problem, std::int64_t begin, std::int64_t end, float* memory) noexcept {
  const std::int64_t padded = padded_width(problem.width), blocks = padded / kSmallestBlock + 2;
  float* const converted = memory + 2 * padded;
  float* const tops = converted + 2 * kLargestBlock;
  const Scratch scratch{memory, memory + padded, converted, converted + kLargestBlock, tops, tops + blocks};
  double class_weight_sum = (double)problem.width;
  if (problem.class_weights) {
    class_weight_sum = 0.0;
    for (std::int64_t i = 0; i < problem.width; ++i) class_weight_sum += problem.class_weights[i];
  }
  const std::int64_t size = problem.gradient.type == ElementType::kFloat32 ? 4 : 2;
  const bool past_caches = problem.rows * problem.width * size > kCachedBytes;
  const RowFunction row_function = function_for(problem);
  for (std::int64_t row = begin; row < end; ++row) {
    if (problem.labels && problem.labels[row] == problem.ignore_index) {
      ignore_row(problem, row);
    } else {
      row_function(problem, row, class_weight_sum, past_caches, scratch);
    }
  }
  if (past_caches) streams_are_done();
}

}  // namespace COMPRESSOR_ISA
}  // namespace compressor
