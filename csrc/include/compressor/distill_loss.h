// The distillation loss over rows of logits: value and gradient in one call. compressor/kernels/reference.py has the
// formulas.
#pragma once

#include <cstddef>
#include <cstdint>

namespace compressor {

enum class ElementType { kFloat32, kBFloat16, kFloat16 };
enum class Divergence { kForwardKl, kReverseKl, kJensenShannon, kTotalVariation };
enum class SparseMode { kZero, kGhost, kSampled };
// In ascending order of preference.
enum class InstructionSet { kBaseline, kAvx2, kAvx512, kNeon };

// A row-major matrix somewhere in memory; rows may lie apart. A null address: there is none.
struct Matrix {
  void* data = nullptr;
  std::int64_t stride = 0;  // elements from one row to the next
  ElementType type = ElementType::kFloat32;
};

struct DistillProblem {
  std::int64_t rows = 0;
  std::int64_t width = 0;          // columns of student and gradient; >= 1
  std::int64_t soft_width = 0;     // the first columns that the divergence sees; in 1..width
  std::int64_t teacher_width = 0;  // the teacher's columns; in 1..soft_width, no mass in the rest
  Matrix student;
  Matrix teacher;   // null with a sparse teacher, or with soft_weight 0
  Matrix gradient;  // of the student's type or float32; written; null: the losses only. May be the student itself; no
                    // other overlap

  const std::int64_t* labels = nullptr;  // [rows], each in [0, width) or ignore_index; null: none
  const float* row_weights = nullptr;    // [rows], or null for ones
  const float* class_weights = nullptr;  // [width], or null for ones
  float* loss = nullptr;                 // [rows], written

  const std::int64_t* indices = nullptr;  // [rows, known], each in [0, width), or negative for padding
  const float* values = nullptr;          // [rows, known]
  std::int64_t known = 0;
  SparseMode sparse_mode = SparseMode::kZero;

  Divergence divergence = Divergence::kForwardKl;
  float beta = 0.5f;            // of kJensenShannon; strictly between 0 and 1
  float temperature = 1.0f;     // > 0
  float student_scale = 1.0f;   // > 0
  float teacher_scale = 1.0f;   // > 0
  float soft_weight = 1.0f;     // of the divergence: >= 0; 0: the teacher is not read
  float hard_weight = 0.0f;     // of the cross-entropy: >= 0; above 0 needs labels
  float label_smoothing = 0.0f; // in [0, 1]
  float gradient_scale = 1.0f;  // of the gradient alone
  std::int64_t ignore_index = -100;
};

// Whether this build has the instruction set and this processor can run it.
bool supported(InstructionSet set) noexcept;

// How many floats of scratch memory each thread of `distill_loss` needs.
std::size_t distill_scratch_floats(const DistillProblem& problem) noexcept;

// Writes `problem.loss` and `problem.gradient`. A row whose label is ignore_index is not read; its loss and gradient
// are 0. NaN propagates within its row; a teacher logit of -inf contributes 0; a student logit of -inf where the teacher
// has mass gives +inf. Mass below 2^-126 of the largest counts as none. `scratch` has distill_scratch_floats() floats
// for each of `threads`, and starts at a multiple of 64 bytes. Allocates nothing. `set` must be supported.
void distill_loss(const DistillProblem& problem, InstructionSet set, float* scratch, int threads) noexcept;

}  // namespace compressor
