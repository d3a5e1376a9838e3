// ONNX Runtime through its C function table: no headers, no link-time dependency, the library opened at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace compressor::ort {

class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The numbers are ONNX Runtime's; those named here can be exchanged.
enum class ElementType : int {
  kFloat32 = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kFloat64 = 11,
  kUint32 = 12,
  kUint64 = 13,
};

// Bytes per element; 0 for a type that cannot be exchanged.
std::size_t element_size(ElementType type) noexcept;
// NumPy's name of the type; "unsupported (type N)" for one that cannot be exchanged.
std::string element_name(ElementType type);
// Whether models with inputs of this type are accepted: float32, int64, int32, uint8, bool.
bool accepted_as_input(ElementType type) noexcept;

struct TensorInfo {
  std::string name;
  ElementType type;
  std::vector<std::int64_t> shape;   // -1 where dynamic
  std::vector<std::string> symbols;  // the name of a dynamic dimension, else ""
};

// An opened libonnxruntime with one environment. It stays open until the process ends: closing it is not safe.
class Library {
 public:
  // Throws Error when the file is no ONNX Runtime of 1.19 or later.
  explicit Library(const std::string& path);
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  const std::string& version() const noexcept { return version_; }
  // The execution providers that it was built with, under their long names.
  std::vector<std::string> providers() const;

  // Calls the function at `slot` of the table, which returns a status; throws Error with its message.
  template <typename... Arguments>
  void call(int slot, Arguments... arguments) const {
    check(reinterpret_cast<void* (*)(Arguments...)>(table_[slot])(arguments...));
  }
  // Calls a Release function.
  void release(int slot, void* handle) const noexcept {
    if (handle != nullptr) reinterpret_cast<void (*)(void*)>(table_[slot])(handle);
  }
  void check(void* status) const;
  // Forgets a status.
  void discard(void* status) const noexcept;
  const void* at(int slot) const noexcept { return table_[slot]; }
  void* environment() const noexcept { return environment_; }
  void* memory_info() const noexcept { return memory_info_; }

 private:
  const void* const* table_ = nullptr;
  std::string version_;
  void* environment_ = nullptr;
  void* memory_info_ = nullptr;
};

// A runtime handle and the function that frees it.
class Handle {
 public:
  Handle() = default;
  Handle(const Library* library, int release_slot) : library_(library), slot_(release_slot) {}
  Handle(Handle&& other) noexcept : library_(other.library_), slot_(other.slot_), raw_(other.raw_) {
    other.raw_ = nullptr;
  }
  Handle& operator=(Handle&& other) noexcept {
    if (this != &other) {
      reset();
      library_ = other.library_;
      slot_ = other.slot_;
      raw_ = other.raw_;
      other.raw_ = nullptr;
    }
    return *this;
  }
  ~Handle() { reset(); }

  void* get() const noexcept { return raw_; }
  void** out() noexcept { return &raw_; }
  void reset() noexcept {
    if (raw_ != nullptr) library_->release(slot_, raw_);
    raw_ = nullptr;
  }

 private:
  const Library* library_ = nullptr;
  int slot_ = 0;
  void* raw_ = nullptr;
};

// One value for each input of a session, in its order, copied into memory of its own.
class Inputs {
 public:
  explicit Inputs(std::shared_ptr<Library> library) : library_(std::move(library)) {}
  Inputs(Inputs&&) = default;
  // `data` holds the elements of `shape`, row-major.
  void add(ElementType type, const std::vector<std::int64_t>& shape, const void* data);
  const std::vector<const void*>& raw() const noexcept { return raw_; }

 private:
  std::shared_ptr<Library> library_;
  std::vector<std::vector<std::uint64_t>> storage_;
  std::vector<Handle> values_;
  std::vector<const void*> raw_;
};

// An output; the value is the runtime's, null where only looked at.
struct Output {
  Handle value;
  ElementType type;
  std::vector<std::int64_t> shape;
  const void* data;
};

struct SessionSettings {
  int threads = 1;
  int optimization_level = 99;    // 0 none, 1 basic, 2 extended, 99 all
  bool spin = false;              // whether idle threads burn processor time while they wait
  std::string provider = "cpu";   // or the short name of another that the library has, such as XNNPACK
  std::string profile_prefix;     // where the runtime's profile of each node goes; "": no profile
};

class Session {
 public:
  Session(std::shared_ptr<Library> library, const std::string& model, const SessionSettings& settings);

  const std::vector<TensorInfo>& inputs() const noexcept { return inputs_; }
  const std::vector<TensorInfo>& outputs() const noexcept { return outputs_; }
  const std::shared_ptr<Library>& library() const noexcept { return library_; }

  std::vector<Output> run(const Inputs& inputs) const;
  // What a value holds that `run_raw` wrote; the value stays the caller's.
  Output view(void* value) const;
  // Ends the profile and returns its file's path. Throws Error when the session was not asked for one.
  std::string end_profile() const;
  // Runs once. Each of `outputs` is null and receives what the runtime allocates, or a value of an earlier run that is
  // written over, which fails where its shape is another. Returns the runtime's status.
  void* run_raw(const Inputs& inputs, void** outputs) const noexcept;
  void release_outputs(void** outputs) const noexcept;

 private:
  std::shared_ptr<Library> library_;
  Handle session_;
  std::vector<TensorInfo> inputs_, outputs_;
  std::vector<const char*> input_names_, output_names_;
  void* (*run_)(void*, const void*, const char* const*, const void* const*, std::size_t, const char* const*,
                std::size_t, void**) = nullptr;
};

}  // namespace compressor::ort
