// Tensor maps of queries, keys or values for the copy engine: in their memory layout, in boxes of up to 64 channels of one
// head and some rows; rows after the last token read as zeros. The driver's encoder is an argument, so that the library
// needs no driver to load (CUDA driver API, cuTensorMapEncodeTiled).
#pragma once
#include "primitives_sm90.cuh"

namespace metaxlm {
namespace hopper {

// Channels of a line of shared memory: 64, in the 128-byte swizzle, or all 32, in the 64-byte one.
constexpr int panel(int width) { return width < 64 ? width : 64; }

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

// Passed to the kernel by value: the copy engine reads them from its parameters.
struct Maps {
    CUtensorMap queries, keys, values;
};

inline CUresult encode_map(
    Encode encode, CUtensorMap* map, const Matrix& matrix, int64_t tokens, int heads, int width, int rows) {
    // A dimension of one element may have any stride in PyTorch, including 0, which the encoder may reject.
    int64_t head = heads > 1 ? matrix.head_stride : width, token = tokens > 1 ? matrix.token_stride : heads * head;
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(width), static_cast<cuuint64_t>(heads),
                                 static_cast<cuuint64_t>(tokens)};
    const cuuint64_t strides[2] = {static_cast<cuuint64_t>(head) * sizeof(bf16),
                                   static_cast<cuuint64_t>(token) * sizeof(bf16)};
    const cuuint32_t box[3] = {static_cast<cuuint32_t>(panel(width)), 1, static_cast<cuuint32_t>(rows)};
    const cuuint32_t steps[3] = {1, 1, 1};
    CUtensorMapSwizzle swizzle = width < 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
    return encode(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<void*>(matrix.start), sizes, strides, box, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

inline CUresult encode_maps(Encode encode, Maps& maps, const Arguments& args, int width, int rows, int step) {
    CUresult result = encode_map(encode, &maps.queries, args.queries, args.tokens, args.heads, width, rows);
    if (result == CUDA_SUCCESS) result = encode_map(encode, &maps.keys, args.keys, args.tokens, args.heads, width, step);
    if (result == CUDA_SUCCESS) result = encode_map(encode, &maps.values, args.values, args.tokens, args.heads, width, step);
    return result;
}

}  // namespace hopper
}  // namespace metaxlm
