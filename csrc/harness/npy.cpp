#include "compressor/npy.h"

#include <sys/stat.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "files.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the arrays' bytes are taken as they are"
#endif

namespace compressor {
namespace {

using ort::ElementType;

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::size_t kHeaderLimit = 65536;  // NumPy writes some hundred bytes
constexpr std::size_t kMostAxes = 64;        // NumPy's own limit
constexpr std::size_t kAlignment = 64;       // of the data in the file
constexpr std::uint64_t kMostBytes = std::numeric_limits<std::int64_t>::max();

struct TypeName {
  ElementType type;
  std::string_view name;
};

constexpr TypeName kTypeNames[] = {
    {ElementType::kBool, "|b1"},    {ElementType::kUint8, "|u1"},   {ElementType::kInt8, "|i1"},
    {ElementType::kUint16, "<u2"},  {ElementType::kInt16, "<i2"},   {ElementType::kUint32, "<u4"},
    {ElementType::kInt32, "<i4"},   {ElementType::kUint64, "<u8"},  {ElementType::kInt64, "<i8"},
    {ElementType::kFloat16, "<f2"}, {ElementType::kFloat32, "<f4"}, {ElementType::kFloat64, "<f8"},
};

// What a file says, fit for one line of an error.
std::string quoted(std::string_view text) {
  constexpr std::size_t kMost = 40;
  std::string line = "'";
  for (const char letter : text.substr(0, kMost)) line += letter >= ' ' && letter <= '~' ? letter : '?';
  return line + (text.size() > kMost ? "...'" : "'");
}

[[noreturn]] void fail(const std::string& expected, const std::string& got) {
  throw NpyError("expected " + expected + ", got " + got);
}

// Runs `work`; its errors get the file's name.
template <class Work>
auto naming(const std::string& path, Work work) {
  try {
    return work();
  } catch (const NpyError& error) {
    throw NpyError(path + ": " + error.what());
  }
}

// The bytes of an array, or nothing where the product is beyond what a machine can address. Sizes must not be negative.
// An array without elements has no bytes, however large its other sizes; their product is held to the same bound, for
// whoever computes strides from it.
std::optional<std::uint64_t> bytes_of(const std::vector<std::int64_t>& shape, std::size_t element) {
  std::uint64_t bytes = element;
  bool empty = false;
  for (const std::int64_t size : shape) {
    empty = empty || size == 0;
    if (size == 0) continue;
    if (bytes > kMostBytes / static_cast<std::uint64_t>(size)) return std::nullopt;
    bytes *= static_cast<std::uint64_t>(size);
  }
  return empty ? 0 : bytes;
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (const std::int64_t& size : shape) text += (&size == &shape.front() ? "" : ", ") + std::to_string(size);
  return text + (shape.size() == 1 ? ",)" : ")");
}

ElementType type_named(std::string_view name) {
  std::string all;
  for (const TypeName& known : kTypeNames) {
    const bool one_byte = known.name[0] == '|';
    const bool order_fits = name[0] == known.name[0] || (one_byte && (name[0] == '<' || name[0] == '>'));
    if (name.substr(1) == known.name.substr(1) && order_fits) return known.type;
    all += (all.empty() ? "" : " ") + std::string(known.name);
  }
  fail("a type of " + all, quoted(name));
}

struct Header {
  ElementType type{};
  std::vector<std::int64_t> shape;
};

// The header is a Python dict of three members, of which only what NumPy writes is understood.
class HeaderReader {
 public:
  explicit HeaderReader(std::string_view text) : rest_(text) {}

  Header read() {
    Header header;
    bool type = false, order = false, shape = false;
    const auto once = [](bool& seen) {
      if (std::exchange(seen, true)) fail("each member once", "one twice");
    };
    if (rest_.substr(0, 1) != "{") fail("a header that begins with {", quoted(rest_));
    rest_.remove_prefix(1);
    while (!next_is('}')) {
      const std::string_view key = string("a member's name");
      take(':', "a colon behind " + quoted(key));
      if (key == "descr") {
        once(type);
        header.type = element_type();
      } else if (key == "fortran_order") {
        once(order);
        row_major();
      } else if (key == "shape") {
        once(shape);
        header.shape = sizes();
      } else {
        fail("descr, fortran_order and shape", quoted(key));
      }
      if (!next_is(',')) {
        take('}', "a comma or } behind a member");
        break;
      }
    }
    skip_blanks();
    if (!rest_.empty()) fail("nothing behind the header's }", quoted(rest_));
    if (!type || !order || !shape) fail("descr, fortran_order and shape", "a header without one of them");
    return header;
  }

 private:
  void skip_blanks() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\t' || rest_[0] == '\n')) rest_.remove_prefix(1);
  }

  // Takes the letter if it comes next.
  bool next_is(char letter) {
    skip_blanks();
    if (rest_.empty() || rest_[0] != letter) return false;
    rest_.remove_prefix(1);
    return true;
  }

  void take(char letter, const std::string& expected) {
    if (!next_is(letter)) fail(expected, quoted(rest_));
  }

  // Takes the word if it comes next.
  bool word(std::string_view wanted) {
    skip_blanks();
    if (rest_.substr(0, wanted.size()) != wanted) return false;
    rest_.remove_prefix(wanted.size());
    return true;
  }

  std::string_view string(const char* expected) {
    const char quote = next_is('\'') ? '\'' : '"';
    if (quote == '"') take('"', std::string(expected) + " in quotes");
    const std::size_t end = rest_.find_first_of(std::string{quote, '\\'});
    if (end == rest_.npos || rest_[end] == '\\') fail(std::string(expected) + " in quotes", quoted(rest_));
    const std::string_view text = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return text;
  }

  ElementType element_type() {
    if (next_is('[')) fail("elements that are one number", "records of several fields");
    const std::string_view name = string("a type");
    if (name.size() < 2) fail("a type", quoted(name));
    return type_named(name);
  }

  void row_major() {
    if (word("True")) fail("an array in C order (numpy.ascontiguousarray)", "one in Fortran order");
    if (!word("False")) fail("True or False as fortran_order", quoted(rest_));
  }

  std::vector<std::int64_t> sizes() {
    std::vector<std::int64_t> found;
    take('(', "a shape in parentheses");
    bool comma = true;
    while (!next_is(')')) {
      if (!comma) fail("a comma between two sizes", quoted(rest_));
      if (found.size() == kMostAxes) fail(std::to_string(kMostAxes) + " sizes at most", "more");
      found.push_back(size());
      comma = next_is(',');
    }
    if (found.size() == 1 && !comma) fail("a shape that is a tuple", "one number in parentheses");
    return found;
  }

  std::int64_t size() {
    skip_blanks();
    const std::string_view before = rest_;
    constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();
    std::int64_t number = 0;
    for (; !rest_.empty() && rest_[0] >= '0' && rest_[0] <= '9'; rest_.remove_prefix(1)) {
      const int digit = rest_[0] - '0';
      if (number > (kMost - digit) / 10) fail("a size that a machine can address", quoted(before));
      number = number * 10 + digit;
    }
    const std::size_t digits = before.size() - rest_.size();
    if (digits == 0 || (digits > 1 && before[0] == '0')) fail("a size of 0 or more", quoted(before));
    return number;
  }

  std::string_view rest_;
};

void read_exactly(const Descriptor& file, void* into, std::size_t bytes) {
  auto* place = static_cast<char*>(into);
  while (bytes > 0) {
    const ssize_t got = ::read(file.get(), place, bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw NpyError(std::string("cannot be read: ") + std::strerror(errno));
    if (got == 0) fail(std::to_string(bytes) + " bytes more", "the end of the file");
    place += got;
    bytes -= static_cast<std::size_t>(got);
  }
}

// The text of the header; `left` is the bytes of the file that have not been read.
std::string header_text(const Descriptor& file, std::uint64_t& left) {
  unsigned char start[12] = {};
  const auto take = [&](std::size_t at, std::size_t bytes) {
    if (left < bytes) fail("a file of NumPy's format (.npy)", "one that ends in its header");
    read_exactly(file, start + at, bytes);
    left -= bytes;
  };
  take(0, 8);
  if (std::memcmp(start, kMagic.data(), kMagic.size()) != 0) {
    fail("a file of NumPy's format (.npy)", "one that does not begin with its mark");
  }
  const int major = start[6], minor = start[7];
  if (major < 1 || major > 3 || minor != 0) {
    fail("format version 1.0, 2.0 or 3.0", std::to_string(major) + "." + std::to_string(minor));
  }
  take(8, major == 1 ? 2 : 4);
  std::uint64_t length = 0;
  for (int i = 3; i >= 0; --i) length = length << 8 | start[8 + i];
  if (length > kHeaderLimit) {
    fail("a header of " + std::to_string(kHeaderLimit) + " bytes at most", std::to_string(length));
  }
  if (length > left) {
    fail("a header of " + std::to_string(length) + " bytes", std::to_string(left) + " to the end of the file");
  }
  std::string text(length, '\0');
  read_exactly(file, text.data(), length);
  left -= length;
  return text;
}

// ONNX Runtime takes these bytes for C++'s bool, for which other values have no meaning.
void check_truths(const Array& array) {
  const auto* truths = static_cast<const unsigned char*>(array.data());
  for (std::size_t i = 0; i < array.count(); ++i) {
    if (truths[i] > 1) fail("0 or 1 as a bool", std::to_string(truths[i]));
  }
}

Array read_array(const std::string& path, std::uint64_t limit_bytes) {
  // O_NONBLOCK: a named pipe is refused below, where opening it would have waited for a writer.
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status{};
  if (!file.open() || fstat(file.get(), &status) != 0) {
    throw NpyError(std::string("cannot be read: ") + std::strerror(errno));
  }
  if (!S_ISREG(status.st_mode)) fail("a file", "something else");
  auto left = static_cast<std::uint64_t>(status.st_size);
  const std::string text = header_text(file, left);
  Header header = HeaderReader(text).read();
  const std::optional<std::uint64_t> bytes = bytes_of(header.shape, ort::element_size(header.type));
  if (!bytes || *bytes > limit_bytes) {
    fail(std::to_string(limit_bytes) + " bytes at most",
         "shape " + shape_text(header.shape) + " of " + ort::element_name(header.type));
  }
  if (*bytes != left) {
    fail(std::to_string(*bytes) + " bytes of data, for shape " + shape_text(header.shape), std::to_string(left));
  }
  Array array{header.type, std::move(header.shape), {}};
  array.storage.resize(static_cast<std::size_t>(*bytes) / sizeof(std::uint64_t) + 1);  // never without a first word
  read_exactly(file, array.storage.data(), static_cast<std::size_t>(*bytes));
  if (array.type == ElementType::kBool) check_truths(array);
  return array;
}

std::string header_of(ElementType type, const std::vector<std::int64_t>& shape) {
  std::string_view name;
  for (const TypeName& known : kTypeNames) {
    if (known.type == type) name = known.name;
  }
  if (name.empty()) fail("a type that can be exchanged", ort::element_name(type));
  std::string text = "{'descr': '" + std::string(name) + "', 'fortran_order': False, 'shape': " + shape_text(shape) +
                     ", }";
  std::string start(kMagic);
  start += {'\1', '\0'};
  const std::size_t length_bytes = 2, line_end = 1;
  const std::size_t used = start.size() + length_bytes + text.size() + line_end;
  text.append((kAlignment - used % kAlignment) % kAlignment, ' ');
  text += '\n';
  start += {static_cast<char>(text.size() & 0xff), static_cast<char>(text.size() >> 8)};
  return start + text;
}

bool write_all(const Descriptor& file, const void* data, std::uint64_t bytes) noexcept {
  const auto* place = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::write(file.get(), place, static_cast<std::size_t>(bytes));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return false;
    place += put;
    bytes -= static_cast<std::uint64_t>(put);
  }
  return true;
}

// A name beside `path` that no other thread and no other running process writes to.
std::string temporary_name(const std::string& path) {
  static std::atomic<unsigned> made{0};
  const std::size_t name = path.rfind('/') + 1;  // 0 where there is no folder
  return path.substr(0, name) + "." + path.substr(name) + "." + std::to_string(getpid()) + "-" +
         std::to_string(made++) + ".tmp";
}

void write_array(const std::string& path, ElementType type, const std::vector<std::int64_t>& shape, const void* data) {
  if (shape.size() > kMostAxes) fail(std::to_string(kMostAxes) + " sizes at most", std::to_string(shape.size()));
  for (const std::int64_t size : shape) {
    if (size < 0) fail("sizes of 0 or more", shape_text(shape));
  }
  const std::string header = header_of(type, shape);
  const std::optional<std::uint64_t> bytes = bytes_of(shape, ort::element_size(type));
  if (!bytes) fail("a size that a machine can address", "shape " + shape_text(shape));
  const std::string temporary = temporary_name(path);
  Descriptor file(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  const bool written = file.open() && write_all(file, header.data(), header.size()) && write_all(file, data, *bytes) &&
                       fsync(file.get()) == 0 && std::rename(temporary.c_str(), path.c_str()) == 0;
  if (written) return;
  const std::string why = std::strerror(errno);
  unlink(temporary.c_str());
  throw NpyError("cannot be written: " + why);
}

}  // namespace

std::size_t Array::count() const noexcept {
  std::size_t elements = 1;
  for (const std::int64_t size : shape) elements *= static_cast<std::size_t>(size);
  return elements;
}

std::size_t Array::bytes() const noexcept { return count() * ort::element_size(type); }

Array read_npy(const std::string& path, std::uint64_t limit_bytes) {
  return naming(path, [&] { return read_array(path, limit_bytes); });
}

void write_npy(const std::string& path, ElementType type, const std::vector<std::int64_t>& shape, const void* data) {
  naming(path, [&] { write_array(path, type, shape, data); });
}

}  // namespace compressor
