// Reading the small files in which Linux tells of itself.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <optional>
#include <string>

namespace compressor {

// A file descriptor that is closed again.
class Descriptor {
 public:
  explicit Descriptor(int number) noexcept : number_(number) {}
  Descriptor(Descriptor&& other) noexcept : number_(other.number_) { other.number_ = -1; }
  Descriptor& operator=(Descriptor&&) = delete;
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  int get() const noexcept { return number_; }
  bool open() const noexcept { return number_ >= 0; }

 private:
  int number_;
};

// What stands in the file, of a long one the first `limit` bytes or a little more; nothing where it cannot be read.
// These files have no size to ask for, and some answer with an error, such as those of a core that is off.
inline std::optional<std::string> text_of(const std::string& path, std::size_t limit = std::size_t{1} << 20) {
  const Descriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!file.open()) return std::nullopt;
  std::string text;
  char chunk[4096];
  while (text.size() < limit) {
    const ssize_t got = ::read(file.get(), chunk, sizeof chunk);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return std::nullopt;
    if (got == 0) break;
    text.append(chunk, static_cast<std::size_t>(got));
  }
  return text;
}

// The number that the text begins with.
inline std::optional<double> number_in(const std::string& text, int base = 10) {
  const char* begin = text.c_str();
  char* end = nullptr;
  errno = 0;
  const long long number = std::strtoll(begin, &end, base);
  if (end == begin || errno != 0) return std::nullopt;
  return static_cast<double>(number);
}

inline std::optional<double> number_of(const std::string& path, int base = 10) {
  const std::optional<std::string> text = text_of(path);
  return text ? number_in(*text, base) : std::nullopt;
}

}  // namespace compressor
