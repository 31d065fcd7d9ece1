// A block of CUDA threads on the host, one fiber a thread: the instructions of kernels/cuda/primitives.cuh written down
// from the PTX ISA, so that tests run the very source of a kernel without a GPU. Copies to shared memory arrive as late as
// they may (when waited for), and shared memory starts as NaN, so a missing wait shows. Races that need true parallelism
// do not.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <deque>
#include <functional>
#include <string>
#include <vector>

#define __device__
#define __global__
#define __shared__
#define __forceinline__ inline
#define __align__(bytes)
#define __launch_bounds__(...)
#define __grid_constant__

struct int4 { int x, y, z, w; };
struct Index { int x; };
inline Index threadIdx, blockIdx, gridDim;

namespace emulation {

struct Copy { void* to; const void* from; bool kept; };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack;
    bool done = false;
    std::deque<std::vector<Copy>> groups;
    std::vector<Copy> open;
};
struct Barrier { int waiting = 0; long generation = 0; };
struct Warp { Barrier barrier; const void* slots[32]; };

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline Barrier block_barrier;
inline ucontext_t scheduler;
inline std::function<void()> body;
inline std::string failure;  // the first thing that hardware would not have let pass
inline long progress;        // rises whenever somebody gets further

inline void fail(const std::string& what) {
    if (failure.empty()) failure = what;
}

inline Fiber& self() { return fibers[threadIdx.x]; }
inline int lane() { return threadIdx.x % 32; }

inline void yield() {
    int own = threadIdx.x;
    swapcontext(&fibers[own].context, &scheduler);
    threadIdx.x = own;
}

inline void wait_at(Barrier& barrier, int count) {
    long generation = barrier.generation;
    if (++barrier.waiting == count) {
        barrier.waiting = 0, barrier.generation++, progress++;
    } else {
        while (barrier.generation == generation) yield();
    }
}

inline void entry() { body(); self().done = true, progress++; yield(); }

inline void run_block(int threads, std::function<void()> kernel) {
    body = kernel;
    fibers.resize(threads);
    warps.assign(threads / 32, Warp());
    block_barrier = Barrier();
    for (Fiber& fiber : fibers) {
        fiber.stack.resize(1 << 16), fiber.done = false, fiber.groups.clear(), fiber.open.clear();
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data(), fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, entry, 0);
    }
    long idle = 0, before = progress;
    uint32_t turn = 1;
    for (bool busy = true; busy && failure.empty();) {
        busy = false;
        idle = progress == before ? idle + 1 : 0, before = progress;
        if (idle > 100) fail("no thread gets further");
        turn = turn * 1664525 + 1013904223;  // every round begins with another thread
        for (int i = 0; i < threads; i++) {
            threadIdx.x = (i + (turn >> 8)) % threads;
            if (fibers[threadIdx.x].done) continue;
            busy = true;
            swapcontext(&scheduler, &fibers[threadIdx.x].context);
        }
    }
}

// Shows `value` to the warp and calls `use` with what all 32 lanes show.
template <class Value, class Use>
inline void together(const Value& value, Use use) {
    Warp& warp = warps[threadIdx.x / 32];
    warp.slots[lane()] = &value;
    wait_at(warp.barrier, 32);
    use([&](int other) -> const Value& { return *static_cast<const Value*>(warp.slots[other]); });
    wait_at(warp.barrier, 32);
}

inline void perform(const std::vector<Copy>& group) {
    for (const Copy& copy : group) copy.kept ? (void)memcpy(copy.to, copy.from, 16) : (void)memset(copy.to, 0, 16);
}

}  // namespace emulation

inline void __syncthreads() { emulation::wait_at(emulation::block_barrier, static_cast<int>(emulation::fibers.size())); }
inline void __syncwarp() { emulation::together(0, [](auto) {}); }
inline float __shfl_xor_sync(unsigned, float value, int mask) {
    float result = 0;
    emulation::together(value, [&](auto shown) { result = shown(emulation::lane() ^ mask); });
    return result;
}

namespace metaxlm {

struct bf16 { uint16_t bits; };

inline float widen(uint32_t bits) {
    uint32_t word = bits << 16;
    float value;
    memcpy(&value, &word, 4);
    return value;
}

inline uint32_t narrow(float value) {
    uint32_t word;
    memcpy(&word, &value, 4);
    return value != value ? 0x7fff : (word + 0x7fff + (word >> 16 & 1)) >> 16;
}

inline uint32_t pack(float low, float high) { return narrow(low) | narrow(high) << 16; }
inline float power_of_two(float x) { return exp2f(x); }

inline void copy_async(bf16* shared, const bf16* global, bool kept) {
    emulation::self().open.push_back({shared, global, kept});
}
inline void commit_copies() {
    emulation::self().groups.push_back(emulation::self().open);
    emulation::self().open.clear();
}
template <int PENDING>
inline void wait_copies() {
    for (auto& groups = emulation::self().groups; groups.size() > PENDING; groups.pop_front())
        emulation::perform(groups.front());
}

template <bool TRANSPOSED>
inline void load_matrices(uint32_t (&out)[4], const bf16* row) {
    emulation::together(row, [&](auto shown) {
        int line = emulation::lane() / 4, pair = emulation::lane() % 4 * 2;
        for (int i = 0; i < 4; i++) {
            const bf16 *first = TRANSPOSED ? shown(8 * i + pair) + line : shown(8 * i + line) + pair;
            const bf16 *second = TRANSPOSED ? shown(8 * i + pair + 1) + line : first + 1;
            out[i] = first->bits | static_cast<uint32_t>(second->bits) << 16;
        }
    });
}

inline void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    struct Operands { uint32_t left[4], right[2]; } own = {{left[0], left[1], left[2], left[3]}, {right0, right1}};
    float result[4];
    emulation::together(own, [&](auto shown) {
        auto half = [](uint32_t word, int k) { return widen(k % 2 ? word >> 16 : word & 0xffff); };
        for (int i = 0; i < 4; i++) {
            int row = emulation::lane() / 4 + i / 2 * 8, column = emulation::lane() % 4 * 2 + i % 2;
            result[i] = sum[i];
            for (int k = 0; k < 16; k++)
                result[i] += half(shown(row % 8 * 4 + k % 8 / 2).left[k / 8 * 2 + row / 8], k) *
                             half(shown(column * 4 + k % 8 / 2).right[k / 8], k);
        }
    });
    for (int i = 0; i < 4; i++) sum[i] = result[i];
}

}  // namespace metaxlm
