// Attention forward over packed documents for every GPU since sm_80: mma.sync on bf16, cp.async in two stages.
// One block processes a tile of up to 128 queries (kernels/attention/tiles.py) and one head; each of its 8 warps has 16
// queries and iterates over the keys in blocks of 64, first those visible to all queries, unmasked, then those at edges.
// Softmax is online and in base 2 (FlashAttention-2, arXiv 2307.08691); scores and weights never leave registers.
#pragma once
#include "tiles.cuh"

namespace metaxlm {

constexpr int STEP = 64, THREADS = 256;

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

// Scores of the warp's 16 queries with 64 keys. Queries are read again for every block: kept in registers, they would
// leave space for one block of threads on a multiprocessor instead of two.
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

// mixed += weights [16, 64] values [64, D]: a lane's scores are already its part of the left operand.
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

template <int WIDTH>
constexpr int shared_bytes() { return (ROWS + 4 * STEP) * WIDTH * 2; }

// Two blocks of threads on a multiprocessor if 128 registers suffice; for later architectures the compiler would spill.
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
    const Tile<STEP> tile(args.tiles + blockIdx.x / args.heads * 6);
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
        float scores[STEP / 8][4], fade[2];
        score<WIDTH>(scores, queries, stage);
        if (block >= tile.full) hide(scores, args, tile, tile.start(block));
        weigh(scores, run, args.scale_log2, fade);
        shrink(run, fade);
        mix(run, scores, stage + STEP * WIDTH);
        __syncthreads();  // the stage is overwritten by the next fetch but one
    }
    finish(run, args, tile, head, queries);
}

}  // namespace metaxlm
