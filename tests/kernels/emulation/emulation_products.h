// Products of a warpgroup (wgmma) on the host, from the PTX ISA 9.0, section 9.7.15. They run as late as they may, when
// waited for, on what their operands hold then; an operand that changed since the product was asked for is an error. Sums
// are NaN until then. What cannot be seen: other instructions between a fence and a product that touch its registers.
#pragma once
#include "emulation_copies.h"

namespace emulation {

constexpr int GROUP = 128;
using Half = uint16_t;

// 9.7.15.5.1.2.2: start, leading and stride offset in 16 bytes, base offset, swizzle mode.
struct Descriptor {
    uint32_t start, leading, stride, base, mode, pieces;

    explicit Descriptor(uint64_t bits)
        : start((bits & 0x3fff) << 4), leading((bits >> 16 & 0x3fff) << 4), stride((bits >> 32 & 0x3fff) << 4),
          base(bits >> 49 & 7), mode(static_cast<uint32_t>(bits >> 62)), pieces(16 >> mode) {
        if (mode != 1 && mode != 2) fail("a matrix that is in neither the 128-byte nor the 64-byte swizzle");
        // The pattern starts at 1024 or 512 bytes, or the base offset would have to say where; k steps stay within a line.
        if (base != 0 || (start >> 7 & (pieces - 1)) != 0) fail("a matrix that does not start with its pattern");
    }

    // 9.7.15.5.1.2.1.3, T = 8 elements of two bytes, P = 8 or 4 pieces. K-major: ((8, m), (T, 2k)) : ((PT, SBO), (1, T)).
    Half k_major(int line, int k) const {
        return read(start + line % 8 * pieces * 16 + line / 8 * stride + k / 8 * 16 + k % 8 * 2);
    }

    // MN-major: ((T, P, m), (8, k)) : ((1, T, LBO), (PT, SBO)).
    Half mn_major(int line, int k) const {
        return read(start + line % 8 * 2 + line / 8 % pieces * 16 + line / (8 * pieces) * leading + k % 8 * pieces * 16 +
                    k / 8 * stride);
    }

    Half read(uint32_t address) const {
        Half value;
        memcpy(&value, memory_at(swizzled(address, pieces)), 2);
        return value;
    }
};

struct Operands { std::vector<Half> left, right; };  // [64, 16], [N, 16]

struct Sums {
    float* places[GROUP];  // [N / 8][4] of each thread
    int columns;
    std::vector<float> values;  // [64, N]
    int pending = 0;

    // 9.7.15.5.1.1.1, figure "register fragment layout for accumulator matrix D".
    template <class Use>
    void each(Use use) {
        for (int thread = 0; thread < GROUP; thread++)
            for (int i = 0; i < columns / 2; i++) {
                int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
                use(values[row * columns + column], places[thread][i]);
            }
    }
};

struct Product {
    std::function<Operands()> read;
    Operands seen;
    Sums* sums;
    bool kept;
};

struct Warpgroup {
    Barrier barrier;
    const void* slots[GROUP];
    bool fenced[GROUP];
    std::map<float*, Sums> sums;
    std::vector<Product> open;
    std::deque<std::vector<Product>> groups;
};
inline std::vector<Warpgroup> warpgroups;
inline long free_registers;

inline Warpgroup& warpgroup() { return warpgroups[threadIdx.x / GROUP]; }

// Shows `value` to the warpgroup; the last thread to come calls `use` with what all 128 show.
template <class Value, class Use>
inline void once(const Value& value, Use use) {
    Warpgroup& group = warpgroup();
    group.slots[threadIdx.x % GROUP] = &value;
    if (group.barrier.waiting == GROUP - 1)
        use([&](int other) -> const Value& { return *static_cast<const Value*>(group.slots[other]); });
    wait_at(group.barrier, GROUP);
}

inline void run(Product& product) {
    Operands now = product.read();
    if (now.left != product.seen.left || now.right != product.seen.right)
        fail("an operand changed while a product was reading it");
    Sums& sums = *product.sums;
    for (int row = 0; row < 64; row++)
        for (int column = 0; column < sums.columns; column++) {
            float& sum = sums.values[row * sums.columns + column];
            if (!product.kept) sum = 0.f;
            for (int k = 0; k < 16; k++)
                sum += metaxlm::widen(now.left[row * 16 + k]) * metaxlm::widen(now.right[column * 16 + k]);
        }
    progress++;
    if (--sums.pending == 0) {
        sums.each([](float& value, float& place) { place = value; });
        warpgroup().sums.erase(sums.places[0]);
    }
}

template <class Shown>
inline void ask(Shown shown, int columns, bool kept, std::function<Operands()> read) {
    Warpgroup& group = warpgroup();
    for (bool fenced : group.fenced)
        if (!fenced) fail("a product without a fence after the last wait");
    Sums& sums = group.sums[shown(0)];
    if (sums.pending++ == 0) {
        sums.columns = columns, sums.values.resize(64 * columns);
        for (int thread = 0; thread < GROUP; thread++) sums.places[thread] = shown(thread);
        sums.each([](float& value, float& place) { value = place, place = NAN; });
    }
    if (sums.columns != columns) fail("products of two shapes on the same sums");
    group.open.push_back({read, read(), &sums, kept});
}

template <class Line>
inline std::vector<Half> gathered(int lines, Line line) {
    std::vector<Half> out(lines * 16);
    for (int i = 0; i < lines * 16; i++) out[i] = line(i / 16, i % 16);
    return out;
}

struct RegisterOperand { float* sums; const uint32_t* left; };

template <int COUNT>
inline void multiply_add_registers(float (&sums)[COUNT][4], const uint32_t (&left)[4], uint64_t right) {
    once(RegisterOperand{&sums[0][0], left}, [&](auto shown) {
        std::vector<const uint32_t*> registers;
        for (int thread = 0; thread < GROUP; thread++) registers.push_back(shown(thread).left);
        // 9.7.15.5.1.1.1, figure "register fragment layout for matrix A".
        auto fragment = [=](int row, int k) -> Half {
            int thread = row / 16 * 32 + row % 8 * 4 + k % 8 / 2;
            return registers[thread][k / 8 * 2 + row % 16 / 8] >> k % 2 * 16;
        };
        Descriptor b(right);
        ask([&](int thread) { return shown(thread).sums; }, COUNT * 8, true, [=] {
            return Operands{gathered(64, fragment), gathered(COUNT * 8, [&](int n, int k) { return b.mn_major(n, k); })};
        });
    });
}

// A new block of threads: nothing has started; registers as launched, in eights (9.7.19.5).
inline void begin_block(int threads, void* memory) {
    window = static_cast<unsigned char*>(memory);
    mbarriers.clear(), warpgroups.assign(threads / GROUP, Warpgroup()), free_registers = 0;
}

// What must not be left over when all threads have ended.
inline void end_block() {
    for (auto& [place, barrier] : mbarriers)
        if (!barrier.boxes.empty() || barrier.bytes) fail("a copy still under way at the end");
    for (Warpgroup& group : warpgroups)
        if (!group.open.empty() || !group.groups.empty()) fail("a product still under way at the end");
}

template <int COUNT>
inline void share_registers() {
    int launched = 65536 / static_cast<int>(fibers.size()) / 8 * 8;
    while (free_registers < COUNT - launched) yield();
    free_registers -= COUNT - launched;
}

}  // namespace emulation

namespace metaxlm {
namespace hopper {

using emulation::multiply_add_registers;

template <int COUNT>
inline void lower_registers() { emulation::share_registers<COUNT>(); }
template <int COUNT>
inline void raise_registers() { emulation::share_registers<COUNT>(); }

inline void fence_products() { emulation::warpgroup().fenced[threadIdx.x % emulation::GROUP] = true; }

inline void commit_products() {
    emulation::once(0, [](auto) {
        emulation::warpgroup().groups.push_back(std::move(emulation::warpgroup().open));
        emulation::warpgroup().open.clear();
    });
}

template <int PENDING>
inline void wait_products() {
    for (int round = 0; round < emulation::LATE; round++) emulation::yield();  // others may get ahead of the products
    for (auto& groups = emulation::warpgroup().groups; groups.size() > PENDING; groups.pop_front())
        for (emulation::Product& product : groups.front()) emulation::run(product);
    emulation::warpgroup().fenced[threadIdx.x % emulation::GROUP] = false;
}

template <int COUNT>
inline void pin(float (&)[COUNT][4]) {}
inline void finish_before_wait(float) {}

inline void multiply_shared(float (&sums)[16][4], uint64_t left, uint64_t right, bool kept) {
    emulation::once(&sums[0][0], [&](auto shown) {
        emulation::Descriptor a(left), b(right);
        emulation::ask(shown, 128, kept, [=] {
            return emulation::Operands{emulation::gathered(64, [&](int row, int k) { return a.k_major(row, k); }),
                                       emulation::gathered(128, [&](int n, int k) { return b.k_major(n, k); })};
        });
    });
}

}  // namespace hopper
}  // namespace metaxlm
