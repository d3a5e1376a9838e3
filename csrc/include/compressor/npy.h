// NumPy's file format (NEP 1), versions 1 to 3, row-major, little-endian: enough to bring inputs and take outputs.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "compressor/ort.h"

namespace compressor {

class NpyError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Array {
  ort::ElementType type;
  std::vector<std::int64_t> shape;
  std::vector<std::uint64_t> storage;  // whole words: aligned for every type

  std::size_t count() const noexcept;
  std::size_t bytes() const noexcept;
  const void* data() const noexcept { return storage.data(); }
};

// Throws NpyError: not there, not this format, a type that cannot be exchanged, Fortran order, a size that is not the
// shape's, more than `limit_bytes`, a bool that is neither 0 nor 1.
Array read_npy(const std::string& path, std::uint64_t limit_bytes = std::uint64_t{1} << 32);
// Whoever reads `path` meanwhile sees the old file or the new one, whole. Throws NpyError.
void write_npy(const std::string& path, ort::ElementType type, const std::vector<std::int64_t>& shape,
               const void* data);

}  // namespace compressor
