// What saturation changes in the product of two 8-bit integer matrices. docs/certificate.md says which processors add
// two products within 16 bits, and which compute exactly.
#pragma once

#include <cstdint>

namespace compressor {

// a [rows, depth] times b [depth, columns], both row-major without gaps, where the sum of the products of depths 2i and
// 2i + 1 is clamped to 16 bits before it is added up (x86's pmaddubsw); an odd last product stands alone and fits.
// Writes into `excess` [rows, columns] what that adds to the exact product, and into `saturated` [columns] how many
// sums lay outside of 16 bits. Zero points are the caller's: what they contribute is exact on every processor.
void saturation(const std::uint8_t* a, const std::int8_t* b, std::int64_t rows, std::int64_t depth,
                std::int64_t columns, std::int32_t* excess, std::int64_t* saturated) noexcept;

}  // namespace compressor
