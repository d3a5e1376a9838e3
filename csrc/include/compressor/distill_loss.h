// Temperature-scaled distillation loss over dense logits: values and gradient in one call.
#pragma once

#include <cstdint>

namespace compressor {

struct DistillSettings {
  float temperature;          // > 0
  float hard_weight;          // in [0, 1]: share of the cross-entropy to the label
  std::int64_t ignore_index;  // rows with this label have no hard part
};

// Per row, with T the temperature and w the hard weight:
//   loss = (1 - w) * T^2 * KL(softmax(teacher/T) || softmax(student/T)) + w * CE(softmax(student), label)
// and `gradient` is d loss / d student. A part whose weight is 0 is not evaluated.
//
//   student, teacher  [rows, width] float32, row-major, contiguous; read only
//   labels            [rows], each in [0, width) or ignore_index; null: no row has a hard part
//   loss              [rows], written
//   gradient          [rows, width], written; must not overlap the inputs
//   scratch           [threads, width], overwritten
//
// NaN propagates; a teacher logit of -inf contributes 0; a student logit of -inf where the teacher has
// mass, or at the label, gives +inf. Allocates nothing.
void distill_loss(const float* student, const float* teacher, const std::int64_t* labels, std::int64_t rows,
                  std::int64_t width, const DistillSettings& settings, float* loss, float* gradient,
                  float* scratch, int threads) noexcept;

}  // namespace compressor
