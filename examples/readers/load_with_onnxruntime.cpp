// Runs the model of a bundle with ONNX Runtime's C++ API, without this project, and prints its first output.
//
// g++ -std=c++17 -I INCLUDE load_with_onnxruntime.cpp -L LIB -lonnxruntime -o load_with_onnxruntime
// ./load_with_onnxruntime BUNDLE/model.onnx 2 112 43 3   # a text, by its ids, as BUNDLE/tokenizer.json makes them
// ./load_with_onnxruntime BUNDLE/model.onnx digit.raw    # an image, by its bytes: height x width x channels

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Shape = std::vector<std::int64_t>;

template <typename T>
Ort::Value tensor(const Shape& shape, const std::vector<T>& values) {
  Ort::AllocatorWithDefaultOptions allocator;
  Ort::Value made = Ort::Value::CreateTensor<T>(allocator, shape.data(), shape.size());
  if (made.GetTensorTypeAndShapeInfo().GetElementCount() != values.size()) {
    throw std::invalid_argument("expected as many bytes as the model's image has");
  }
  std::copy(values.begin(), values.end(), made.template GetTensorMutableData<T>());
  return made;
}

// What goes in under a name; `shape` is what the model says of it, -1 where it takes any size.
Ort::Value input(const std::string& name, Shape shape, const std::vector<std::string>& given) {
  shape[0] = 1;
  if (name == "pixels") {
    std::ifstream file(given[0], std::ios::binary);
    const std::istreambuf_iterator<char> begin(file), end;
    return tensor(shape, std::vector<std::uint8_t>(begin, end));
  }
  if (name == "input_ids" || name == "attention_mask") {
    std::vector<std::int64_t> values;
    for (const std::string& id : given) {
      values.push_back(name == "input_ids" ? std::stoll(id) : 1);
    }
    return tensor({1, static_cast<std::int64_t>(values.size())}, values);
  }
  shape[2] = 0;  // past_key_values of no token yet
  return tensor(shape, std::vector<float>());
}

void run(const char* model, const std::vector<std::string>& given) {
  Ort::Env environment;
  Ort::Session session(environment, model, Ort::SessionOptions());
  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> names;
  std::vector<Ort::Value> inputs;
  for (std::size_t i = 0; i < session.GetInputCount(); ++i) {
    names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
    inputs.push_back(input(names[i], session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape(), given));
  }
  std::vector<const char*> pointers;
  for (const std::string& name : names) {
    pointers.push_back(name.c_str());
  }
  const std::string first = session.GetOutputNameAllocated(0, allocator).get();
  const char* const wanted = first.c_str();
  const std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions(), pointers.data(), inputs.data(), inputs.size(), &wanted, 1);

  const auto information = outputs[0].GetTensorTypeAndShapeInfo();
  const float* values = outputs[0].GetTensorData<float>();
  const std::int64_t width = information.GetShape().back();
  const auto count = static_cast<std::int64_t>(information.GetElementCount());
  for (std::int64_t i = 0; i < count; ++i) {
    std::printf("%.9g%c", values[i], (i + 1) % width == 0 ? '\n' : ' ');
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s MODEL.onnx TOKEN_ID... | PIXELS\n", argv[0]);
    return 2;
  }
  try {
    run(argv[1], std::vector<std::string>(argv + 2, argv + argc));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
