// The first step of kernel-inl.h: exponentials and their sums. Included by it alone.

namespace compressor {
namespace COMPRESSOR_ISA {
namespace {

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

}  // namespace
}  // namespace COMPRESSOR_ISA
}  // namespace compressor
