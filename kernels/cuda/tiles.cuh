// Work of every attention kernel per tile of queries: iterate over its key blocks, mask those at edges, update the softmax
// and write the quotients. Lanes hold scores and sums in the layout of mma.sync and wgmma: of 16 rows a warp's lane has
// two, lane / 4 and lane / 4 + 8, and of every 8 columns two, 2 (lane % 4) and the next.
#pragma once
#include "arguments.h"
#include "primitives.cuh"

namespace metaxlm {

constexpr int ROWS = 128;

// The fields of a tile, and its blocks of STEP keys: the unmasked ones first.
template <int STEP>
struct Tile {
    int first_row, end_row, first, end, full_first, full_end, before, full, blocks;

    __device__ Tile(const int* entry) {
        first_row = entry[0], end_row = entry[1], first = entry[2], end = entry[3];
        full_first = first + (entry[4] - first + STEP - 1) / STEP * STEP;
        int room = entry[5] - full_first;
        full = room > 0 ? room / STEP : 0;
        full_end = full_first + full * STEP;
        int edge = full_first < end ? full_first : end;
        before = (edge - first + STEP - 1) / STEP;
        blocks = full + before + (end > full_end ? (end - full_end + STEP - 1) / STEP : 0);
    }

    __device__ int start(int block) const {
        if (block < full) return full_first + block * STEP;
        int masked = block - full;
        return masked < before ? first + masked * STEP : full_end + (masked - before) * STEP;
    }
};

// Offset of 16-byte chunk `chunk` of row `row`, in elements: chunks are permuted so that the eight rows that ldmatrix
// reads at once are in different banks.
template <int WIDTH>
__device__ __forceinline__ int place(int row, int chunk) {
    int turn = WIDTH >= 64 ? row & 7 : (row >> 1) & 3;
    return row * WIDTH + (chunk ^ turn) * 8;
}

// Softmax state of a warp for its 16 queries.
template <int WIDTH>
struct Running {
    float mixed[WIDTH / 8][4];
    float peak[2], total[2];
};

template <int WIDTH>
__device__ __forceinline__ void begin(Running<WIDTH>& run) {
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) run.mixed[n][i] = 0.f;
#pragma unroll
    for (int half = 0; half < 2; half++) run.peak[half] = -INFINITY, run.total[half] = 0.f;
}

// Minus infinity for masked keys. Bounds are read here, only for the few blocks at edges, to save registers.
template <int STEP>
__device__ __forceinline__ void hide(
    float (&scores)[STEP / 8][4], const Arguments& args, const Tile<STEP>& tile, int start) {
    int column = start + threadIdx.x % 4 * 2;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = tile.first_row + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4 + 8 * half;
        bool kept = row < tile.end_row;
        int first_key = kept ? args.bounds[row] : 0, end_key = kept ? args.bounds[args.tokens + row] : 0;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int key = column + n * 8 + i;
                if (key < first_key || key >= end_key) scores[n][2 * half + i] = -INFINITY;
            }
    }
}

// Scores become weights, in base 2; `fade` is the factor by which earlier sums shrink when the peak changes.
template <int WIDTH, int COLUMNS>
__device__ __forceinline__ void weigh(
    float (&scores)[COLUMNS][4], Running<WIDTH>& run, float scale_log2, float (&fade)[2]) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = scores[0][2 * half];
#pragma unroll
        for (int n = 0; n < COLUMNS; n++) peak = fmaxf(peak, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 2));
        peak = fmaxf(run.peak[half], peak * scale_log2);
        // A query without a visible key so far: -inf - -inf is NaN.
        float shift = peak == -INFINITY ? 0.f : peak, sum = 0.f;
        fade[half] = power_of_two(run.peak[half] - shift);
#pragma unroll
        for (int n = 0; n < COLUMNS; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = power_of_two(scores[n][i] * scale_log2 - shift);
                sum += scores[n][i];
            }
        run.total[half] = run.total[half] * fade[half] + sum;
        run.peak[half] = peak;
    }
}

template <int WIDTH>
__device__ __forceinline__ void shrink(Running<WIDTH>& run, const float (&fade)[2]) {
#pragma unroll
    for (int n = 0; n < WIDTH / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) run.mixed[n][i] *= fade[i / 2];
}

// Writes the quotients through the warp's own rows of `shared`, so that rows are stored in 16-byte pieces.
template <int WIDTH, int STEP>
__device__ __forceinline__ void finish(
    Running<WIDTH>& run, const Arguments& args, const Tile<STEP>& tile, int head, bf16* shared) {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float total = run.total[half];
        total += __shfl_xor_sync(0xffffffff, total, 1);
        total += __shfl_xor_sync(0xffffffff, total, 2);
        float inverse = total > 0.f ? 1.f / total : 0.f;
        int row = warp * 16 + lane / 4 + 8 * half;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++)
            *reinterpret_cast<uint32_t*>(shared + place<WIDTH>(row, n) + lane % 4 * 2) =
                pack(run.mixed[n][2 * half] * inverse, run.mixed[n][2 * half + 1] * inverse);
        if (lane % 4 == 0 && tile.first_row + row < tile.end_row)
            args.log_sums[head * args.tokens + tile.first_row + row] = run.peak[half] + log2f(total);
    }
    __syncwarp();
    bf16* out = static_cast<bf16*>(args.mixed) + head * WIDTH;
#pragma unroll
    for (int i = lane; i < 16 * WIDTH / 8; i += 32) {
        int row = warp * 16 + i / (WIDTH / 8), chunk = i % (WIDTH / 8);
        if (tile.first_row + row < tile.end_row) {
            bf16* to = out + static_cast<int64_t>(tile.first_row + row) * args.heads * WIDTH + chunk * 8;
            *reinterpret_cast<int4*>(to) = *reinterpret_cast<const int4*>(shared + place<WIDTH>(row, chunk));
        }
    }
}

}  // namespace metaxlm
