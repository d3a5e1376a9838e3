// Inputs of a model, from files or made up, and what its outputs should be.
#pragma once

#include <string>
#include <vector>

#include "compressor/measure.h"
#include "compressor/npy.h"
#include "compressor/ort.h"

namespace compressor {

struct Case {
  std::vector<Array> inputs;            // in the session's order
  std::vector<Array> expected;          // in the session's order, or none
};

// Throws MeasureError where `request.shapes` names a dimension that no session has.
void check_shapes(const Request& request, const std::vector<const ort::Session*>& sessions);

// The cases of `model`: those of its folder, or four that are made up from what the session says of its inputs. A
// dynamic dimension has the size of `request.shapes` for its name, else `batch` where it is the first, else 16. Integers
// are in 0..99, but inputs named like a mask are 1 and like token types 0; floats are normal. Equal names and shapes get
// equal values, in whichever model. Throws MeasureError.
std::vector<Case> cases_of(const Request& request, const ModelRequest& model, const ort::Session& session);

// The runtime's form of a case's inputs.
ort::Inputs prepare(const ort::Session& session, const Case& one);

// How an output compares with another: JSON members are written by result.cpp.
struct Agreement {
  bool comparable = true;  // equal names, types' kinds and shapes
  std::size_t cases = 0;
  bool equal = true;       // bit for bit
  bool finite = true;      // what the model gave
  double max_abs_error = 0.0;
  double min_cosine = 1.0; // of an output of a case, taken as one vector
};

// Whether no element is NaN or infinite.
bool finite(const Array& array);

// Adds one output to the agreement.
void compare(const Array& got, const Array& wanted, Agreement& agreement);

// The value of a half-precision number.
double float16(std::uint16_t bits) noexcept;

Array copy_of(const ort::Output& output);

// What an error of the runtime says, with the model's name before it.
template <class Work>
auto naming(const std::string& model, Work work) {
  try {
    return work();
  } catch (const ort::Error& error) {
    throw MeasureError(model + ": " + error.what());
  } catch (const NpyError& error) {
    throw MeasureError(model + ": " + error.what());
  } catch (const MeasureError& error) {
    throw MeasureError(model + ": " + error.what());
  }
}

}  // namespace compressor
