#include "supervise.h"

#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>

#include "compressor/harness.h"
#include "compressor/npy.h"

namespace compressor {

std::atomic<bool> stop_asked{false};

namespace {

constexpr char kEnd = 'E', kNoMemory = 'N';  // the child's last line
std::atomic<pid_t> child_running{0};

void on_signal(int signal) {
  const bool again = stop_asked.exchange(true);
  const pid_t child = child_running;
  if (child > 0) kill(child, again ? SIGKILL : signal);
}

bool write_all(int pipe, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t written = write(pipe, data, size);
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) return false;
    data += written;
    size -= static_cast<std::size_t>(written);
  }
  return true;
}

std::string one_line(std::string text) {
  std::string line;
  for (const char c : text) {
    const bool space = c == ' ' || c == '\n' || c == '\t' || c == '\r';
    if (!space) line += c;
    if (space && !line.empty() && line.back() != ' ') line += ' ';
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

void set_limit(int resource, std::int64_t value) {
  const rlimit limit{static_cast<rlim_t>(value), static_cast<rlim_t>(value)};
  setrlimit(static_cast<__rlimit_resource_t>(resource), &limit);
}

void set_limits(const Limits& limits) {
  set_limit(RLIMIT_CORE, 0);
  set_limit(RLIMIT_FSIZE, limits.file_mib << 20);
  if (limits.memory_mib > 0) set_limit(RLIMIT_AS, limits.memory_mib << 20);
}

[[noreturn]] void be_child(pid_t parent, int pipe, const Limits& limits, const std::function<void(const Tell&)>& work) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(1);  // it was gone before
  signal(SIGPIPE, SIG_DFL);
  set_limits(limits);
  const Tell tell = [pipe](const Line& line) {
    const std::string text = line.kind + line.text + "\n";
    if (!write_all(pipe, text.data(), text.size())) _exit(1);
  };
  try {
    work(tell);
    tell({kEnd, ""});
  } catch (const std::bad_alloc&) {
    tell({kNoMemory, ""});
  } catch (const std::exception& error) {
    tell({Line::kFailed, one_line(error.what())});
  }
  _exit(0);  // what ONNX Runtime does at exit is nobody's concern
}

// The lines of a pipe.
class Lines {
 public:
  explicit Lines(int pipe) : pipe_(pipe) {}
  // The next line; false at the end. Throws MeasureError after `silence_s` without anything, beginning with `model`.
  bool next(double silence_s, const std::string& model, Line& line) {
    std::size_t end;
    while ((end = pending_.find('\n')) == std::string::npos) {
      if (!more(silence_s, model)) return false;
    }
    line.kind = pending_[0];
    line.text = pending_.substr(1, end - 1);
    pending_.erase(0, end + 1);
    return true;
  }

 private:
  bool more(double silence_s, const std::string& model) {
    const std::int64_t until = monotonic_ns() + static_cast<std::int64_t>(silence_s * 1e9);
    for (;;) {
      const std::int64_t left_ms = (until - monotonic_ns()) / 1'000'000;
      if (left_ms <= 0) {
        char seconds[32];
        std::snprintf(seconds, sizeof seconds, "%g", silence_s);
        throw MeasureError(model + "no answer for " + seconds + " s; the model may hang, or be too slow");
      }
      pollfd waiting{pipe_, POLLIN, 0};
      const int ready = poll(&waiting, 1, static_cast<int>(left_ms < 1'000'000 ? left_ms : 1'000'000));
      if (ready > 0) break;
    }
    char buffer[65536];
    ssize_t received;
    do {
      received = read(pipe_, buffer, sizeof buffer);
    } while (received < 0 && errno == EINTR);
    if (received <= 0) return false;
    pending_.append(buffer, static_cast<std::size_t>(received));
    return true;
  }
  int pipe_;
  std::string pending_;
};

// Those that end a process by what it did or by whom it met. The C library's own names are too new for old boards.
std::string signal_name(int signal) {
  switch (signal) {
    case SIGSEGV: return "SIGSEGV";
    case SIGILL: return "SIGILL";
    case SIGBUS: return "SIGBUS";
    case SIGFPE: return "SIGFPE";
    case SIGABRT: return "SIGABRT";
    case SIGKILL: return "SIGKILL";
    case SIGTERM: return "SIGTERM";
    case SIGINT: return "SIGINT";
    case SIGXFSZ: return "SIGXFSZ";
    case SIGPIPE: return "SIGPIPE";
    default: return "signal " + std::to_string(signal);
  }
}

// Why a child that did not say its last line ended.
std::string why_ended(int status) {
  if (WIFSIGNALED(status)) {
    const int signal = WTERMSIG(status);
    return "the measuring process was ended by " + signal_name(signal) +
           (signal == SIGKILL ? "; perhaps for want of memory" : "; ONNX Runtime cannot run this model here");
  }
  const int code = WEXITSTATUS(status);
  // The dynamic linker ends a process so, for example where a new thread finds no memory for its own variables.
  const char* const perhaps = code == 127 ? "; perhaps for want of memory" : "";
  return "the measuring process ended with exit code " + std::to_string(code) + perhaps;
}

struct Child {
  pid_t process;
  int pipe;
  ~Child() {
    close(pipe);
    if (process > 0) end();
  }
  int end() {
    kill(process, SIGKILL);
    return wait();
  }
  int wait() {
    int status = 0;
    while (waitpid(process, &status, 0) < 0 && errno == EINTR) {
    }
    child_running = 0;
    process = 0;
    return status;
  }
};

Child start(const Limits& limits, const std::function<void(const Tell&)>& work) {
  int ends[2];
  if (pipe(ends) != 0) throw MeasureError(std::string("no pipe: ") + std::strerror(errno));
  const pid_t parent = getpid(), process = fork();
  if (process < 0) throw MeasureError(std::string("no process: ") + std::strerror(errno));
  if (process == 0) {
    close(ends[0]);
    be_child(parent, ends[1], limits, work);
  }
  close(ends[1]);
  child_running = process;
  if (stop_asked) kill(process, SIGINT);  // asked for since the fork
  return {process, ends[0]};
}

}  // namespace

void catch_signals() {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

void in_child(const Limits& limits, const std::function<void(const Tell&)>& work, const Tell& on_line) {
  Child child = start(limits, work);
  Lines lines(child.pipe);
  Line line{};
  std::string model;  // at work, "" when several are
  while (lines.next(limits.silence_s, model, line)) {
    if (line.kind == Line::kFailed) throw MeasureError(line.text);
    if (line.kind == kNoMemory) throw MeasureError(model + "out of memory");
    if (line.kind == Line::kModel) model = line.text.empty() ? "" : line.text + ": ";
    if (line.kind == kEnd) {
      child.wait();
      return;
    }
    on_line(line);
  }
  const int status = child.wait();
  if (stop_asked && WIFSIGNALED(status)) throw MeasureError("interrupted before anything was measured");
  throw MeasureError(model + why_ended(status));
}

}  // namespace compressor
