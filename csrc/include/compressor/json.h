// Writes JSON text (RFC 8259) in the order of the calls. Numbers that JSON does not have (NaN, infinities) become null,
// bytes that are not UTF-8 U+FFFD.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace compressor {

class Json {
 public:
  // Containers; `key` where the container lies in an object.
  Json& object();
  Json& object(std::string_view key);
  Json& array(std::string_view key);
  Json& array();
  Json& end();  // of the innermost open container

  // Members of an object.
  Json& member(std::string_view key, std::string_view text);
  Json& member(std::string_view key, const char* text) { return member(key, std::string_view(text)); }
  Json& member(std::string_view key, double number);  // 9 significant digits
  Json& member(std::string_view key, std::int64_t number);
  Json& member(std::string_view key, int number) { return member(key, static_cast<std::int64_t>(number)); }
  Json& member(std::string_view key, std::size_t number) { return member(key, static_cast<std::int64_t>(number)); }
  Json& member(std::string_view key, bool truth);
  Json& null(std::string_view key);
  Json& raw(std::string_view key, std::string_view json);  // text that is JSON already

  // Elements of an array; outside of all containers, the whole text.
  Json& element(std::string_view text);
  Json& element(const char* text) { return element(std::string_view(text)); }
  Json& element(double number);
  Json& element(std::int64_t number);
  Json& element(int number) { return element(static_cast<std::int64_t>(number)); }
  Json& element(std::size_t number) { return element(static_cast<std::int64_t>(number)); }
  Json& element(bool truth);
  Json& null();

  // One line without a line break. All containers must be closed.
  const std::string& text() const noexcept { return text_; }

 private:
  void begin_value();
  void begin_member(std::string_view key);
  void append_string(std::string_view text);
  void append_number(double number);
  Json& open(char first, char last);
  std::string text_;
  std::vector<char> open_;  // the closing character of each open container
  bool first_ = true;       // nothing stands in the innermost container yet
};

}  // namespace compressor
