"""The operators of ONNX and onnxruntime that compute in few bits, or round to them: one list for all that ask."""

from __future__ import annotations

# They multiply 8-bit integers, in the graph or, of blocks, in onnxruntime's kernels.
INTEGER_PRODUCTS = frozenset(
    (
        *("ConvInteger", "MatMulInteger", "MatMulInteger16", "QLinearConv", "QLinearConvTranspose", "QLinearMatMul"),
        *("DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "QAttention", "QGemm", "QMoE"),
        *("MatMulNBits", "MatMulNBitsMlp", "MatMulNBitsQkv"),
        *("QOrderedAttention", "QOrderedLongformerAttention", "QOrderedMatMul"),
    )
)
# Their weights are in few bits, and multiplied as floats.
_FLOAT_PRODUCTS = frozenset(
    ("MatMulBlockQuantizedFp4Weight", "MatMulBlockQuantizedFp8Weight", "MatMulBnb4", "MatMulFpQ4")
)
PRODUCTS = INTEGER_PRODUCTS | _FLOAT_PRODUCTS
ROUNDING = frozenset(
    (
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
        *("QuantizeBFP", "DequantizeBFP", "QuantizeWithOrder", "DequantizeWithOrder"),
    )
)
_BETWEEN_PRODUCTS = frozenset(
    (
        *("GatherBlockQuantized", "MulInteger", "QEmbedLayerNormalization", "ReduceSumInteger"),
        *("QLinearAdd", "QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearLeakyRelu"),
        *("QLinearMul", "QLinearReduceMean", "QLinearSigmoid", "QLinearSoftmax", "QLinearWhere"),
        *("QOrderedGelu", "QOrderedLayerNormalization"),
    )
)
QUANTIZED = PRODUCTS | ROUNDING | _BETWEEN_PRODUCTS
