// Barriers in shared memory and the copy engine of sm_90 on the host, from the PTX ISA 9.0 and the CUDA driver API. A box
// is NaN from the moment it is asked for and arrives as late as it may: when somebody has waited for its barrier for some
// rounds, the last asked for first. Shared memory has addresses of its own, which swizzles are reckoned from.
#pragma once
#include <map>

#include "emulation.h"

using cuuint32_t = uint32_t;
using cuuint64_t = uint64_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE = 0 };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE = 0, CU_TENSOR_MAP_SWIZZLE_64B = 2, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0 };
struct CUtensorMap {
    char* start;
    uint64_t sizes[3], strides[3];
    uint32_t box[3];
    uint32_t pieces;  // of 16 bytes that the swizzle permutes
};

namespace emulation {

constexpr int LATE = 3;  // rounds of all threads until a box arrives
// Where dynamic shared memory starts: 16 bytes are what the language promises, not the 1024 of the swizzle.
constexpr uint32_t WINDOW = 1024 + 16, WINDOW_BYTES = 227 * 1024;
inline unsigned char* window;

struct Box { uint32_t to; const CUtensorMap* map; int at[3]; };
struct Mbarrier {
    int expected = 0, pending = 0, bytes = 0;
    uint32_t phase = 0;
    bool published = false;
    std::vector<Box> boxes;
};
inline std::map<const void*, Mbarrier> mbarriers;

inline Mbarrier& mbarrier(const void* place) {
    if (!mbarriers.count(place)) fail("a barrier is used before it is started");
    return mbarriers[place];
}

inline unsigned char* memory_at(uint32_t address) {
    if (address < WINDOW || address >= WINDOW + WINDOW_BYTES) fail("an address outside shared memory");
    return window + (failure.empty() ? address - WINDOW : 0);
}

// Swizzle of 128 bytes, eight pieces, or of 64, four: in every 128 bytes, pieces of 16 trade places by the number of the 128
// bytes (the tables of PTX ISA 5.5.7; Swizzle<3, 4, 3> and <2, 4, 3> of 9.7.15.5.1.2.1.3).
inline uint32_t swizzled(uint32_t address, uint32_t pieces) { return address ^ (address >> 7 & (pieces - 1)) << 4; }

// 9.7.13.15.6: a phase ends when no arrival and no byte is outstanding.
inline void settle(Mbarrier& barrier) {
    if (barrier.pending < 0) fail("more arrivals at a barrier than it expects");
    if (barrier.pending == 0 && barrier.bytes == 0) barrier.phase++, barrier.pending = barrier.expected, progress++;
}

template <class Use>
inline void each_line(const Box& box, Use use) {
    uint32_t line = box.to;
    for (uint32_t row = 0; row < box.map->box[2]; row++)
        for (uint32_t head = 0; head < box.map->box[1]; head++, line += box.map->box[0] * 2) use(line, head, row);
}

// 9.7.9.25.5.2 and 5.5.3: the first coordinate runs fastest; what lies outside the tensor is zero, and counts.
inline void deliver(Mbarrier& barrier) {
    Box box = barrier.boxes.back();
    barrier.boxes.pop_back();
    const CUtensorMap& map = *box.map;
    each_line(box, [&](uint32_t line, int head, int row) {
        for (int i = 0; i < static_cast<int>(map.box[0]); i++) {
            int64_t at[3] = {box.at[0] + i, box.at[1] + head, box.at[2] + row};
            bool inside = true;
            for (int d = 0; d < 3; d++) inside &= at[d] >= 0 && at[d] < static_cast<int64_t>(map.sizes[d]);
            uint16_t value = 0;
            if (inside) memcpy(&value, map.start + at[0] * 2 + at[1] * map.strides[1] + at[2] * map.strides[2], 2);
            memcpy(memory_at(swizzled(line + 2 * i, map.pieces)), &value, 2);
        }
    });
    barrier.bytes -= map.box[0] * map.box[1] * map.box[2] * 2;
    progress++, settle(barrier);
}

// What cuTensorMapEncodeTiled refuses, for the only kind of map that is used here.
inline CUresult encode_tiled(
    CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* start, const cuuint64_t* sizes, const cuuint64_t* strides,
    const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
    CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
    bool fits = rank == 3 && reinterpret_cast<uintptr_t>(start) % 16 == 0;
    uint32_t pieces = swizzle == CU_TENSOR_MAP_SWIZZLE_128B ? 8 : swizzle == CU_TENSOR_MAP_SWIZZLE_64B ? 4 : 0;
    fits &= pieces > 0 && box[0] * 2 == pieces * 16;  // shorter lines are allowed, but are not needed here
    for (int d = 0; d < 3; d++)
        fits &= sizes[d] > 0 && sizes[d] <= 1ull << 32 && box[d] > 0 && box[d] <= 256 && steps[d] == 1;
    // Strides may not shrink, and hold the dimension before.
    for (int d = 0; d < 2; d++)
        fits &= strides[d] % 16 == 0 && strides[d] < 1ull << 40 && strides[d] >= (d ? strides[0] : sizes[0] * 2);
    if (!fits) return CUDA_ERROR_INVALID_VALUE;
    *map = {static_cast<char*>(start), {sizes[0], sizes[1], sizes[2]}, {2, strides[0], strides[1]},
            {box[0], box[1], box[2]}, pieces};
    return CUDA_SUCCESS;
}

}  // namespace emulation

namespace metaxlm {
namespace hopper {

inline uint32_t shared_address(const void* pointer) {
    return emulation::WINDOW + static_cast<uint32_t>(static_cast<const unsigned char*>(pointer) - emulation::window);
}

inline void start_barrier(uint64_t* barrier, int arrivals) {
    if (shared_address(barrier) % 8 || emulation::mbarriers.count(barrier)) emulation::fail("a barrier starts wrongly");
    emulation::Mbarrier& started = emulation::mbarriers[barrier];
    started.expected = started.pending = arrivals;
}

inline void publish_barriers() {
    for (auto& [place, barrier] : emulation::mbarriers) barrier.published = true;
}

inline void arrive(uint64_t* barrier) {
    emulation::Mbarrier& reached = emulation::mbarrier(barrier);
    reached.pending--, emulation::settle(reached);
}

inline void arrive_expecting(uint64_t* barrier, int bytes) {
    emulation::mbarrier(barrier).bytes += bytes;
    arrive(barrier);
}

// 9.7.13.15.16: parity names the current phase or the one before it.
inline void wait_barrier(uint64_t* barrier, uint32_t parity) {
    emulation::Mbarrier& awaited = emulation::mbarrier(barrier);
    for (int round = 0; (awaited.phase & 1) == parity; round++) {
        if (round >= emulation::LATE && !awaited.boxes.empty()) emulation::deliver(awaited);
        else emulation::yield();
    }
}

inline void copy_box(bf16* shared, const CUtensorMap& map, int channel, int head, int row, uint64_t* barrier) {
    emulation::Box box = {shared_address(shared), &map, {channel, head, row}};
    emulation::Mbarrier& counting = emulation::mbarrier(barrier);
    if (box.to % 128 || !counting.published) emulation::fail("a copy to an odd place, or at an unpublished barrier");
    emulation::each_line(box, [&](uint32_t line, int, int) { memset(emulation::memory_at(line), 0xff, map.box[0] * 2); });
    counting.boxes.push_back(box);
}

}  // namespace hopper
}  // namespace metaxlm
