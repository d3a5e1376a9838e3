#include "compressor/json.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace compressor {
namespace {

constexpr char kReplacement[] = "\xef\xbf\xbd";  // U+FFFD

// How many bytes a character has that begins with this byte, and which bytes may come second: no overlong form, no
// surrogate, nothing beyond U+10FFFF (Unicode 15, table 3-7).
struct Lead {
  std::size_t length;  // 0: no character begins so
  unsigned char least, most;
};

Lead lead_of(unsigned char byte) noexcept {
  if (byte < 0x80) return {1, 0, 0};
  if (byte >= 0xc2 && byte <= 0xdf) return {2, 0x80, 0xbf};
  if (byte == 0xe0) return {3, 0xa0, 0xbf};
  if (byte == 0xed) return {3, 0x80, 0x9f};
  if (byte >= 0xe1 && byte <= 0xef) return {3, 0x80, 0xbf};
  if (byte == 0xf0) return {4, 0x90, 0xbf};
  if (byte >= 0xf1 && byte <= 0xf3) return {4, 0x80, 0xbf};
  if (byte == 0xf4) return {4, 0x80, 0x8f};
  return {0, 0, 0};
}

struct Character {
  std::size_t length;  // bytes that belong together, 1 or more
  bool valid;
};

// The first character. Where it breaks off, what was right so far is one wrong character, as Unicode advises.
Character first_character(std::string_view text) noexcept {
  const Lead lead = lead_of(static_cast<unsigned char>(text[0]));
  if (lead.length == 0) return {1, false};
  for (std::size_t i = 1; i < lead.length; ++i) {
    const unsigned char byte = i < text.size() ? static_cast<unsigned char>(text[i]) : 0;
    if (byte < (i == 1 ? lead.least : 0x80) || byte > (i == 1 ? lead.most : 0xbf)) return {i, false};
  }
  return {lead.length, true};
}

}  // namespace

Json& Json::open(char first, char last) {
  text_ += first;
  open_.push_back(last);
  first_ = true;
  return *this;
}

Json& Json::object() { return begin_value(), open('{', '}'); }
Json& Json::object(std::string_view key) { return begin_member(key), open('{', '}'); }
Json& Json::array() { return begin_value(), open('[', ']'); }
Json& Json::array(std::string_view key) { return begin_member(key), open('[', ']'); }

Json& Json::end() {
  if (open_.empty()) throw std::logic_error("Json::end: no container is open");
  text_ += open_.back();
  open_.pop_back();
  first_ = false;
  return *this;
}

Json& Json::member(std::string_view key, std::string_view text) {
  begin_member(key);
  append_string(text);
  return *this;
}

Json& Json::member(std::string_view key, double number) {
  begin_member(key);
  append_number(number);
  return *this;
}

Json& Json::member(std::string_view key, std::int64_t number) { return raw(key, std::to_string(number)); }
Json& Json::member(std::string_view key, bool truth) { return raw(key, truth ? "true" : "false"); }
Json& Json::null(std::string_view key) { return raw(key, "null"); }

Json& Json::raw(std::string_view key, std::string_view json) {
  begin_member(key);
  text_ += json;
  return *this;
}

Json& Json::element(std::string_view text) { return begin_value(), append_string(text), *this; }
Json& Json::element(double number) { return begin_value(), append_number(number), *this; }
Json& Json::element(std::int64_t number) { return begin_value(), text_ += std::to_string(number), *this; }
Json& Json::element(bool truth) { return begin_value(), text_ += truth ? "true" : "false", *this; }
Json& Json::null() { return begin_value(), text_ += "null", *this; }

void Json::begin_value() {
  if (!first_) text_ += ',';
  first_ = false;
}

void Json::begin_member(std::string_view key) {
  begin_value();
  append_string(key);
  text_ += ':';
}

void Json::append_number(double number) {
  if (!std::isfinite(number)) {
    text_ += "null";
    return;
  }
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", number);
  // The program around may have chosen a language that writes a comma, or several bytes.
  const char* rest = digits + std::strspn(digits, "+-0123456789e");
  text_.append(digits, static_cast<std::size_t>(rest - digits));
  if (*rest == '\0') return;
  text_ += '.';
  text_ += rest + std::strcspn(rest, "+-0123456789e");
}

void Json::append_string(std::string_view text) {
  text_ += '"';
  while (!text.empty()) {
    const Character character = first_character(text);
    const char letter = text[0];
    if (!character.valid) {
      text_ += kReplacement;
    } else if (letter == '"' || letter == '\\') {
      (text_ += '\\') += letter;
    } else if (character.length == 1 && static_cast<unsigned char>(letter) < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(letter));
      text_ += escape;
    } else {
      text_ += text.substr(0, character.length);
    }
    text.remove_prefix(character.length);
  }
  text_ += '"';
}

}  // namespace compressor
