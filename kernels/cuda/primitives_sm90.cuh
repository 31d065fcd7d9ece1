// Instructions of sm_90a, one function each: barriers in shared memory (PTX ISA 9.0, section 9.7.13.15), copies of tensor
// boxes (9.7.9.25.5.2), products of a warpgroup (9.7.15) and the reallocation of registers (9.7.19.5).
// The tests compile the kernels for the host with their own definitions of these: METAXLM_EMULATED.
#pragma once
#include "primitives.cuh"
#ifdef METAXLM_EMULATED
#include "emulation_sm90.h"
#else
#include <cuda.h>

namespace metaxlm {
namespace hopper {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A phase of the barrier ends when `arrivals` threads have arrived and all its expected bytes have been written.
__device__ __forceinline__ void start_barrier(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}

// Makes barriers known to the copy engine; a __syncthreads makes them known to the other threads.
__device__ __forceinline__ void publish_barriers() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Arrives, and adds bytes to those the phase expects.
__device__ __forceinline__ void arrive_expecting(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
}

// Waits until the phase of that parity is over; the phase before the first has parity 1.
__device__ __forceinline__ void wait_barrier(uint64_t* barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile("{\n.reg .pred over;\nmbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\n"
                     "selp.b32 %0, 1, 0, over;\n}" : "=r"(over) : "r"(shared_address(barrier)), "r"(parity) : "memory");
    } while (!over);
}

// The map's box at those coordinates into shared memory, asynchronously; its bytes count towards the barrier.
__device__ __forceinline__ void copy_box(
    bf16* shared, const CUtensorMap& map, int channel, int head, int row, uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared_address(shared)), "l"(&map), "r"(channel), "r"(head),
                 "r"(row), "r"(shared_address(barrier)) : "memory");
}

// All four warps of a warpgroup together.
template <int COUNT>
__device__ __forceinline__ void lower_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT>
__device__ __forceinline__ void raise_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

// Before the first product, and whenever other instructions have accessed its registers since the last one.
__device__ __forceinline__ void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void commit_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING of the latest groups of products are in flight.
template <int PENDING>
__device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of registers of a product in flight to before this point.
template <int COUNT>
__device__ __forceinline__ void pin(float (&sums)[COUNT][4]) {
#pragma unroll
    for (int n = 0; n < COUNT; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) asm volatile("" : "+f"(sums[n][i])::"memory");
}

// The assembler would move a wait for products before all independent work, so that nothing overlaps with them. This branch
// on a `total` (never negative) forces the computation of `total` before the wait; the pause in it never runs.
__device__ __forceinline__ void finish_before_wait(float total) {
    asm volatile("{\n.reg .pred never;\nsetp.lt.f32 never, %0, 0f00000000;\n@never nanosleep.u32 0;\n}" ::"f"(total)
                 : "memory");
}

#define METAXLM_SUM(sums, n) "+f"(sums[n][0]), "+f"(sums[n][1]), "+f"(sums[n][2]), "+f"(sums[n][3])
#define METAXLM_SUMS(sums, n)                                                                                   \
    METAXLM_SUM(sums, n), METAXLM_SUM(sums, n + 1), METAXLM_SUM(sums, n + 2), METAXLM_SUM(sums, n + 3),          \
        METAXLM_SUM(sums, n + 4), METAXLM_SUM(sums, n + 5), METAXLM_SUM(sums, n + 6), METAXLM_SUM(sums, n + 7)
#define METAXLM_FIRST_32                                                                                        \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                     \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define METAXLM_NEXT_32                                                                                         \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                           \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// sums [64, 128] = left [64, 16] right [16, 128] (+ sums where `kept`), both in shared memory with rows along the 16.
__device__ __forceinline__ void multiply_shared(float (&sums)[16][4], uint64_t left, uint64_t right, bool kept) {
    asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" METAXLM_FIRST_32 ", " METAXLM_NEXT_32 "}, "
                 "%64, %65, kept, 1, 1, 0, 0;\n}"
                 : METAXLM_SUMS(sums, 0), METAXLM_SUMS(sums, 8) : "l"(left), "l"(right), "r"(static_cast<int>(kept)));
}

// sums [64, N] += left [64, 16] right [16, N]; left in registers, right in shared memory with rows along the N.
__device__ __forceinline__ void multiply_add_registers(float (&sums)[4][4], const uint32_t (&left)[4], uint64_t right) {
    asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, kept, 1, 1, 1;\n}"
                 : METAXLM_SUM(sums, 0), METAXLM_SUM(sums, 1), METAXLM_SUM(sums, 2), METAXLM_SUM(sums, 3)
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}

__device__ __forceinline__ void multiply_add_registers(float (&sums)[8][4], const uint32_t (&left)[4], uint64_t right) {
    asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {" METAXLM_FIRST_32 "}, "
                 "{%32, %33, %34, %35}, %36, kept, 1, 1, 1;\n}"
                 : METAXLM_SUMS(sums, 0) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}

__device__ __forceinline__ void multiply_add_registers(float (&sums)[16][4], const uint32_t (&left)[4], uint64_t right) {
    asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, 1, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {" METAXLM_FIRST_32 ", " METAXLM_NEXT_32 "}, "
                 "{%64, %65, %66, %67}, %68, kept, 1, 1, 1;\n}"
                 : METAXLM_SUMS(sums, 0), METAXLM_SUMS(sums, 8)
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right));
}

}  // namespace hopper
}  // namespace metaxlm
#endif
