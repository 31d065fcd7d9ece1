// The C interface of the library: no PyTorch, no C++ types; an error code instead of an exception.
#include "attention_sm80.cuh"

namespace {

constexpr int UNSUPPORTED = -1;

template <int WIDTH>
int launch(const metaxlm::Arguments& args, int tiles, cudaStream_t stream) {
    constexpr int BYTES = metaxlm::shared_bytes<WIDTH>();
    auto kernel = metaxlm::attention_forward<WIDTH>;
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES);
    if (error != cudaSuccess) {
        cudaGetLastError();  // what is returned here must not surface again in somebody else's next call
        return error;
    }
    kernel<<<tiles * args.heads, metaxlm::THREADS, BYTES, stream>>>(args);
    return cudaGetLastError();
}

}  // namespace

// Raised with every change of a signature; the binding refuses a library of another one.
extern "C" int metaxlm_abi_version() { return 1; }

// What a returned code means.
extern "C" const char* metaxlm_error_string(int code) {
    if (code == UNSUPPORTED) return "unsupported shape: head dimension 32, 64 or 128, tiles of 128 rows";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

// Attention forward on `stream`; see struct Arguments. Returns 0, UNSUPPORTED or a CUDA error code; never synchronises.
extern "C" int metaxlm_attention_forward(
    const void* queries, int64_t query_token, int64_t query_head, const void* keys, int64_t key_token, int64_t key_head,
    const void* values, int64_t value_token, int64_t value_head, void* mixed, float* log_sums, const int* tiles,
    const int* bounds, int tile_count, int tile_rows, int64_t tokens, int heads, int width, float scale_log2, void* stream) {
    metaxlm::Arguments args = {{queries, query_token, query_head}, {keys, key_token, key_head},
                               {values, value_token, value_head}, mixed, log_sums, tiles, bounds, tokens, heads, scale_log2};
    if (tile_rows != metaxlm::ROWS) return UNSUPPORTED;
    cudaStream_t on = static_cast<cudaStream_t>(stream);
    switch (width) {
        case 32: return launch<32>(args, tile_count, on);
        case 64: return launch<64>(args, tile_count, on);
        case 128: return launch<128>(args, tile_count, on);
        default: return UNSUPPORTED;
    }
}
