#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <algorithm>

#include "compressor/measure.h"
#include "files.h"

namespace compressor {
namespace {

constexpr int kDeepest = 100;  // of messages in messages, as protobuf's own readers have it

enum class Kind { kModel, kGraph, kFunction, kNode, kAttribute, kSparse, kTensor, kEntry, kNothing };

// What kind of message a field holds where tensors may lie in it: the numbers are onnx.proto's.
Kind kind_of(Kind in, std::uint64_t field) noexcept {
  switch (in) {
    case Kind::kModel: return field == 7 ? Kind::kGraph : field == 25 ? Kind::kFunction : Kind::kNothing;
    case Kind::kGraph:
      return field == 1 ? Kind::kNode : field == 5 ? Kind::kTensor : field == 15 ? Kind::kSparse : Kind::kNothing;
    case Kind::kFunction: return field == 7 ? Kind::kNode : Kind::kNothing;
    case Kind::kNode: return field == 5 ? Kind::kAttribute : Kind::kNothing;
    case Kind::kAttribute:
      if (field == 5 || field == 10) return Kind::kTensor;
      if (field == 6 || field == 11) return Kind::kGraph;
      return field == 22 || field == 23 ? Kind::kSparse : Kind::kNothing;
    case Kind::kSparse: return field == 1 || field == 2 ? Kind::kTensor : Kind::kNothing;
    case Kind::kTensor: return field == 13 ? Kind::kEntry : Kind::kNothing;
    default: return Kind::kNothing;
  }
}

struct Bytes {
  const unsigned char *at, *end;

  bool varint(std::uint64_t& value) noexcept {
    value = 0;
    for (int shift = 0; shift < 64 && at < end; shift += 7) {
      const std::uint64_t byte = *at++;
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }
  bool skip(std::uint64_t count) noexcept {
    if (count > static_cast<std::uint64_t>(end - at)) return false;
    at += count;
    return true;
  }
  // The next field: its number and, of one with a length, its content; false at the end and where this is no protobuf.
  bool field(std::uint64_t& number, Bytes& content) noexcept {
    std::uint64_t tag, value;
    if (at >= end || !varint(tag)) return false;
    number = tag >> 3;
    content = {at, at};
    switch (tag & 7) {
      case 0: return varint(value);
      case 1: return skip(8);
      case 2:
        if (!varint(value)) return false;
        content.at = at;
        if (!skip(value)) return false;
        content.end = at;
        return true;
      case 5: return skip(4);
      default: return false;
    }
  }
};

void collect(Bytes message, Kind kind, int depth, std::vector<std::string>& locations) {
  std::uint64_t number;
  Bytes content{};
  if (kind == Kind::kEntry) {
    std::string key, value;
    while (message.field(number, content)) {
      if (number == 1) key.assign(content.at, content.end);
      if (number == 2) value.assign(content.at, content.end);
    }
    if (key == "location" && std::find(locations.begin(), locations.end(), value) == locations.end()) {
      locations.push_back(value);
    }
    return;
  }
  while (depth < kDeepest && message.field(number, content)) {
    const Kind inner = kind_of(kind, number);
    if (inner != Kind::kNothing) collect(content, inner, depth + 1, locations);
  }
}

}  // namespace

std::int64_t bytes_of_file(const std::string& path) {
  struct stat state {};
  return stat(path.c_str(), &state) == 0 ? static_cast<std::int64_t>(state.st_size) : 0;
}

std::vector<std::string> external_data(const std::string& model) {
  std::vector<std::string> locations;
  const Descriptor file(open(model.c_str(), O_RDONLY | O_CLOEXEC));
  struct stat state {};
  if (!file.open() || fstat(file.get(), &state) != 0 || state.st_size <= 0) return locations;
  const auto size = static_cast<std::size_t>(state.st_size);
  void* const mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (mapped == MAP_FAILED) return locations;
  const auto* const begin = static_cast<const unsigned char*>(mapped);
  collect({begin, begin + size}, Kind::kModel, 0, locations);
  munmap(mapped, size);
  return locations;
}

std::vector<std::string> files_of(const std::string& model) {
  const std::size_t slash = model.rfind('/');
  const std::string folder = slash == std::string::npos ? "" : model.substr(0, slash + 1);
  std::vector<std::string> files{model};
  for (const std::string& location : external_data(model)) files.push_back(folder + location);
  return files;
}

std::int64_t bytes_of(const std::string& model) {
  std::int64_t bytes = 0;
  for (const std::string& file : files_of(model)) bytes += bytes_of_file(file);
  return bytes;
}

}  // namespace compressor
