// Arguments of the attention kernels. Shapes: T tokens, H heads, D channels of a head; strides count elements.
#pragma once
#include <stdint.h>

namespace metaxlm {

struct Matrix {
    const void* start;    // [T, H, D] bf16, 16-byte aligned
    int64_t token_stride; // multiples of 8
    int64_t head_stride;
};

struct Arguments {
    Matrix queries, keys, values;
    void* mixed;       // [T, H, D] bf16, contiguous
    float* log_sums;   // [H, T]: log2 of the sum of exp(scale * score)
    const int* tiles;  // [N, 6]: kernels/attention/tiles.py
    const int* bounds; // [2, T]
    int64_t tokens;
    int heads;
    float scale_log2;  // log2(e) / sqrt(D)
};

}  // namespace metaxlm
