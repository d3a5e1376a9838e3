// The values of the soft and the hard part, and what the gradient needs of them. Included by kernel-inl.h alone.

namespace compressor {
namespace COMPRESSOR_ISA {
namespace {

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

// A row's known classes: what a sparse teacher gives.
struct Known {
  const std::int64_t* indices;
  const float* values;
  std::int64_t count;

  // body(class, value) of each that is not padding.
  template <class Body>
  COMPRESSOR_INLINE void each(Body body) const noexcept {
    for (std::int64_t k = 0; k < count; ++k) {
      if (indices[k] >= 0) body(indices[k], values[k]);
    }
  }
};

// ln of the sum of e^(value * rate).
inline double log_sum_of(const Known& known, double rate) noexcept {
  double top = -(double)kInfinity, total = 0.0;
  known.each([&](std::int64_t, float value) {
    if (!(value * rate <= top)) top = value * rate;
  });
  known.each([&](std::int64_t, float value) { total += __builtin_exp(value * rate - top); });
  return top + __builtin_log(total);
}

// The student's mass in all classes whose u is not 0, without taking a difference.
inline double mass_left(Blocks blocks, const Scratch& scratch, const Statistics& all) noexcept {
  double mass = 0.0;
  blocks.each([&](std::int64_t index, std::int64_t begin, std::int64_t count) {
    F sum{};
    for_vectors(count, 0, [&](std::int64_t i, auto extent) COMPRESSOR_INLINE {
      sum += larger(F{}, load(scratch.u + begin + i, extent));  // past the end it is -inf
    });
    mass += sum_of(sum) * __builtin_exp2(((double)scratch.student_tops[index] - all.student.top) * all.student.rate);
  });
  return mass / all.student.sum;
}

// Forward KL to a sparse teacher. Leaves in v what is taken off at its classes.
inline SoftPart sparse_part(const DistillProblem& problem, std::int64_t row, Row student, Blocks blocks,
                            const Scratch& scratch, const Statistics& all) noexcept {
  const Known known{problem.indices + row * problem.known, problem.values + row * problem.known, problem.known};
  const bool zero = problem.sparse_mode == SparseMode::kZero, sampled = problem.sparse_mode == SparseMode::kSampled;
  const double rate = zero ? (double)problem.teacher_scale / problem.temperature : 1.0;
  const double log_total = zero ? log_sum_of(known, rate) : 0.0, log_sum = all.student.log_sum();
  const auto log_q = [&](std::int64_t column) {
    return kLn2 * (double)((student.at(column) - all.student.top) * all.student.rate) - log_sum;
  };
  std::memset(scratch.v, 0, problem.width * sizeof(float));
  double value = 0.0, mass = 0.0, student_mass = 0.0;
  known.each([&](std::int64_t column, float given) {
    const double log_p = given * rate - log_total, p = __builtin_exp(log_p), lq = log_q(column);
    mass += p;
    student_mass += __builtin_exp(lq);
    scratch.v[column] += (float)p;
    if (p != 0.0) value += p * (sampled ? -lq : log_p - lq);
  });
  if (problem.sparse_mode != SparseMode::kGhost) return {value, mass / all.student.sum, 1.0, 0.0};

  // The ghost takes the rest. Where a class is known, v has its whole gradient and u nothing: elsewhere u's factor may
  // grow without bound, and must not cancel here.
  const double rest = 1.0 - mass < kResidualFloor ? 0.0 : 1.0 - mass, together = mass + rest;
  known.each([&](std::int64_t column, float given) {
    scratch.u[column] = 0.0f;
    scratch.v[column] = (float)(__builtin_exp(given) - together * __builtin_exp(log_q(column)));
  });
  if (rest == 0.0) return {value, together / all.student.sum, 1.0, 0.0};
  const double student_rest = student_mass < 0.95 ? 1.0 - student_mass : mass_left(blocks, scratch, all);
  value += rest * (__builtin_log(rest) - __builtin_log(student_rest));
  return {value, (together - rest / student_rest) / all.student.sum, 1.0, 0.0};
}

template <Soft kSoft>
inline SoftPart soft_part(const DistillProblem& problem, std::int64_t row, Row student, Row teacher, Blocks blocks,
                          const Scratch& scratch, const Statistics& all) noexcept {
  const double student_sum = all.student.sum, teacher_sum = all.teacher.sum;
  if constexpr (kSoft == Soft::kForward) {
    const double value = kLn2 * all.cross / teacher_sum + __builtin_log(student_sum / teacher_sum);
    return {value, 1.0 / student_sum, 1.0 / teacher_sum, 0.0};
  }
  if constexpr (kSoft == Soft::kReverse) {
    const double mean = kLn2 * all.cross / student_sum;
    const double value = mean + __builtin_log(teacher_sum / student_sum);
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

}  // namespace
}  // namespace COMPRESSOR_ISA
}  // namespace compressor
