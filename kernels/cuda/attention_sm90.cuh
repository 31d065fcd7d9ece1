// Attention forward over packed documents for Hopper: products of whole warpgroups (wgmma) on data that the copy engine
// (TMA) writes to swizzled shared memory. One warp keeps a ring of key and value blocks filled; two warpgroups compute, 64
// queries of the tile each, with the products of a block running while the weights of the next are computed
// (FlashAttention-3, arXiv 2407.08608). Blocks of threads are persistent and process one tile and head after another, so that the ring fills
// for the next while the last is written.
#pragma once
#include "tensor_map.h"
#include "tiles.cuh"

namespace metaxlm {
namespace hopper {

constexpr int STEP = 128, GROUP = 128, CONSUMERS = 2, THREADS = (CONSUMERS + 1) * GROUP;
// Of the 168 registers of a thread at launch, the producers release most to the consumers.
constexpr int PRODUCER_REGISTERS = 24, CONSUMER_REGISTERS = 240;

// Channels of a panel: matrices lie as [WIDTH / PANEL, rows, PANEL].
template <int WIDTH>
constexpr int PANEL = panel(WIDTH);

template <int WIDTH>
struct Shared {
    static constexpr int STAGES = WIDTH <= 64 ? 4 : 2;
    bf16 keys[STAGES][STEP * WIDTH];
    bf16 values[STAGES][STEP * WIDTH];
    bf16 queries[2][ROWS * WIDTH];
    bf16 mixed[ROWS * WIDTH];
    uint64_t keys_full[STAGES], keys_empty[STAGES], values_full[STAGES], values_empty[STAGES];
    uint64_t queries_full[2], queries_empty[2];
};

// The swizzle repeats every 1024 bytes, so matrices start at multiples of that; we cannot choose where shared memory starts.
template <int WIDTH>
constexpr int shared_bytes() { return sizeof(Shared<WIDTH>) + 1024; }

// Position in a ring: a stage, and the parity of the phase of its barriers.
template <int STAGES>
struct Turn {
    int stage = 0;
    uint32_t parity = 0;

    __device__ __forceinline__ void step() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// COUNT rows of one head, all panels, into a stage that the consumers have left.
template <int WIDTH, int COUNT>
__device__ __forceinline__ void fill(
    bf16* stage, const CUtensorMap& map, int head, int row, uint64_t* full, uint64_t* empty, uint32_t parity) {
    wait_barrier(empty, parity ^ 1);
    arrive_expecting(full, COUNT * WIDTH * static_cast<int>(sizeof(bf16)));
#pragma unroll
    for (int panel = 0; panel < WIDTH / PANEL<WIDTH>; panel++)
        copy_box(stage + panel * COUNT * PANEL<WIDTH>, map, panel * PANEL<WIDTH>, head, row, full);
}

template <int WIDTH>
__device__ __forceinline__ void produce(Shared<WIDTH>& shared, const Maps& maps, const Arguments& args, int items) {
    Turn<Shared<WIDTH>::STAGES> turn;
    Turn<2> query;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const Tile<STEP> tile(args.tiles + item / args.heads * 6);
        if (tile.first_row >= tile.end_row) continue;
        int head = item % args.heads;
        fill<WIDTH, ROWS>(shared.queries[query.stage], maps.queries, head, tile.first_row, &shared.queries_full[query.stage],
                          &shared.queries_empty[query.stage], query.parity);
        query.step();
        for (int block = 0; block < tile.blocks; block++) {
            int stage = turn.stage, row = tile.start(block);
            fill<WIDTH, STEP>(shared.keys[stage], maps.keys, head, row, &shared.keys_full[stage],
                              &shared.keys_empty[stage], turn.parity);
            fill<WIDTH, STEP>(shared.values[stage], maps.values, head, row, &shared.values_full[stage],
                              &shared.values_empty[stage], turn.parity);
            turn.step();
        }
    }
}

// Descriptor of a matrix in shared memory: start, offset in bytes of the next panel if there is one, of
// the next eight rows, and 128- or 64-byte swizzle (PTX ISA 9.7.15.5.1.2.2).
template <int WIDTH>
__device__ __forceinline__ uint64_t matrix(const bf16* start, int leading) {
    constexpr int STRIDE = 8 * PANEL<WIDTH> * sizeof(bf16);
    auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
    return field(shared_address(start)) | field(leading) << 16 | field(STRIDE) << 32 | (WIDTH < 64 ? 2ull : 1ull) << 62;
}

// Multiplied along the channels, 16 at a time: no product crosses a panel.
template <int WIDTH>
__device__ __forceinline__ uint64_t along_channels(const bf16* start) { return matrix<WIDTH>(start, 16); }

// The same memory multiplied along the rows, all channels at once.
template <int WIDTH>
__device__ __forceinline__ uint64_t along_rows(const bf16* start) {
    return matrix<WIDTH>(start, STEP * PANEL<WIDTH> * static_cast<int>(sizeof(bf16)));
}

// A warp leaves a stage: its products have read it.
__device__ __forceinline__ void leave(uint64_t* empty) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) arrive(empty);
}

template <int WIDTH>
__device__ __forceinline__ void score(float (&scores)[STEP / 8][4], const bf16* queries, const bf16* keys) {
    fence_products();
#pragma unroll
    for (int k = 0; k < WIDTH / 16; k++) {
        constexpr int PRODUCTS = PANEL<WIDTH> / 16;
        int panel = k / PRODUCTS * PANEL<WIDTH>, channel = k % PRODUCTS * 16;
        multiply_shared(scores, along_channels<WIDTH>(queries + panel * ROWS + channel),
                        along_channels<WIDTH>(keys + panel * STEP + channel), k > 0);
    }
    commit_products();
}

template <int WIDTH>
__device__ __forceinline__ void mix(Running<WIDTH>& run, const uint32_t (&weights)[STEP / 16][4], const bf16* values) {
    fence_products();
#pragma unroll
    for (int k = 0; k < STEP / 16; k++)
        multiply_add_registers(run.mixed, weights[k], along_rows<WIDTH>(values + k * 16 * PANEL<WIDTH>));
    commit_products();
}

// A lane's scores are already its part of the left operand of the second product.
__device__ __forceinline__ void round_weights(uint32_t (&weights)[STEP / 16][4], const float (&scores)[STEP / 8][4]) {
#pragma unroll
    for (int k = 0; k < STEP / 16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&pair)[4] = scores[2 * k + i / 2];
            weights[k][i] = pack(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
        }
}

// All key blocks of a tile for the warpgroup's 64 queries. Scores of a block and the mixture of the previous block are
// computed concurrently; the weights are computed while that mixture is still in progress.
template <int WIDTH>
__device__ __forceinline__ void attend(
    Running<WIDTH>& run, Shared<WIDTH>& shared, Turn<Shared<WIDTH>::STAGES>& turn, const Turn<2>& query,
    const Arguments& args, const Tile<STEP>& tile) {
    const bf16* queries = shared.queries[query.stage] + threadIdx.x / GROUP * (GROUP / 2) * PANEL<WIDTH>;
    float scores[STEP / 8][4], fade[2];
    uint32_t weights[STEP / 16][4];
    wait_barrier(&shared.queries_full[query.stage], query.parity);
    wait_barrier(&shared.keys_full[turn.stage], turn.parity);
    score<WIDTH>(scores, queries, shared.keys[turn.stage]);
    wait_products<0>();
    pin(scores);
    leave(&shared.keys_empty[turn.stage]);
    if (tile.full == 0) hide(scores, args, tile, tile.start(0));
    weigh(scores, run, args.scale_log2, fade);
    round_weights(weights, scores);
    for (int block = 1; block < tile.blocks; block++) {
        auto last = turn;
        turn.step();
        wait_barrier(&shared.keys_full[turn.stage], turn.parity);
        score<WIDTH>(scores, queries, shared.keys[turn.stage]);
        wait_barrier(&shared.values_full[last.stage], last.parity);
        mix(run, weights, shared.values[last.stage]);
        wait_products<1>();
        pin(scores);
        leave(&shared.keys_empty[turn.stage]);
        if (block >= tile.full) hide(scores, args, tile, tile.start(block));
        weigh(scores, run, args.scale_log2, fade);
        finish_before_wait(run.total[0] + run.total[1]);
        wait_products<0>();
        pin(run.mixed);
        leave(&shared.values_empty[last.stage]);
        shrink(run, fade);
        round_weights(weights, scores);
    }
    leave(&shared.queries_empty[query.stage]);
    wait_barrier(&shared.values_full[turn.stage], turn.parity);
    mix(run, weights, shared.values[turn.stage]);
    wait_products<0>();
    pin(run.mixed);
    leave(&shared.values_empty[turn.stage]);
    turn.step();
}

// A warpgroup without queries in a short tile leaves every stage as soon as it is full, so that the phases advance.
template <int WIDTH>
__device__ __forceinline__ void pass(
    Shared<WIDTH>& shared, Turn<Shared<WIDTH>::STAGES>& turn, const Turn<2>& query, int blocks) {
    wait_barrier(&shared.queries_full[query.stage], query.parity);
    leave(&shared.queries_empty[query.stage]);
    for (int block = 0; block < blocks; block++) {
        wait_barrier(&shared.keys_full[turn.stage], turn.parity);
        leave(&shared.keys_empty[turn.stage]);
        wait_barrier(&shared.values_full[turn.stage], turn.parity);
        leave(&shared.values_empty[turn.stage]);
        turn.step();
    }
}

template <int WIDTH>
__device__ __forceinline__ void consume(Shared<WIDTH>& shared, const Arguments& args, int items) {
    Turn<Shared<WIDTH>::STAGES> turn;
    Turn<2> query;
    for (int item = blockIdx.x; item < items; item += gridDim.x) {
        const Tile<STEP> tile(args.tiles + item / args.heads * 6);
        if (tile.first_row >= tile.end_row) continue;
        if (tile.first_row + threadIdx.x / GROUP * (GROUP / 2) < tile.end_row) {
            Running<WIDTH> run;
            begin(run);
            attend(run, shared, turn, query, args, tile);
            finish(run, args, tile, item % args.heads, shared.mixed);
            __syncwarp();  // the next tile's quotients use the same memory
        } else {
            pass(shared, turn, query, tile.blocks);
        }
        query.step();
    }
}

template <int WIDTH>
__device__ __forceinline__ void start_barriers(Shared<WIDTH>& shared) {
    constexpr int WARPS = CONSUMERS * GROUP / 32;
    for (int i = 0; i < Shared<WIDTH>::STAGES; i++) {
        start_barrier(&shared.keys_full[i], 1), start_barrier(&shared.values_full[i], 1);
        start_barrier(&shared.keys_empty[i], WARPS), start_barrier(&shared.values_empty[i], WARPS);
    }
    for (int i = 0; i < 2; i++) start_barrier(&shared.queries_full[i], 1), start_barrier(&shared.queries_empty[i], WARPS);
    publish_barriers();
}

// `items` are tiles times heads; a grid of any size processes them in order, the longest first.
template <int WIDTH>
__global__ void __launch_bounds__(THREADS, 1) attention_forward(
    const __grid_constant__ Maps maps, const Arguments args, int items) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || defined(METAXLM_EMULATED)
    extern __shared__ __align__(1024) unsigned char arena[];
    auto& shared = *reinterpret_cast<Shared<WIDTH>*>(arena + (1024 - shared_address(arena) % 1024) % 1024);
    if (threadIdx.x == 0) start_barriers(shared);
    __syncthreads();
    if (threadIdx.x >= CONSUMERS * GROUP) {
        lower_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == CONSUMERS * GROUP) produce(shared, maps, args, items);
    } else {
        raise_registers<CONSUMER_REGISTERS>();
        consume(shared, args, items);
    }
#endif
}

}  // namespace hopper
}  // namespace metaxlm
