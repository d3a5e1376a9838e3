#include <cstring>

#include "compressor/ort.h"
#include "slots.h"

namespace compressor::ort {
namespace {

struct ElementKind {
  ElementType type;
  std::size_t size;
  const char* name;
};

constexpr ElementKind kKinds[] = {
    {ElementType::kFloat32, 4, "float32"}, {ElementType::kUint8, 1, "uint8"},     {ElementType::kInt8, 1, "int8"},
    {ElementType::kUint16, 2, "uint16"},   {ElementType::kInt16, 2, "int16"},     {ElementType::kInt32, 4, "int32"},
    {ElementType::kInt64, 8, "int64"},     {ElementType::kBool, 1, "bool"},       {ElementType::kFloat16, 2, "float16"},
    {ElementType::kFloat64, 8, "float64"}, {ElementType::kUint32, 4, "uint32"},   {ElementType::kUint64, 8, "uint64"},
};

const ElementKind* find(ElementType type) noexcept {
  for (const ElementKind& kind : kKinds) {
    if (kind.type == type) return &kind;
  }
  return nullptr;
}

}  // namespace

std::size_t element_size(ElementType type) noexcept {
  const ElementKind* kind = find(type);
  return kind == nullptr ? 0 : kind->size;
}

std::string element_name(ElementType type) {
  if (const ElementKind* kind = find(type)) return kind->name;
  // Of onnx.proto's TensorProto.DataType, what is met in models.
  switch (static_cast<int>(type)) {
    case 8: return "string";
    case 16: return "bfloat16";
    default: return "unsupported (type " + std::to_string(static_cast<int>(type)) + ")";
  }
}

bool accepted_as_input(ElementType type) noexcept {
  return type == ElementType::kFloat32 || type == ElementType::kInt64 || type == ElementType::kInt32 ||
         type == ElementType::kUint8 || type == ElementType::kBool;
}

void Inputs::add(ElementType type, const std::vector<std::int64_t>& shape, const void* data) {
  std::size_t bytes = element_size(type);
  for (const std::int64_t extent : shape) bytes *= static_cast<std::size_t>(extent);
  // Whole 64-bit words: aligned for every type, and never a null pointer, also for an empty tensor.
  std::vector<std::uint64_t> storage(bytes / sizeof(std::uint64_t) + 1);
  if (bytes > 0) std::memcpy(storage.data(), data, bytes);
  Handle value(library_.get(), kReleaseValue);
  library_->call(kCreateTensorWithData, library_->memory_info(), static_cast<void*>(storage.data()), bytes,
                 shape.data(), shape.size(), static_cast<int>(type), value.out());
  raw_.push_back(value.get());
  values_.push_back(std::move(value));
  storage_.push_back(std::move(storage));  // a moved vector keeps its address
}

}  // namespace compressor::ort
