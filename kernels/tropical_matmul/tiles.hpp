// The tiles of the tropical product: MR rows × NR columns of C, accumulators in registers, one add and one max a vector
// and k.
//
// Winners: the loop of the values alone runs over a stretch of k, and then notes the outputs whose maximum rose in it
// (strictly, so that the first stretch wins a tie): one compare and two stores an output vector and stretch. The exact k
// is found inside the noted stretch, the first whose sum equals the maximum. That second look at every output is dear:
// where few k leave little to save, every k is noted.
//
// max instructions drop NaN: exact_tile follows torch.max instead.
//
// Sums are rounded to the element type before they are compared. Rounding is monotone, so it may be done on the
// maximum of a stretch instead of on each sum.

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
constexpr int STRETCH = 32;  // k from one note to the next

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

// acc[I] = max(acc[I], max over k of row ⊗ column), of the output vectors I: VECTORS a row.
template <class Op, int VECTORS, class C, std::size_t... I>
inline void raise(const Spread<C>* const* row, const C* b, int64_t from, int64_t to, typename Simd<C>::Vector* acc,
                  std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    for (int64_t k = from; k < to; ++k, b += PANEL<C>) {
        const V bk[] = {load<V>(b + I % VECTORS * Simd<C>::WIDTH)...};
        ((acc[I] = larger(Op::of(row[I][k], bk[I]), acc[I])), ...);
    }
}

template <class C, int VECTORS>
constexpr int at_vector(std::size_t i) { return int(i / VECTORS * PANEL<C> + i % VECTORS * Simd<C>::WIDTH); }

template <class Op, int VECTORS, class C, std::size_t... I>
[[gnu::noinline]] void value_tile(const Spread<C>* const* rows, const C* b, int64_t K, C* best,
                                  std::index_sequence<I...> all) {
    using V = typename Simd<C>::Vector;
    V acc[] = {load<V>(best + at_vector<C, VECTORS>(I))...};
    const Spread<C>* const row[] = {rows[I / VECTORS]...};
    raise<Op, VECTORS, C>(row, b, 0, K, acc, all);
    (store(best + at_vector<C, VECTORS>(I), acc[I]), ...);
}

// ids receive the first k of the stretch where the maximum last rose, or keep what they held.
template <class Op, int VECTORS, class C, class Round, std::size_t... I>
[[gnu::noinline]] void noted_tile(const Spread<C>* const* rows, const C* b, int64_t K, Round round,
                                  C* best, typename Simd<C>::Index* ids, std::index_sequence<I...> all) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    V acc[] = {load<V>(best + at_vector<C, VECTORS>(I))...};
    const Spread<C>* const row[] = {rows[I / VECTORS]...};
    for (int64_t k = 0; k < K; k += STRETCH, b += STRETCH * PANEL<C>) {
        raise<Op, VECTORS, C>(row, b, k, std::min<int64_t>(k + STRETCH, K), acc, all);
        const IV here = IV{} + typename Simd<C>::Index(k);
        const auto note = [&](V& top, C* best, typename Simd<C>::Index* id) {
            top = round(top);
            store_where_larger<C>(id, here, top, load<V>(best));
            store(best, top);
        };
        (note(acc[I], best + at_vector<C, VECTORS>(I), ids + at_vector<C, VECTORS>(I)), ...);
    }
}

// The first of the STRETCH candidates a ⊗ b that rounds to `best`; STRETCH or more if none does.
template <class Op, class C, class Round>
inline int first_equal(const C* a, const C* b, C best, Round round) {
    using V = typename Simd<C>::Vector;
    constexpr int W = Simd<C>::WIDTH;
    uint64_t equal = 0;
    for (int i = 0; i < STRETCH; i += W)
        equal |= uint64_t(equal_lanes<C>(round(Op::of(load<V>(a + i), load<V>(b + i))), best - V{})) << i;
    return __builtin_ctzll(equal | uint64_t(1) << STRETCH);
}

template <class C>
inline void rise(typename Simd<C>::Vector x, int64_t k, typename Simd<C>::Vector& best,
                 typename Simd<C>::IndexVector& id) {
    const typename Simd<C>::IndexVector rose = x > best, zero = {};
    best = larger(x, best);
    id = rose ? zero + typename Simd<C>::Index(k) : id;
}

// One vector of columns. ids receive the first k where the maximum last rose, or keep what they held.
template <class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void winner_tile(const Spread<C>* const* rows, const C* b, int64_t K, Round round, C* best,
                                   typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const Spread<C>* const row[] = {rows[I]...};
    for (int64_t k = 0; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        (rise<C>(round(Op::of(row[I][k], bk)), k, acc[I], id[I]), ...);
    }
    (store(best + I * NR, acc[I]), ...);
    (store(ids + I * NR, id[I]), ...);
}

// The K of a block from which stretches save more than the second look costs. Where every candidate of its own would
// have to be rounded, they pay almost at once.
template <class Round>
constexpr int64_t STRETCHES_PAY = std::is_same_v<Round, Unrounded> ? 192 : STRETCH;

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
        const auto step = [&](const Spread<C>& a, V& acc, IV& id) {
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
