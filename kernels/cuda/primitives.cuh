// Warp-level instructions of sm_80 and later, one function each (PTX ISA 8.7, sections 9.7.9.25 and 9.7.15.5).
// The tests compile the kernels for the host with their own definitions of these: METAXLM_EMULATED.
#pragma once
#ifdef METAXLM_EMULATED
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

namespace metaxlm {

using bf16 = __nv_bfloat16;

// 16 bytes from global to shared memory, asynchronously; zeros if not `kept` (the source is then not read).
__device__ __forceinline__ void copy_async(bf16* shared, const bf16* global, bool kept) {
    uint32_t target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    int bytes = kept ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of the latest groups of copies of this thread are in flight.
template <int PENDING>
__device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8 x 8 matrices of bf16; lane 8 i + r points at row r of matrix i. Lane l gets of each the elements of row l / 4,
// columns 2 (l % 4) and the next; with `TRANSPOSED` of column l / 4, rows 2 (l % 4) and the next.
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const bf16* row) {
    uint32_t source = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if (TRANSPOSED) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(source) : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3]) : "r"(source) : "memory");
    }
}

// sum [16 x 8] += left [16 x 16] right [16 x 8], fp32 sums of bf16 products.
__device__ __forceinline__ void multiply_add(float (&sum)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// Two floats as bf16, rounded to nearest; `low` in the lower half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&both);
}

__device__ __forceinline__ float power_of_two(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

}  // namespace metaxlm
#endif
