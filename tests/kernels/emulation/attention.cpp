// The C interface of kernels/cuda/attention.cu over emulated blocks.
#define METAXLM_EMULATED
#include "attention_sm80.cuh"
#include "attention_sm90.cuh"

namespace metaxlm {
alignas(1024) unsigned char memory[1 << 18];
namespace hopper { alignas(1024) unsigned char arena[1 << 18]; }
}  // namespace metaxlm

namespace {

template <int WIDTH>
int launch_portable(const metaxlm::Arguments& args, int tiles) {
    for (blockIdx.x = 0; blockIdx.x < tiles * args.heads; blockIdx.x++) {
        memset(metaxlm::memory, 0xff, sizeof metaxlm::memory);
        emulation::run_block(metaxlm::THREADS, [&] { metaxlm::attention_forward<WIDTH>(args); });
    }
    return emulation::failure.empty() ? 0 : 1;
}

// Two blocks, so that each takes tile after tile.
template <int WIDTH>
int launch_hopper(const metaxlm::Arguments& args, int tiles) {
    namespace hopper = metaxlm::hopper;
    hopper::Maps maps;
    CUresult made = hopper::encode_maps(emulation::encode_tiled, maps, args, WIDTH, metaxlm::ROWS, hopper::STEP);
    if (made != CUDA_SUCCESS) return -2;
    static_assert(hopper::shared_bytes<WIDTH>() <= emulation::WINDOW_BYTES);
    int items = tiles * args.heads;
    gridDim.x = items < 2 ? items : 2;
    for (blockIdx.x = 0; blockIdx.x < gridDim.x && emulation::failure.empty(); blockIdx.x++) {
        memset(hopper::arena, 0xff, sizeof hopper::arena);
        emulation::begin_block(hopper::THREADS, hopper::arena);
        emulation::run_block(hopper::THREADS, [&] { hopper::attention_forward<WIDTH>(maps, args, items); });
        emulation::end_block();
    }
    return emulation::failure.empty() ? 0 : 1;
}

}  // namespace

extern "C" int metaxlm_abi_version() { return 2; }
extern "C" int metaxlm_attention_shared_bytes(int, int) { return 0; }
extern "C" const char* metaxlm_error_string(int) { return emulation::failure.c_str(); }
extern "C" int metaxlm_attention_forward(
    const void* queries, int64_t query_token, int64_t query_head, const void* keys, int64_t key_token, int64_t key_head,
    const void* values, int64_t value_token, int64_t value_head, void* mixed, float* log_sums, const int* tiles,
    const int* bounds, int tile_count, int, int64_t tokens, int heads, int width, float scale_log2, int variant, void*) {
    metaxlm::Arguments args = {{queries, query_token, query_head}, {keys, key_token, key_head},
                               {values, value_token, value_head}, mixed, log_sums, tiles, bounds, tokens, heads, scale_log2};
    emulation::failure.clear();
    if (variant == 2)
        return width == 32 ? launch_hopper<32>(args, tile_count) : width == 64 ? launch_hopper<64>(args, tile_count)
                                                                               : launch_hopper<128>(args, tile_count);
    return width == 32 ? launch_portable<32>(args, tile_count) : width == 64 ? launch_portable<64>(args, tile_count)
                                                                             : launch_portable<128>(args, tile_count);
}
