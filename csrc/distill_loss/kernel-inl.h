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
#include "row-inl.h"
#include "statistics-inl.h"
#include "parts-inl.h"

namespace compressor {
namespace COMPRESSOR_ISA {
namespace {

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
