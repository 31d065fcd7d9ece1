// The C interface of the library: no PyTorch, no C++ types; an error code instead of an exception.
#include "attention_sm80.cuh"
#include "attention_sm90.cuh"

namespace {

enum { UNSUPPORTED = -1, UNMAPPED = -2 };
enum Variant { AUTOMATIC, PORTABLE, HOPPER };

// Clears the error so that the next unrelated CUDA call does not report it.
int taken(cudaError_t error) {
    if (error != cudaSuccess) cudaGetLastError();
    return error;
}

template <int WIDTH>
int launch_portable(const metaxlm::Arguments& args, int tiles, cudaStream_t stream) {
    constexpr int BYTES = metaxlm::shared_bytes<WIDTH>();
    auto kernel = metaxlm::attention_forward<WIDTH>;
    if (int error = taken(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES))) return error;
    kernel<<<tiles * args.heads, metaxlm::THREADS, BYTES, stream>>>(args);
    return cudaGetLastError();
}

// The driver's encoder of tensor maps, or null if the driver is too old.
metaxlm::hopper::Encode find_encoder() {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    bool failed = taken(
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result));
    if (failed || result != cudaDriverEntryPointSuccess) return nullptr;
    return reinterpret_cast<metaxlm::hopper::Encode>(found);
}

// The kernel has no body in code built for other architectures, which a Hopper could JIT-compile and run.
template <int WIDTH>
bool is_built() {
    cudaFuncAttributes attributes;
    bool failed = taken(cudaFuncGetAttributes(&attributes, metaxlm::hopper::attention_forward<WIDTH>));
    return !failed && attributes.ptxVersion >= 90;
}

template <int WIDTH>
int launch_hopper(const metaxlm::Arguments& args, int tiles, int device, cudaStream_t stream) {
    namespace hopper = metaxlm::hopper;
    static const bool built = is_built<WIDTH>();
    static const hopper::Encode encode = find_encoder();
    if (!built || !encode) return UNSUPPORTED;
    hopper::Maps maps;
    if (hopper::encode_maps(encode, maps, args, WIDTH, metaxlm::ROWS, hopper::STEP) != CUDA_SUCCESS) return UNMAPPED;
    constexpr int BYTES = hopper::shared_bytes<WIDTH>();
    auto kernel = hopper::attention_forward<WIDTH>;
    int processors = 0, items = tiles * args.heads;
    if (int error = taken(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device))) return error;
    if (int error = taken(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES))) return error;
    kernel<<<items < processors ? items : processors, hopper::THREADS, BYTES, stream>>>(maps, args, items);
    return cudaGetLastError();
}

int start_portable(const metaxlm::Arguments& args, int tiles, int width, cudaStream_t stream) {
    switch (width) {
        case 32: return launch_portable<32>(args, tiles, stream);
        case 64: return launch_portable<64>(args, tiles, stream);
        case 128: return launch_portable<128>(args, tiles, stream);
        default: return UNSUPPORTED;
    }
}

int start_hopper(const metaxlm::Arguments& args, int tiles, int width, cudaStream_t stream) {
    int device = 0, major = 0;
    if (int error = taken(cudaGetDevice(&device))) return error;
    if (int error = taken(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device))) return error;
    if (major != 9) return UNSUPPORTED;
    switch (width) {
        case 32: return launch_hopper<32>(args, tiles, device, stream);
        case 64: return launch_hopper<64>(args, tiles, device, stream);
        case 128: return launch_hopper<128>(args, tiles, device, stream);
        default: return UNSUPPORTED;
    }
}

}  // namespace

// Incremented with every change of a signature; the binding refuses a library with another version.
extern "C" int metaxlm_abi_version() { return 2; }

// Description of a returned code.
extern "C" const char* metaxlm_error_string(int code) {
    if (code == UNSUPPORTED)
        return "unsupported: head dimension 32, 64 or 128 and tiles of 128 rows; Hopper's kernel runs on sm_90 alone";
    if (code == UNMAPPED) return "the driver makes no tensor map of these strides";
    return cudaGetErrorString(static_cast<cudaError_t>(code));
}

// Shared memory of a block of threads in bytes, or UNSUPPORTED.
extern "C" int metaxlm_attention_shared_bytes(int width, int variant) {
    namespace portable = metaxlm;
    namespace hopper = metaxlm::hopper;
    switch (width) {
        case 32: return variant == HOPPER ? hopper::shared_bytes<32>() : portable::shared_bytes<32>();
        case 64: return variant == HOPPER ? hopper::shared_bytes<64>() : portable::shared_bytes<64>();
        case 128: return variant == HOPPER ? hopper::shared_bytes<128>() : portable::shared_bytes<128>();
        default: return UNSUPPORTED;
    }
}

// Attention forward on `stream`; see struct Arguments. `variant` AUTOMATIC uses Hopper's kernel if possible, else the
// portable one. Returns 0, UNSUPPORTED, UNMAPPED or a CUDA error code; never synchronises.
extern "C" int metaxlm_attention_forward(
    const void* queries, int64_t query_token, int64_t query_head, const void* keys, int64_t key_token, int64_t key_head,
    const void* values, int64_t value_token, int64_t value_head, void* mixed, float* log_sums, const int* tiles,
    const int* bounds, int tile_count, int tile_rows, int64_t tokens, int heads, int width, float scale_log2, int variant,
    void* stream) {
    metaxlm::Arguments args = {{queries, query_token, query_head}, {keys, key_token, key_head},
                               {values, value_token, value_head}, mixed, log_sums, tiles, bounds, tokens, heads, scale_log2};
    if (tile_rows != metaxlm::ROWS || variant < AUTOMATIC || variant > HOPPER) return UNSUPPORTED;
    cudaStream_t on = static_cast<cudaStream_t>(stream);
    if (variant == PORTABLE) return start_portable(args, tile_count, width, on);
    int code = start_hopper(args, tile_count, width, on);
    return variant == HOPPER || code >= 0 ? code : start_portable(args, tile_count, width, on);
}
