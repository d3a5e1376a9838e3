// Runs problems from a file with one instruction set and writes what came out: the distillation loss without Python,
// for processors that are only emulated. tests/native/loss_problems.py writes the problems and judges the results.
//
//   distill_loss_check INSTRUCTION_SET PROBLEMS RESULTS
//
// Exits with 3 where the instruction set cannot run. Everything in the files is in this processor's byte order.
//   PROBLEMS: int64 count; of each problem a Header, then student, teacher, labels, row_weights, class_weights,
//             indices, values: int64 count of bytes, then the bytes; no bytes: there is none
//   RESULTS:  of each problem float32 loss[rows], then all of the gradient's memory, if there is a gradient: what the
//             kernel did not write of it is 0xa5, or, in place, what the student had there
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "../distill_loss/instruction_sets.h"

namespace {

using compressor::DistillProblem;
using compressor::InstructionSet;

enum class Placement : std::int64_t { kNone, kApart, kInPlace };

struct Header {
  std::int64_t rows, width, soft_width, teacher_width, known, ignore_index, threads;
  std::int64_t student_stride, teacher_stride, gradient_stride;
  std::int64_t student_type, teacher_type, divergence, sparse_mode;  // as the enumerators in distill_loss.h
  Placement gradient;
  double beta, temperature, student_scale, teacher_scale, soft_weight, hard_weight, label_smoothing, gradient_scale;
};

using Bytes = std::vector<char>;

template <class Value>
Value read(std::ifstream& file) {
  Value value;
  file.read(reinterpret_cast<char*>(&value), sizeof value);
  return value;
}

// In memory of exactly this size, so that a sanitizer sees a step beyond it.
Bytes read_bytes(std::ifstream& file) {
  Bytes bytes(read<std::int64_t>(file));
  file.read(bytes.data(), bytes.size());
  return bytes;
}

template <class Element>
const Element* elements(const Bytes& bytes) {
  return bytes.empty() ? nullptr : reinterpret_cast<const Element*>(bytes.data());
}

compressor::Matrix matrix(Bytes& bytes, std::int64_t stride, std::int64_t type) {
  return {bytes.empty() ? nullptr : bytes.data(), stride, static_cast<compressor::ElementType>(type)};
}

void run(const DistillProblem& problem, const std::string& instruction_set, int threads) {
  constexpr std::align_val_t kAlignment{64};
  const std::size_t bytes = compressor::distill_scratch_floats(problem) * threads * sizeof(float);
  float* scratch = static_cast<float*>(::operator new(bytes, kAlignment));
#if defined(__x86_64__)
  if (instruction_set == "avx512-without-bf16") {  // where the processor has both, nothing else comes here
    compressor::avx512::distill_rows(problem, 0, problem.rows, scratch);
    return ::operator delete(scratch, kAlignment);
  }
#endif
  const InstructionSet set = instruction_set == "avx2"     ? InstructionSet::kAvx2
                             : instruction_set == "avx512" ? InstructionSet::kAvx512
                             : instruction_set == "neon"   ? InstructionSet::kNeon
                                                           : InstructionSet::kBaseline;
  compressor::distill_loss(problem, set, scratch, threads);
  ::operator delete(scratch, kAlignment);
}

void solve(std::ifstream& problems, std::ofstream& results, const std::string& instruction_set) {
  const Header header = read<Header>(problems);
  Bytes student = read_bytes(problems), teacher = read_bytes(problems);
  const Bytes labels = read_bytes(problems), row_weights = read_bytes(problems), class_weights = read_bytes(problems);
  const Bytes indices = read_bytes(problems), values = read_bytes(problems);

  const std::size_t size = header.student_type == 0 ? 4 : 2;
  Bytes apart;
  if (header.gradient == Placement::kApart) {
    apart.assign(((header.rows - 1) * header.gradient_stride + header.width) * size, static_cast<char>(0xa5));
  }
  Bytes& gradient = header.gradient == Placement::kInPlace ? student : apart;
  std::vector<float> loss(header.rows);

  DistillProblem problem;
  problem.rows = header.rows;
  problem.width = header.width;
  problem.soft_width = header.soft_width;
  problem.teacher_width = header.teacher_width;
  problem.student = matrix(student, header.student_stride, header.student_type);
  problem.teacher = matrix(teacher, header.teacher_stride, header.teacher_type);
  problem.gradient = matrix(gradient, header.gradient_stride, header.student_type);
  problem.labels = elements<std::int64_t>(labels);
  problem.row_weights = elements<float>(row_weights);
  problem.class_weights = elements<float>(class_weights);
  problem.loss = loss.data();
  problem.indices = elements<std::int64_t>(indices);
  problem.values = elements<float>(values);
  problem.known = header.known;
  problem.sparse_mode = static_cast<compressor::SparseMode>(header.sparse_mode);
  problem.divergence = static_cast<compressor::Divergence>(header.divergence);
  problem.beta = static_cast<float>(header.beta);
  problem.temperature = static_cast<float>(header.temperature);
  problem.student_scale = static_cast<float>(header.student_scale);
  problem.teacher_scale = static_cast<float>(header.teacher_scale);
  problem.soft_weight = static_cast<float>(header.soft_weight);
  problem.hard_weight = static_cast<float>(header.hard_weight);
  problem.label_smoothing = static_cast<float>(header.label_smoothing);
  problem.gradient_scale = static_cast<float>(header.gradient_scale);
  problem.ignore_index = header.ignore_index;
  run(problem, instruction_set, static_cast<int>(header.threads));

  results.write(reinterpret_cast<const char*>(loss.data()), loss.size() * sizeof(float));
  if (header.gradient != Placement::kNone) results.write(gradient.data(), gradient.size());
}

bool runs_here(const std::string& name) {
  if (name == "baseline") return compressor::supported(InstructionSet::kBaseline);
  if (name == "avx2") return compressor::supported(InstructionSet::kAvx2);
  if (name == "avx512" || name == "avx512-without-bf16") return compressor::supported(InstructionSet::kAvx512);
  return name == "neon" && compressor::supported(InstructionSet::kNeon);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: distill_loss_check INSTRUCTION_SET PROBLEMS RESULTS\n");
    return 2;
  }
  if (!runs_here(arguments[1])) {
    std::fprintf(stderr, "this processor or build lacks %s\n", arguments[1]);
    return 3;
  }
  std::ifstream problems(arguments[2], std::ios::binary);
  std::ofstream results(arguments[3], std::ios::binary);
  problems.exceptions(std::ios::failbit | std::ios::badbit | std::ios::eofbit);
  results.exceptions(std::ios::failbit | std::ios::badbit);
  const std::int64_t waiting = read<std::int64_t>(problems);
  for (std::int64_t i = 0; i < waiting; ++i) solve(problems, results, arguments[1]);
}
