#include "compressor/ort.h"
#include "slots.h"

namespace compressor::ort {
namespace {

constexpr char kSpinningEntry[] = "session.intra_op.allow_spinning";

void read_type_and_shape(const Library& library, void* info, ElementType& type, std::vector<std::int64_t>& shape) {
  int element = 0;
  std::size_t rank = 0;
  library.call(kTensorElementType, static_cast<const void*>(info), &element);
  library.call(kDimensionCount, static_cast<const void*>(info), &rank);
  type = static_cast<ElementType>(element);
  shape.resize(rank);
  library.call(kDimensions, static_cast<const void*>(info), shape.data(), rank);
}

TensorInfo describe(const Library& library, void* session, bool input, std::size_t index) {
  void* allocator = nullptr;  // the runtime's own, not to be released
  library.call(kDefaultAllocator, &allocator);
  char* name = nullptr;
  library.call(input ? kSessionInputName : kSessionOutputName, static_cast<const void*>(session), index, allocator,
               &name);
  TensorInfo described{name, ElementType{}, {}, {}};
  library.call(kAllocatorFree, allocator, static_cast<void*>(name));

  Handle type_info(&library, kReleaseTypeInfo);
  library.call(input ? kSessionInputType : kSessionOutputType, static_cast<const void*>(session), index,
               type_info.out());
  void* tensor = nullptr;  // a view into type_info
  library.call(kCastToTensorInfo, static_cast<const void*>(type_info.get()), &tensor);
  if (tensor == nullptr) {
    throw Error((input ? "input '" : "output '") + described.name + "' is not a tensor; only tensors are supported");
  }
  read_type_and_shape(library, tensor, described.type, described.shape);
  std::vector<const char*> symbols(described.shape.size());
  library.call(kSymbolicDimensions, static_cast<const void*>(tensor), symbols.data(), symbols.size());
  for (const char* symbol : symbols) described.symbols.emplace_back(symbol == nullptr ? "" : symbol);
  return described;
}

std::vector<TensorInfo> describe_all(const Library& library, void* session, bool input) {
  std::size_t count = 0;
  library.call(input ? kSessionInputCount : kSessionOutputCount, static_cast<const void*>(session), &count);
  std::vector<TensorInfo> all;
  for (std::size_t i = 0; i < count; ++i) all.push_back(describe(library, session, input, i));
  return all;
}

void append_provider(const Library& library, void* options, const std::string& provider) {
  if (provider == "cpu") return;
  try {
    const char* const* none = nullptr;
    library.call(kAppendExecutionProvider, options, provider.c_str(), none, none, std::size_t{0});
  } catch (const Error& error) {
    std::string there;
    for (const std::string& name : library.providers()) there += (there.empty() ? "" : ", ") + name;
    throw Error("execution provider '" + provider + "' must be one that this ONNX Runtime has (" + there +
                "); it says: " + error.what());
  }
}

}  // namespace

Session::Session(std::shared_ptr<Library> library, const std::string& model, const SessionSettings& settings)
    : library_(std::move(library)), session_(library_.get(), kReleaseSession) {
  const Library& runtime = *library_;
  Handle options(&runtime, kReleaseSessionOptions);
  runtime.call(kCreateSessionOptions, options.out());
  runtime.call(kSetIntraOpThreads, options.get(), settings.threads);
  runtime.call(kSetInterOpThreads, options.get(), 1);
  runtime.call(kSetGraphOptimizationLevel, options.get(), settings.optimization_level);
  runtime.call(kAddSessionConfigEntry, options.get(), static_cast<const char*>(kSpinningEntry),
               settings.spin ? "1" : "0");
  append_provider(runtime, options.get(), settings.provider);
  if (!settings.profile_prefix.empty()) {
    runtime.call(kEnableProfiling, options.get(), settings.profile_prefix.c_str());
  }
  runtime.call(kCreateSession, runtime.environment(), model.c_str(), static_cast<const void*>(options.get()),
               session_.out());

  inputs_ = describe_all(runtime, session_.get(), true);
  outputs_ = describe_all(runtime, session_.get(), false);
  for (const TensorInfo& input : inputs_) {
    if (!accepted_as_input(input.type)) {
      throw Error("input '" + input.name + "' is " + element_name(input.type) +
                  "; supported are float32, int64, int32, uint8 and bool");
    }
    input_names_.push_back(input.name.c_str());
  }
  for (const TensorInfo& output : outputs_) output_names_.push_back(output.name.c_str());
  run_ = reinterpret_cast<decltype(run_)>(const_cast<void*>(runtime.at(kRun)));
}

void* Session::run_raw(const Inputs& inputs, void** outputs) const noexcept {
  return run_(session_.get(), nullptr, input_names_.data(), inputs.raw().data(), input_names_.size(),
              output_names_.data(), output_names_.size(), outputs);
}

void Session::release_outputs(void** outputs) const noexcept {
  for (std::size_t i = 0; i < outputs_.size(); ++i) {
    library_->release(kReleaseValue, outputs[i]);
    outputs[i] = nullptr;
  }
}

Output Session::view(void* value) const {
  const Library& runtime = *library_;
  Output output{Handle(&runtime, kReleaseValue), ElementType{}, {}, nullptr};
  Handle info(&runtime, kReleaseTensorInfo);
  runtime.call(kTensorInfoOfValue, static_cast<const void*>(value), info.out());
  read_type_and_shape(runtime, info.get(), output.type, output.shape);
  void* data = nullptr;
  runtime.call(kTensorData, value, &data);
  output.data = data;
  return output;
}

std::vector<Output> Session::run(const Inputs& inputs) const {
  std::vector<void*> raw(outputs_.size(), nullptr);
  library_->check(run_raw(inputs, raw.data()));
  std::vector<Handle> values;
  for (void* value : raw) {
    values.emplace_back(library_.get(), kReleaseValue);
    *values.back().out() = value;
  }
  std::vector<Output> produced;
  for (Handle& value : values) {
    produced.push_back(view(value.get()));
    produced.back().value = std::move(value);
  }
  return produced;
}

std::string Session::end_profile() const {
  void* allocator = nullptr;
  library_->call(kDefaultAllocator, &allocator);
  char* path = nullptr;
  library_->call(kEndProfiling, session_.get(), allocator, &path);
  const std::string copied = path;
  library_->call(kAllocatorFree, allocator, static_cast<void*>(path));
  return copied;
}

}  // namespace compressor::ort
