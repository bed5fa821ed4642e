// The tiles of the tropical product: MR rows × NR columns of C, accumulators in registers, one add and one max a vector
// and k.
//
// Winners: the main loop notes, per output, the group of four k in which the maximum last rose (strict, so the first
// group wins a tie), which costs one compare and one blend a group; the exact k is then found inside that group, the
// first whose sum equals the maximum. That second look at every output is dear: where few k or narrow lanes leave
// little to save, every k is a group.
//
// max instructions drop NaN: exact_tile follows torch.max instead.
//
// Sums are rounded to the element type before they are compared. Rounding is monotone, so it may be done on the
// maximum of a group instead of on each sum.

#pragma once

#include <utility>

#include "lanes.hpp"

namespace {

#if defined(__AVX512F__)
constexpr int MR = 8, NV = 2, WINNER_ROWS = 8;  // 32 registers
#elif defined(__AVX__)
constexpr int MR = 6, NV = 2, WINNER_ROWS = 3;  // 16 registers
#elif defined(__aarch64__)
constexpr int MR = 8, NV = 2, WINNER_ROWS = 8;  // 32 registers
#else
constexpr int MR = 4, NV = 2, WINNER_ROWS = 2;
#endif
constexpr int GROUP = 4;  // k a compare-and-blend; winner_tile and find_in_groups are written for four

template <class C>
constexpr int PANEL = NV * Simd<C>::WIDTH;  // columns of a tile

// visit(the numbers below the first of FEWER that is no less than height, or below MOST)
template <int MOST, int... FEWER, class Visit>
void at_height(int64_t height, const Visit& visit) {
    const bool found = ((height <= FEWER && (visit(std::make_index_sequence<FEWER>{}), true)) || ...);
    if (!found) visit(std::make_index_sequence<MOST>{});
}

// rows: pointers to K elements of A, spread.  b: a panel [K][NR].  best, ids: [MR][NR], read and written.
// The accumulators live in registers because every index into them is a template constant.

template <class Op, int VECTORS, class C, std::size_t... I>
[[gnu::noinline]] void value_tile(const Spread<C>* const* rows, const C* b, int64_t K, C* best, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    constexpr int W = Simd<C>::WIDTH, NR = PANEL<C>;
    V acc[] = {load<V>(best + I / VECTORS * NR + I % VECTORS * W)...};
    const Spread<C>* const row[] = {rows[I / VECTORS]...};
    for (int64_t k = 0; k < K; ++k, b += NR) {
        const V bk[] = {load<V>(b + I % VECTORS * W)...};
        ((acc[I] = larger(Op::of(row[I][k], bk[I]), acc[I])), ...);
    }
    (store(best + I / VECTORS * NR + I % VECTORS * W, acc[I]), ...);
}

template <class C>
inline void rise(typename Simd<C>::Vector x, int64_t k, typename Simd<C>::Vector& best,
                 typename Simd<C>::IndexVector& id) {
    const typename Simd<C>::IndexVector rose = x > best, zero = {};
    best = larger(x, best);
    id = rose ? zero + typename Simd<C>::Index(k) : id;
}

// One vector of columns. ids receive the first k of the group where the maximum last rose, or keep what they held.
template <bool GROUPED, class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void winner_tile(const Spread<C>* const* rows, const C* b, int64_t K, Round round, C* best,
                                   typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const Spread<C>* const row[] = {rows[I]...};
    int64_t k = 0;
    if constexpr (GROUPED) {
        for (; k + GROUP <= K; k += GROUP, b += GROUP * NR) {
            const V b0 = load<V>(b), b1 = load<V>(b + NR), b2 = load<V>(b + 2 * NR), b3 = load<V>(b + 3 * NR);
            (rise<C>(round(larger(larger(Op::of(row[I][k], b0), Op::of(row[I][k + 1], b1)),
                                  larger(Op::of(row[I][k + 2], b2), Op::of(row[I][k + 3], b3)))),
                     k, acc[I], id[I]), ...);
        }
    }
    for (; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        (rise<C>(round(Op::of(row[I][k], bk)), k, acc[I], id[I]), ...);
    }
    (store(best + I * NR, acc[I]), ...);
    (store(ids + I * NR, id[I]), ...);
}

constexpr int64_t ANY_K = std::numeric_limits<int64_t>::max();

// The K of a block from which groups save more than the second look costs: as measured, with 16-bit lanes none. Where
// every candidate of its own would have to be rounded, groups pay almost at once.
template <class C, class Round>
constexpr int64_t groups_pay() {
    if (sizeof(C) == 2) return ANY_K;
    return std::is_same_v<Round, Unrounded> ? 96 : 0;
}

constexpr int UNCHANGED = -1;  // the maximum did not rise in this block of k
constexpr int NOTHING = -2;    // every candidate so far was a NaN to be ignored

// torch.max, one k at a time: the first NaN wins, or (ignoring) the first candidate that is none.
template <bool IGNORE_NAN, class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void exact_tile(const Spread<C>* const* rows, const C* b, int64_t K, Round round, C* best,
                                  typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const Spread<C>* const row[] = {rows[I]...};
    for (int64_t k = 0; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        const IV here = IV{} + typename Simd<C>::Index(k);
        const auto step = [&](C a, V& acc, IV& id) {
            const V x = round(Op::of(a, bk));
            IV wins;
            if constexpr (IGNORE_NAN)
                wins = (x > acc) | ((x == x) & (id == NOTHING));
            else
                wins = ~(x <= acc) & (acc == acc);
            acc = wins ? x : acc;
            id = wins ? here : id;
        };
        (step(row[I][k], acc[I], id[I]), ...);
    }
    (store(best + I * NR, acc[I]), ...);
    (store(ids + I * NR, id[I]), ...);
}

}  // namespace
