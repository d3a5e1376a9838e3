#include <sched.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <string_view>

#include "compressor/machine.h"
#include "files.h"

namespace compressor {
namespace {

// What this was compiled for, in uname's words, and how the names of its processors' kernels begin: a 32-bit program on
// a 64-bit kernel of the same processors is no emulation. `kForeign` begins a line of /proc/cpuinfo that a kernel for
// these processors does not write.
#if defined(__x86_64__) || defined(__i386__)
#if defined(__x86_64__)
constexpr const char* kCompiled = "x86_64";
#else
constexpr const char* kCompiled = "i686";
#endif
constexpr std::string_view kFamily[] = {"x86_64", "i386", "i486", "i586", "i686"};
constexpr std::string_view kForeign = "CPU implementer";
#elif defined(__aarch64__) || defined(__arm__)
#if defined(__aarch64__)
constexpr const char* kCompiled = "aarch64";
#else
constexpr const char* kCompiled = "arm";
#endif
constexpr std::string_view kFamily[] = {"aarch64", "arm"};
constexpr std::string_view kForeign = "vendor_id";
#else  // only the name of qemu-user gives it away
constexpr const char* kCompiled = "this processor";
constexpr std::string_view kFamily[] = {""};
constexpr std::string_view kForeign = "CPU implementer";
#endif

bool begins_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

std::string trimmed(std::string_view text) {
  // A device tree ends its texts with a zero byte.
  const auto blank = [](unsigned char letter) { return letter == '\0' || std::isspace(letter) != 0; };
  while (!text.empty() && blank(text.front())) text.remove_prefix(1);
  while (!text.empty() && blank(text.back())) text.remove_suffix(1);
  return std::string(text);
}

// Calls `visit(key, value)` for the lines "key : value" until it returns false.
template <class Visit>
void each_line(const std::string& text, Visit visit) {
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    const std::string_view line(text.data() + begin, end - begin);
    const std::size_t colon = line.find(':');
    if (colon != line.npos && !visit(trimmed(line.substr(0, colon)), trimmed(line.substr(colon + 1)))) return;
    begin = end + 1;
  }
}

// The value of the first line with that key.
std::optional<std::string> value_of(const std::string& text, std::string_view wanted) {
  std::optional<std::string> found;
  each_line(text, [&](const std::string& key, const std::string& value) {
    if (key == wanted) found = value;
    return !found;
  });
  return found;
}

// Arm's number for the maker, and the maker's for each kind of core: all that /proc/cpuinfo says on many Arm machines.
std::string parts_of(const std::string& cpuinfo) {
  const std::optional<std::string> implementer = value_of(cpuinfo, "CPU implementer");
  if (!implementer) return "";
  std::vector<std::string> parts;
  each_line(cpuinfo, [&](const std::string& key, const std::string& value) {
    if (key == "CPU part" && std::find(parts.begin(), parts.end(), value) == parts.end()) parts.push_back(value);
    return true;
  });
  std::string said = "implementer " + *implementer;
  for (const std::string& part : parts) said += (&part == &parts.front() ? ", part " : " and ") + part;
  return said;
}

std::string processor_of(const std::string& root, const std::string& cpuinfo) {
  // A board's name first: where there is a device tree, cpuinfo's names are as unspecific as "ARMv7 Processor".
  for (const char* path : {"/proc/device-tree/model", "/sys/firmware/devicetree/base/model"}) {
    const std::string model = trimmed(text_of(root + path).value_or(""));
    if (!model.empty()) return model;
  }
  for (const char* key : {"model name", "Model", "Hardware"}) {
    const std::string name = value_of(cpuinfo, key).value_or("");
    if (!name.empty()) return name;
  }
  return parts_of(cpuinfo);
}

std::optional<bool> virtual_machine(const std::string& cpuinfo) {
  const std::optional<std::string> flags = value_of(cpuinfo, "flags");
  if (!flags) return std::nullopt;
  return (" " + *flags + " ").find(" hypervisor ") != std::string::npos;
}

std::string emulator_of(const std::string& root, const std::string& cpuinfo) {
  // qemu-user shows a program its own names here, unless the program has set another.
  const std::string status = text_of(root + "/proc/self/status").value_or("");
  for (const std::string& name :
       {trimmed(text_of(root + "/proc/self/comm").value_or("")), value_of(status, "Name").value_or("")}) {
    if (begins_with(name, "qemu-")) return name;
  }
  // The kernel's own architecture, which uname hides from an emulated program. From Linux 6.1.
  const std::string kernel = trimmed(text_of(root + "/proc/sys/kernel/arch").value_or(""));
  const bool related = std::any_of(std::begin(kFamily), std::end(kFamily),
                                   [&](std::string_view start) { return begins_with(kernel, start); });
  const bool foreign_kernel = !kernel.empty() && !related;
  return foreign_kernel || value_of(cpuinfo, kForeign) ? std::string("an emulator of ") + kCompiled : "";
}

int usable_processors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(std::max(1L, sysconf(_SC_NPROCESSORS_ONLN)));  // more processors than the set has room for
}

}  // namespace

Target describe_target(const std::string& root) {
  Target target;
  utsname names{};
  if (uname(&names) == 0) {
    target.architecture = names.machine;
    target.system = std::string(names.sysname) + " " + names.release;
  }
  const std::string cpuinfo = text_of(root + "/proc/cpuinfo").value_or("");
  target.processor = processor_of(root, cpuinfo);
  target.processors = usable_processors();
  target.online_processors = static_cast<int>(std::max<long>(target.processors, sysconf(_SC_NPROCESSORS_ONLN)));
  if (const auto total = value_of(text_of(root + "/proc/meminfo").value_or(""), "MemTotal")) {
    if (const auto kib = number_in(*total)) target.memory_mib = *kib / 1024.0;
  }
  target.virtual_machine = virtual_machine(cpuinfo);
  target.emulator = emulator_of(root, cpuinfo);
  return target;
}

}  // namespace compressor
