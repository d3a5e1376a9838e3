"""The positions in ONNX Runtime's function table, and its numbers of types, against the header that it publishes."""

import re
import subprocess

import builds
import needed
import pytest
import runtimes

# Our name of a position -> the header's name of the function.
FUNCTIONS = {
    "kGetErrorMessage": "GetErrorMessage",
    "kCreateEnv": "CreateEnv",
    "kCreateSession": "CreateSession",
    "kRun": "Run",
    "kCreateSessionOptions": "CreateSessionOptions",
    "kEnableProfiling": "EnableProfiling",
    "kSetGraphOptimizationLevel": "SetSessionGraphOptimizationLevel",
    "kSetIntraOpThreads": "SetIntraOpNumThreads",
    "kSetInterOpThreads": "SetInterOpNumThreads",
    "kSessionInputCount": "SessionGetInputCount",
    "kSessionOutputCount": "SessionGetOutputCount",
    "kSessionInputType": "SessionGetInputTypeInfo",
    "kSessionOutputType": "SessionGetOutputTypeInfo",
    "kSessionInputName": "SessionGetInputName",
    "kSessionOutputName": "SessionGetOutputName",
    "kCreateTensorWithData": "CreateTensorWithDataAsOrtValue",
    "kTensorData": "GetTensorMutableData",
    "kCastToTensorInfo": "CastTypeInfoToTensorInfo",
    "kTensorElementType": "GetTensorElementType",
    "kDimensionCount": "GetDimensionsCount",
    "kDimensions": "GetDimensions",
    "kSymbolicDimensions": "GetSymbolicDimensions",
    "kTensorInfoOfValue": "GetTensorTypeAndShape",
    "kCreateCpuMemoryInfo": "CreateCpuMemoryInfo",
    "kAllocatorFree": "AllocatorFree",
    "kDefaultAllocator": "GetAllocatorWithDefaultOptions",
    "kReleaseEnv": "ReleaseEnv",
    "kReleaseStatus": "ReleaseStatus",
    "kReleaseMemoryInfo": "ReleaseMemoryInfo",
    "kReleaseSession": "ReleaseSession",
    "kReleaseValue": "ReleaseValue",
    "kReleaseTypeInfo": "ReleaseTypeInfo",
    "kReleaseTensorInfo": "ReleaseTensorTypeAndShapeInfo",
    "kReleaseSessionOptions": "ReleaseSessionOptions",
    "kEndProfiling": "SessionEndProfiling",
    "kAvailableProviders": "GetAvailableProviders",
    "kReleaseAvailableProviders": "ReleaseAvailableProviders",
    "kAddSessionConfigEntry": "AddSessionConfigEntry",
    "kAppendExecutionProvider": "SessionOptionsAppendExecutionProvider",
}
TYPES = {
    "kFloat32": "FLOAT",
    "kUint8": "UINT8",
    "kInt8": "INT8",
    "kUint16": "UINT16",
    "kInt16": "INT16",
    "kInt32": "INT32",
    "kInt64": "INT64",
    "kBool": "BOOL",
    "kFloat16": "FLOAT16",
    "kFloat64": "DOUBLE",
    "kUint32": "UINT32",
    "kUint64": "UINT64",
}

START = f"""
#include <cstddef>
#include "{runtimes.HEADER}"
#include "compressor/ort.h"
#include "ort/slots.h"
using compressor::ort::ElementType;
constexpr std::size_t kPointer = sizeof(void*);
"""


def equal(slot):
    return f"static_assert(offsetof(OrtApi, {FUNCTIONS[slot]}) / kPointer == compressor::ort::{slot});\n"


def program():
    types = [
        f"static_assert(static_cast<int>(ElementType::{ours}) == ONNX_TENSOR_ELEMENT_DATA_TYPE_{theirs});\n"
        for ours, theirs in TYPES.items()
    ]
    return START + "".join(map(equal, FUNCTIONS)) + "".join(types)


@pytest.fixture(scope="module")
def errors_of(tmp_path_factory):
    """Compiles a program and returns what the compiler complains of."""
    needed.require("g++", "g++")
    header = runtimes.required(runtimes.header)
    source = tmp_path_factory.mktemp("slots") / "slots.cpp"
    folders = [f"-I{folder}" for folder in (builds.ROOT / "csrc", builds.ROOT / "csrc" / "include")]

    def compiled(text):
        source.write_text(text)
        # The header is somebody else's: -isystem keeps its warnings out.
        command = ["g++", "-std=c++17", "-fsyntax-only", *folders, "-isystem", header.parent, source]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    return compiled


def names_in(file, enumeration):
    text = (builds.ROOT / "csrc" / file).read_text()
    return set(re.findall(r"(k\w+) = \d+,", re.search(rf"{enumeration} : int {{(.*?)}};", text, re.DOTALL)[1]))


def test_nothing_is_left_out():
    assert names_in("ort/slots.h", "enum Slot") == set(FUNCTIONS)
    assert names_in("include/compressor/ort.h", "enum class ElementType") == set(TYPES)


def test_positions_and_types_are_the_headers(errors_of):
    assert errors_of(program()) == ""


@pytest.mark.parametrize("wrong", [-1, 1])
@pytest.mark.parametrize("slot", ["kRun", "kAppendExecutionProvider"])
def test_a_wrong_position_is_found(slot, wrong, errors_of):
    right = equal(slot)
    errors = errors_of(program().replace(right, right.replace(");\n", f" + {wrong});\n")))
    assert "static assertion failed" in errors
    assert errors.count("error:") == 1
