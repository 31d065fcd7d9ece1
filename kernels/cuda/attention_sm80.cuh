// Attention forward over packed documents for every GPU since sm_80: mma.sync on bf16, cp.async in two stages.
// One block takes a tile of up to 128 queries (kernels/tiles.py) and one head; each of its 8 warps owns 16 queries and
// walks the keys in blocks of 64, first those all queries see, unmasked, then those at edges. Softmax is online and in
// base 2 (FlashAttention-2, arXiv 2307.08691); scores and weights never leave registers.
#pragma once
#include "arguments.h"
#include "primitives.cuh"

namespace metaxlm {

constexpr int ROWS = 128, STEP = 64, THREADS = 256;

// The fields of a tile, and its key blocks: the unmasked ones first.
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

// Place of 16-byte chunk `chunk` of row `row`, in elements: chunks are permuted so that the eight rows that ldmatrix
// reads at once lie in different banks.
template <int WIDTH>
__device__ __forceinline__ int place(int row, int chunk) {
    int turn = WIDTH >= 64 ? row & 7 : (row >> 1) & 3;
    return row * WIDTH + (chunk ^ turn) * 8;
}

// Rows first ... first + COUNT - 1 of one head into shared memory, zeros from row `end` on.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void fetch(bf16* shared, const Matrix& matrix, int head, int first, int end) {
    constexpr int CHUNKS = WIDTH / 8;
    const bf16* source = static_cast<const bf16*>(matrix.start) + head * matrix.head_stride;
#pragma unroll
    for (int i = threadIdx.x; i < COUNT * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        bool kept = first + row < end;
        const bf16* from = source + (kept ? first + row : first) * matrix.token_stride + chunk * 8;
        copy_async(shared + place<WIDTH>(row, chunk), from, kept);
    }
}

// What a warp carries along for its 16 queries; a lane has two of them, number lane / 4 and the eighth after it.
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

// Scores of the warp's 16 queries with 64 keys. Queries are read anew for every block: kept in registers, they would
// leave room for one block of threads on a multiprocessor instead of two.
template <int WIDTH>
__device__ __forceinline__ void score(float (&scores)[STEP / 8][4], const bf16* queries, const bf16* keys) {
    int lane = threadIdx.x % 32, key = lane % 8 + lane / 16 * 8, chunk = lane / 8 % 2;
    int row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
    for (int n = 0; n < STEP / 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) scores[n][i] = 0.f;
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        uint32_t left[4];
        load_matrices<false>(left, queries + place<WIDTH>(row, 2 * k + lane / 16));
#pragma unroll
        for (int n = 0; n < STEP / 16; n++) {
            uint32_t right[4];
            load_matrices<false>(right, keys + place<WIDTH>(n * 16 + key, 2 * k + chunk));
            multiply_add(scores[2 * n], left, right[0], right[1]);
            multiply_add(scores[2 * n + 1], left, right[2], right[3]);
        }
    }
}

// Minus infinity where a query does not see a key. Bounds are read here, in the few blocks at edges, not kept.
__device__ __forceinline__ void hide(float (&scores)[STEP / 8][4], const Arguments& args, const Tile& tile, int start) {
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

// Scores become weights; what was summed before fades by the change of the peak.
template <int WIDTH>
__device__ __forceinline__ void weigh(float (&scores)[STEP / 8][4], Running<WIDTH>& run, float scale_log2) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float peak = run.peak[half];
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
            peak = fmaxf(peak, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]) * scale_log2);
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffff, peak, 2));
        // A query that has seen no key yet: -inf - -inf is not a number.
        float shift = peak == -INFINITY ? 0.f : peak;
        float fade = power_of_two(run.peak[half] - shift), sum = 0.f;
#pragma unroll
        for (int n = 0; n < STEP / 8; n++)
#pragma unroll
            for (int i = 2 * half; i < 2 * half + 2; i++) {
                scores[n][i] = power_of_two(scores[n][i] * scale_log2 - shift);
                sum += scores[n][i];
            }
        run.total[half] = run.total[half] * fade + sum;
        run.peak[half] = peak;
#pragma unroll
        for (int n = 0; n < WIDTH / 8; n++) run.mixed[n][2 * half] *= fade, run.mixed[n][2 * half + 1] *= fade;
    }
}

// mixed += weights [16, 64] values [64, D]: a lane's scores are its part of the left operand as they stand.
template <int WIDTH>
__device__ __forceinline__ void mix(Running<WIDTH>& run, const float (&weights)[STEP / 8][4], const bf16* values) {
    int lane = threadIdx.x % 32, chunk = lane / 16;
#pragma unroll
    for (int k = 0; k < STEP / 16; k++) {
        const float(&low)[4] = weights[2 * k];
        const float(&high)[4] = weights[2 * k + 1];
        uint32_t left[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
        for (int n = 0; n < WIDTH / 16; n++) {
            uint32_t right[4];
            load_matrices<true>(right, values + place<WIDTH>(k * 16 + lane % 16, 2 * n + chunk));
            multiply_add(run.mixed[2 * n], left, right[0], right[1]);
            multiply_add(run.mixed[2 * n + 1], left, right[2], right[3]);
        }
    }
}

// The quotients by way of the warp's own rows of `shared`, so that rows leave in 16-byte pieces.
template <int WIDTH>
__device__ __forceinline__ void finish(Running<WIDTH>& run, const Arguments& args, const Tile& tile, int head, bf16* shared) {
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

template <int WIDTH>
constexpr int shared_bytes() { return (ROWS + 4 * STEP) * WIDTH * 2; }

// Two blocks of threads on a multiprocessor where 128 registers suffice; the compilers for later architectures spill then.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define METAXLM_BLOCKS(width) (width <= 64 ? 2 : 1)
#else
#define METAXLM_BLOCKS(width) 1
#endif

template <int WIDTH>
__global__ void __launch_bounds__(THREADS, METAXLM_BLOCKS(WIDTH)) attention_forward(const Arguments args) {
    extern __shared__ __align__(128) unsigned char memory[];
    bf16* queries = reinterpret_cast<bf16*>(memory);
    bf16* stages = queries + ROWS * WIDTH;  // keys and values, twice
    int head = blockIdx.x % args.heads;
    const Tile tile(args.tiles + blockIdx.x / args.heads * 6);
    if (tile.first_row >= tile.end_row) return;
    auto fetch_block = [&](int block) {
        bf16* stage = stages + block % 2 * 2 * STEP * WIDTH;
        fetch<WIDTH, STEP>(stage, args.keys, head, tile.start(block), tile.end);
        fetch<WIDTH, STEP>(stage + STEP * WIDTH, args.values, head, tile.start(block), tile.end);
        commit_copies();
    };
    fetch<WIDTH, ROWS>(queries, args.queries, head, tile.first_row, tile.end_row);
    fetch_block(0);
    Running<WIDTH> run;
    begin(run);
    for (int block = 0; block < tile.blocks; block++) {
        if (block + 1 < tile.blocks) {
            fetch_block(block + 1);
            wait_copies<1>();
        } else {
            wait_copies<0>();
        }
        __syncthreads();
        const bf16* stage = stages + block % 2 * 2 * STEP * WIDTH;
        float scores[STEP / 8][4];
        score<WIDTH>(scores, queries, stage);
        if (block >= tile.full) hide(scores, args, tile, tile.start(block));
        weigh(scores, run, args.scale_log2);
        mix(run, scores, stage + STEP * WIDTH);
        __syncthreads();  // the stage is overwritten by the next fetch but one
    }
    finish(run, args, tile, head, queries);
}

}  // namespace metaxlm
