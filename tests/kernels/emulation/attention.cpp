// The C interface of kernels/cuda/attention.cu over emulated blocks.
#define METAXLM_EMULATED
#include "attention_sm80.cuh"

namespace metaxlm { alignas(128) unsigned char memory[1 << 18]; }

namespace {

template <int WIDTH>
int launch(const metaxlm::Arguments& args, int tiles) {
    for (blockIdx.x = 0; blockIdx.x < tiles * args.heads; blockIdx.x++) {
        memset(metaxlm::memory, 0xff, sizeof metaxlm::memory);
        emulation::run_block(metaxlm::THREADS, [&] { metaxlm::attention_forward<WIDTH>(args); });
    }
    return 0;
}

}  // namespace

extern "C" int metaxlm_abi_version() { return 1; }
extern "C" const char* metaxlm_error_string(int) { return "emulated"; }
extern "C" int metaxlm_attention_forward(
    const void* queries, int64_t query_token, int64_t query_head, const void* keys, int64_t key_token, int64_t key_head,
    const void* values, int64_t value_token, int64_t value_head, void* mixed, float* log_sums, const int* tiles,
    const int* bounds, int tile_count, int, int64_t tokens, int heads, int width, float scale_log2, void*) {
    metaxlm::Arguments args = {{queries, query_token, query_head}, {keys, key_token, key_head},
                               {values, value_token, value_head}, mixed, log_sums, tiles, bounds, tokens, heads, scale_log2};
    return width == 32 ? launch<32>(args, tile_count) : width == 64 ? launch<64>(args, tile_count)
                                                                    : launch<128>(args, tile_count);
}
