#include "inputs.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <sstream>

namespace compressor {
namespace {

constexpr int kMadeUpCases = 4;
constexpr std::int64_t kDynamicSize = 16;
constexpr std::int64_t kIntegersBelow = 100;
constexpr double kLargestInput = 1 << 30;  // elements

bool named_like(const std::string& name, const char* part) { return name.find(part) != std::string::npos; }

std::vector<std::int64_t> shape_of(const ort::TensorInfo& input, const Request& request) {
  std::vector<std::int64_t> shape = input.shape;
  double elements = 1.0;
  for (std::size_t axis = 0; axis < shape.size(); ++axis) {
    if (shape[axis] < 0) {
      const auto given = request.shapes.find(input.symbols[axis]);
      shape[axis] = given != request.shapes.end() ? given->second : axis == 0 ? request.batch : kDynamicSize;
    }
    elements *= static_cast<double>(shape[axis]);
  }
  if (elements > kLargestInput) throw MeasureError("input '" + input.name + "' would have more than 2^30 elements");
  return shape;
}

template <class Element, class Draw>
void fill(Array& array, Draw draw) {
  auto* data = reinterpret_cast<Element*>(array.storage.data());
  for (std::size_t i = 0; i < array.count(); ++i) data[i] = static_cast<Element>(draw());
}

Array made_up(const ort::TensorInfo& input, const Request& request, int number) {
  Array array{input.type, shape_of(input, request), {}};
  array.storage.resize(array.bytes() / sizeof(std::uint64_t) + 1);
  // The name, not the order of inputs, seeds the values: models with the same inputs get the same ones.
  std::mt19937_64 generator(request.seed * 1'000'003 + std::hash<std::string>{}(input.name) +
                            static_cast<std::uint64_t>(number));
  std::normal_distribution<float> normal;
  const auto integer = [&]() -> std::int64_t {
    if (named_like(input.name, "mask")) return 1;
    if (named_like(input.name, "token_type")) return 0;
    return static_cast<std::int64_t>(generator() % kIntegersBelow);
  };
  switch (input.type) {
    case ort::ElementType::kFloat32: fill<float>(array, [&] { return normal(generator); }); break;
    case ort::ElementType::kBool: fill<std::uint8_t>(array, [] { return 1; }); break;
    case ort::ElementType::kUint8: fill<std::uint8_t>(array, integer); break;
    case ort::ElementType::kInt32: fill<std::int32_t>(array, integer); break;
    default: fill<std::int64_t>(array, integer); break;
  }
  return array;
}

std::size_t index_of(const std::vector<ort::TensorInfo>& tensors, const std::string& name) {
  const auto at = std::find_if(tensors.begin(), tensors.end(), [&](const auto& t) { return t.name == name; });
  return static_cast<std::size_t>(at - tensors.begin());
}

void place(std::vector<Array>& arrays, const std::vector<ort::TensorInfo>& tensors, const std::string& name,
           const std::string& path, const std::string& where) {
  const std::size_t index = index_of(tensors, name);
  if (index == tensors.size()) throw MeasureError(where + ": the model has no '" + name + "'");
  if (arrays.size() < tensors.size()) arrays.resize(tensors.size());
  arrays[index] = read_npy(path);
}

// cases.tsv has a line for each array: case number, "input" or "expected", name, file beside it; tabs between them.
std::vector<Case> read_cases(const std::string& folder, const ort::Session& session) {
  const std::string table = folder + "/cases.tsv";
  std::ifstream lines(table);
  if (!lines) throw MeasureError(table + " cannot be read; --cases takes a folder with that file");
  std::vector<Case> cases;
  std::string line;
  for (int number = 1; std::getline(lines, line); ++number) {
    if (line.empty()) continue;
    const std::string where = table + ", line " + std::to_string(number);
    std::istringstream fields(line);
    std::string row, kind, name, file;
    std::getline(fields, row, '\t'), std::getline(fields, kind, '\t'), std::getline(fields, name, '\t');
    if (!std::getline(fields, file) || row.empty() || row.size() > 6 ||
        row.find_first_not_of("0123456789") != std::string::npos || (kind != "input" && kind != "expected")) {
      throw MeasureError(where + ": expected a case number, input or expected, a name and a file, tabs between them");
    }
    const std::size_t index = std::stoul(row);
    if (index > cases.size()) throw MeasureError(where + ": cases must be numbered from 0 on without a gap");
    if (index == cases.size()) cases.emplace_back();
    const bool input = kind == "input";
    place(input ? cases[index].inputs : cases[index].expected, input ? session.inputs() : session.outputs(), name,
          folder + "/" + file, where);
  }
  if (cases.empty()) throw MeasureError(table + " must name one case or more, got none");
  return cases;
}

void check_case(const Case& one, std::size_t number, const ort::Session& session) {
  for (std::size_t i = 0; i < session.inputs().size(); ++i) {
    const ort::TensorInfo& input = session.inputs()[i];
    const std::string where = "case " + std::to_string(number) + ": input '" + input.name + "'";
    if (i >= one.inputs.size() || one.inputs[i].storage.empty()) throw MeasureError(where + " is missing");
    if (one.inputs[i].type != input.type) {
      throw MeasureError(where + " must be " + ort::element_name(input.type) + ", got " +
                         ort::element_name(one.inputs[i].type));
    }
  }
}

// NaN is the worst there is.
void worsen(double& kept, double seen, bool worse) {
  if (!std::isnan(kept) && (worse || std::isnan(seen))) kept = seen;
}

double at(const Array& array, std::size_t i) {
  const void* data = array.data();
  switch (array.type) {
    case ort::ElementType::kFloat32: return static_cast<const float*>(data)[i];
    case ort::ElementType::kFloat64: return static_cast<const double*>(data)[i];
    case ort::ElementType::kInt64: return static_cast<double>(static_cast<const std::int64_t*>(data)[i]);
    case ort::ElementType::kUint64: return static_cast<double>(static_cast<const std::uint64_t*>(data)[i]);
    case ort::ElementType::kInt32: return static_cast<const std::int32_t*>(data)[i];
    case ort::ElementType::kUint32: return static_cast<const std::uint32_t*>(data)[i];
    case ort::ElementType::kInt16: return static_cast<const std::int16_t*>(data)[i];
    case ort::ElementType::kUint16: return static_cast<const std::uint16_t*>(data)[i];
    case ort::ElementType::kInt8: return static_cast<const std::int8_t*>(data)[i];
    case ort::ElementType::kFloat16: return float16(static_cast<const std::uint16_t*>(data)[i]);
    default: return static_cast<const std::uint8_t*>(data)[i];
  }
}

}  // namespace

double float16(std::uint16_t bits) noexcept {
  const int exponent = (bits >> 10) & 0x1f, fraction = bits & 0x3ff;
  double magnitude;
  if (exponent == 0x1f) {
    magnitude = fraction == 0 ? HUGE_VAL : std::nan("");
  } else {
    magnitude = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(fraction + 1024, exponent - 25);
  }
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

void check_shapes(const Request& request, const std::vector<const ort::Session*>& sessions) {
  std::set<std::string> known;
  for (const ort::Session* session : sessions) {
    for (const ort::TensorInfo& input : session->inputs()) known.insert(input.symbols.begin(), input.symbols.end());
  }
  known.erase("");
  std::string there;
  for (const std::string& name : known) there += (there.empty() ? "" : ", ") + name;
  for (const auto& [name, size] : request.shapes) {
    if (known.count(name) > 0) continue;
    if (there.empty()) there = "none";
    throw MeasureError("no model has a dynamic dimension '" + name + "'; there are: " + there);
  }
}

std::vector<Case> cases_of(const Request& request, const ModelRequest& model, const ort::Session& session) {
  if (!model.cases.empty()) {
    std::vector<Case> cases = read_cases(model.cases, session);
    for (std::size_t i = 0; i < cases.size(); ++i) check_case(cases[i], i, session);
    return cases;
  }
  std::vector<Case> cases(kMadeUpCases);
  for (int i = 0; i < kMadeUpCases; ++i) {
    for (const ort::TensorInfo& input : session.inputs()) cases[i].inputs.push_back(made_up(input, request, i));
  }
  return cases;
}

ort::Inputs prepare(const ort::Session& session, const Case& one) {
  ort::Inputs inputs(session.library());
  for (const Array& array : one.inputs) inputs.add(array.type, array.shape, array.data());
  return inputs;
}

Array copy_of(const ort::Output& output) {
  Array array{output.type, output.shape, {}};
  if (ort::element_size(output.type) == 0) {
    throw MeasureError("an output is " + ort::element_name(output.type) + ", which cannot be compared");
  }
  const std::size_t bytes = array.bytes();
  array.storage.resize(bytes / sizeof(std::uint64_t) + 1);
  if (bytes > 0) std::memcpy(array.storage.data(), output.data, bytes);
  return array;
}

bool finite(const Array& array) {
  for (std::size_t i = 0; i < array.count(); ++i) {
    if (!std::isfinite(at(array, i))) return false;
  }
  return true;
}

void compare(const Array& got, const Array& wanted, Agreement& agreement) {
  agreement.finite = agreement.finite && finite(got);
  if (got.shape != wanted.shape) {
    agreement.comparable = agreement.equal = false;
    return;
  }
  agreement.equal = agreement.equal && got.type == wanted.type &&
                    std::memcmp(got.data(), wanted.data(), got.bytes()) == 0;
  double product = 0.0, got_square = 0.0, wanted_square = 0.0;
  for (std::size_t i = 0; i < got.count(); ++i) {
    const double a = at(got, i), b = at(wanted, i), difference = std::fabs(a - b);
    worsen(agreement.max_abs_error, difference, difference > agreement.max_abs_error);
    product += a * b;
    got_square += a * a;
    wanted_square += b * b;
  }
  const double norms = std::sqrt(got_square) * std::sqrt(wanted_square);
  const double cosine = norms > 0.0 ? product / norms : got_square == wanted_square ? 1.0 : 0.0;
  worsen(agreement.min_cosine, cosine, cosine < agreement.min_cosine);
}

}  // namespace compressor
