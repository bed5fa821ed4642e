// Signs to bits and back: bit k % 8 of byte k / 8 of a row is x[k] > 0.
//
//   line = what is packed without a gap: a row, or all rows as one where each fills its bytes
//   task = a piece of a line, or several short lines
//
// Packing compares 64 elements at a time, which gives bytes of 0 and 1; a product gathers eight of them into one byte.
// Unpacking copies the eight elements of a byte from a table.

#include "../runtime/native/bits.hpp"

namespace {

enum Flag { NAN_CAME = 1, OTHERS_CAME = 2 };
constexpr int GROUP = 64;  // elements compared at a time

// The kind of element that is compared: 16-bit floats by their bits, as integers of the same order above 0.
template <class E>
struct Sign {
    static constexpr bool IS_SMALL_FLOAT = std::is_same_v<E, Half> || std::is_same_v<E, Brain>;
    static constexpr bool IS_FLOAT = std::is_floating_point_v<E> || IS_SMALL_FLOAT;
    using Bits = std::conditional_t<sizeof(E) == 8, int64_t, std::conditional_t<sizeof(E) == 4, int32_t, int16_t>>;

    static constexpr Bits infinity() {
        if constexpr (std::is_same_v<E, Half>) return 0x7c00;
        if constexpr (std::is_same_v<E, Brain>) return 0x7f80;
        return 0;
    }

    static bool is_positive(E x) {
        if constexpr (IS_SMALL_FLOAT) {
            const Bits bits = Bits(x.bits);
            return (bits > 0) & (bits <= infinity());
        } else {
            return x > 0;
        }
    }

    static bool is_nan(E x) {
        if constexpr (IS_SMALL_FLOAT) return Bits(x.bits & 0x7fff) > infinity();
        else if constexpr (IS_FLOAT) return x != x;
        else return false;
    }

    // 0 for ±1 alone
    static auto from_one(E x) {
        if constexpr (IS_SMALL_FLOAT) {
            return Bits((x.bits & 0x7fff) ^ (std::is_same_v<E, Half> ? 0x3c00 : 0x3f80));
        } else if constexpr (IS_FLOAT) {
            return Bits((bit_cast<Bits>(x) & std::numeric_limits<Bits>::max()) ^ bit_cast<Bits>(E(1)));
        } else if constexpr (std::is_signed_v<E>) {
            return E((x != 1) & (x != -1));
        } else {
            return E(x != 1);
        }
    }
};

using Of = Sign<Element>;

int flags_of(const Element* x, int64_t count) {
    bool nan = false, others = false;
    for (int64_t i = 0; i < count; ++i) {
        nan |= Of::is_nan(x[i]);
        others |= !Of::is_nan(x[i]) & (Of::from_one(x[i]) != 0);
    }
    return (nan ? NAN_CAME : 0) | (others ? OTHERS_CAME : 0);
}

// Packs a line, and returns its flags if they are asked for.
template <bool CHECKED>
int pack(const Element* x, int64_t count, uint8_t* bits) {
    int flags = 0;
    int64_t i = 0;
    for (; i + GROUP <= count; i += GROUP) {
        uint8_t positive[GROUP];
        for (int j = 0; j < GROUP; ++j) positive[j] = Of::is_positive(x[i + j]);
        for (int j = 0; j < GROUP; j += 8) bits[(i + j) / 8] = gathered(positive + j);
        if constexpr (CHECKED) {
            decltype(Of::from_one(*x)) any = 0;
            for (int j = 0; j < GROUP; ++j) any |= Of::from_one(x[i + j]);
            if (any) flags |= flags_of(x + i, GROUP);
        }
    }
    if (CHECKED) flags |= flags_of(x + i, count - i);
    for (; i < count; i += 8) {
        uint8_t positive[8] = {};
        for (int j = 0; j < std::min<int64_t>(8, count - i); ++j) positive[j] = Of::is_positive(x[i + j]);
        bits[i / 8] = gathered(positive);
    }
    return flags;
}

struct Table {
    Element of[256][8];

    explicit Table(int low) {
        for (int byte = 0; byte < 256; ++byte)
            for (int i = 0; i < 8; ++i) of[byte][i] = narrow_exact<Element>(Compute(byte >> i & 1 ? 1 : low));
    }
};

const Table& table(int low) {
    static const Table sign(-1), step(0);
    return low ? sign : step;
}

void unpack(const uint8_t* bits, int64_t count, const Table& table, Element* x) {
    int64_t i = 0;
    for (; i + 8 <= count; i += 8) std::memcpy(x + i, table.of[bits[i / 8]], sizeof table.of[0]);
    if (i < count) std::memcpy(x + i, table.of[bits[i / 8]], (count - i) * sizeof(Element));
}

struct Call {  // mirrored in by_cpp.py
    int64_t rows, size, block, threads;
    int64_t option;  // pack: whether values are checked; unpack: what a 0 bit stands for
};

// line(row's number, first element, elements) of each piece, on several threads.
template <class Line>
void for_each_line(const Call& call, const Line& line) {
    const bool is_one = call.size % 8 == 0;  // line
    const int64_t rows = is_one ? 1 : call.rows, size = is_one ? call.rows * call.size : call.size;
    const int64_t many = std::max<int64_t>(1, call.block / size), pieces = ceil_div(size, call.block);
    for_each_task(call.threads, ceil_div(rows, many) * pieces, [&](int, int64_t t) {
        const int64_t first = t / pieces * many, begin = t % pieces * call.block;
        for (int64_t row = first; row < std::min(rows, first + many); ++row)
            line(row * size + begin, row * ceil_div(size, 8) + begin / 8, std::min(call.block, size - begin));
    });
}

}  // namespace

// Addresses: x [rows, size], bits [rows, bytes], flags []. block is a multiple of GROUP.
extern "C" int pack_bits(const void* constants, void* const* addresses) noexcept {
    return guarded([&] {
        const Call& call = *static_cast<const Call*>(constants);
        const auto* const x = static_cast<const Element*>(addresses[0]);
        auto* const bits = static_cast<uint8_t*>(addresses[1]);
        std::atomic<int> flags{0};
        for_each_line(call, [&](int64_t from, int64_t to, int64_t count) {
            if (!call.option) pack<false>(x + from, count, bits + to);
            else if (const int came = pack<true>(x + from, count, bits + to)) flags |= came;
        });
        *static_cast<int32_t*>(addresses[2]) = flags;
        return true;
    });
}

// Addresses: bits [rows, bytes], x [rows, size].
extern "C" int unpack_bits(const void* constants, void* const* addresses) noexcept {
    return guarded([&] {
        const Call& call = *static_cast<const Call*>(constants);
        const auto* const bits = static_cast<const uint8_t*>(addresses[0]);
        auto* const x = static_cast<Element*>(addresses[1]);
        const Table& of_byte = table(int(call.option));
        for_each_line(call, [&](int64_t to, int64_t from, int64_t count) { unpack(bits + from, count, of_byte, x + to); });
        return true;
    });
}
