// The tiles of the tropical convolution: ROWS filters × a few vectors of outputs, accumulators in registers, one add and
// one max a vector and tap. A lone filter, as of a depthwise convolution, takes rows of outputs instead: their windows
// share what is loaded.
//
// Winners: a compare and a blend a tap; where K is large or sums must be rounded, one for four taps, and the exact k is
// then found among the four.
//
// max instructions drop NaN: exact_tile follows torch.max instead.

#pragma once

#include <utility>

#include "geometry.hpp"

namespace {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int ACCUMULATORS = 16;  // of 32 registers
#else
constexpr int ACCUMULATORS = 8;  // of 16 registers
#endif
constexpr int GROUP = 4;  // taps a compare-and-blend; find_in_groups is written for four
constexpr int64_t MANY_TAPS = 640;  // where finding the tap within its group costs less than the blends it saves

// x: planes at the first f of the tile.  w: [K][ROWS].  best, ids: [ROWS][pitch] at the first f.
// I runs over ROWS × vectors; the accumulators live in registers because every index into them is a constant.

template <int ROWS, class C, std::size_t... I>
[[gnu::noinline]] void value_tile(const C* x, const int64_t* offset, const C* w, int64_t K, C start, C* best,
                                  int64_t pitch, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    constexpr int W = Simd<C>::WIDTH, VECTORS = sizeof...(I) / ROWS;
    V acc[] = {(void(I), V{} + start)...};
    for (int64_t k = 0; k < K; ++k, w += ROWS) {
        const C* const xk = x + offset[k];
        ((acc[I] = larger(Plus::of(w[I / VECTORS], load<V>(xk + I % VECTORS * W)), acc[I])), ...);
    }
    (store(best + I / VECTORS * pitch + I % VECTORS * W, acc[I]), ...);
}

// One filter at ROWS rows of outputs, whose windows share rows of the plane: an unaligned load serves as many of them as
// it can. offset: of the first row of taps, channel after channel, `taps` apart. pitch: of a row; line: of best's rows.
template <int ROWS, class C, std::size_t... I>
[[gnu::noinline]] void row_tile(const C* x, const int64_t* offset, const C* w, int64_t channels, int64_t taps,
                                int64_t width, int64_t pitch, C start, C* best, int64_t line,
                                std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    constexpr int W = Simd<C>::WIDTH, VECTORS = sizeof...(I) / ROWS;
    V acc[] = {(void(I), V{} + start)...};
    for (int64_t c = 0; c < channels; ++c, offset += taps, w += taps)
        for (int64_t row = 0; row < taps / width + ROWS - 1; ++row)
            for (int64_t j = 0; j < width; ++j) {
                const C* const xk = x + offset[j] + row * pitch;
                const V seen[] = {load<V>(xk + I % VECTORS * W)...};
                const C* const wk = w + row * width + j;
                const auto raise = [&](int64_t r, V& acc, V seen) {
                    if (uint64_t(row - r) < uint64_t(taps / width)) acc = larger(Plus::of(wk[-r * width], seen), acc);
                };
                (raise(I / VECTORS, acc[I], seen[I]), ...);
            }
    (store(best + I / VECTORS * line + I % VECTORS * W, acc[I]), ...);
}

// ids: the first tap, or the first of its group, at which the maximum last rose; NOTHING where it never did.
template <int ROWS, int TAPS, class C, class Round, std::size_t... I>
[[gnu::noinline]] void winner_tile(const C* x, const int64_t* offset, const C* w, int64_t K, Round round, C start,
                                   C* best, typename Simd<C>::Index* ids, int64_t pitch, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int W = Simd<C>::WIDTH, VECTORS = sizeof...(I) / ROWS;
    V acc[] = {(void(I), V{} + start)...};
    IV id[] = {(void(I), IV{} + NOTHING)...};
    const auto rise = [](V x, int64_t k, V& best, IV& id) {
        const IV rose = x > best, here = IV{} + typename Simd<C>::Index(k);
        best = larger(x, best);
        id = rose ? here : id;
    };
    int64_t k = 0;
    if constexpr (TAPS == GROUP) {
        for (; k + GROUP <= K; k += GROUP, w += GROUP * ROWS) {
            const C *x0 = x + offset[k], *x1 = x + offset[k + 1], *x2 = x + offset[k + 2], *x3 = x + offset[k + 3];
            const auto sum = [&](const C* xk, int tap, std::size_t i) {
                return Plus::of(w[tap * ROWS + i / VECTORS], load<V>(xk + i % VECTORS * W));
            };
            (rise(round(larger(larger(sum(x0, 0, I), sum(x1, 1, I)), larger(sum(x2, 2, I), sum(x3, 3, I)))), k, acc[I],
                  id[I]), ...);
        }
    }
    for (; k < K; ++k, w += ROWS) {
        const C* const xk = x + offset[k];
        (rise(round(Plus::of(w[I / VECTORS], load<V>(xk + I % VECTORS * W))), k, acc[I], id[I]), ...);
    }
    (store(best + I / VECTORS * pitch + I % VECTORS * W, acc[I]), ...);
    (store(ids + I / VECTORS * pitch + I % VECTORS * W, id[I]), ...);
}

// torch.max over the taps inside the image, one row and vector: the first NaN wins, or (ignoring) none does.
// mask: which cells of a channel's planes are inside; each channel has `taps`.
template <bool IGNORE_NAN, class C, class Round>
[[gnu::noinline]] void exact_tile(const C* x, const typename Simd<C>::Index* mask, const int64_t* offset, const C* w,
                                  int64_t rows, int64_t K, int64_t taps, Round round, C start, C* best,
                                  typename Simd<C>::Index* ids) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    V acc = V{} + start;
    IV id = IV{} + NOTHING;
    for (int64_t k = 0; k < K; ++k) {
        const V sum = round(w[k * rows] + load<V>(x + offset[k]));
        const IV inside = load<IV>(mask + offset[k % taps]), none = id == NOTHING;
        IV wins;
        if constexpr (IGNORE_NAN)
            wins = inside & (sum == sum) & ((sum > acc) | none);
        else
            wins = inside & ((~(sum <= acc) & (acc == acc)) | none);
        acc = wins ? sum : acc;
        id = wins ? IV{} + typename Simd<C>::Index(k) : id;
    }
    store(best, acc);
    store(ids, id);
}

}  // namespace
