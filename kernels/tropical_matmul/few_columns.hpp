// The tropical product of a few columns and rows that are contiguous along K. It is bound by memory: vectors lie along K,
// and the large matrix is read once, where it is.

#pragma once

#include "tiles.hpp"
#include "problem.hpp"

namespace {

constexpr int64_t FEW = 4;         // columns that go along k, as measured
constexpr int64_t ALONG_ROWS = 4;  // of A, for which a piece of a column is read once
constexpr int STEPS = 4;           // vectors of k between two notes of where the maximum rose

template <class C>
constexpr int64_t SPAN = STEPS * Simd<C>::WIDTH;

// Vectors lie along k. rows, x: K ≥ SPAN elements. The last span ends at K and may overlap the one before: what was seen
// does not rise again. A candidate that is NaN is skipped, as the maximum is the second operand.
// `lowest`: where the maxima start, or null if in best and ids. `ahead`: elements from a row to one that is read soon.
// Returns, if CLASSIFIES, whether an element of the rows is infinite or NaN: memory is then read once for both.
template <bool CLASSIFIES, class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] bool along_k(const C* const* rows, int64_t ahead, const C* x, int64_t K, typename Simd<C>::Index span,
                               Round round, const C* lowest, C* best, typename Simd<C>::Index* ids,
                               std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    using Index = typename Simd<C>::Index;
    constexpr int W = Simd<C>::WIDTH;
    constexpr Index MAGNITUDE = std::numeric_limits<Index>::max();
    IV magnitude[] = {IV{} + Index(0 * I)...};
    V acc[] = {lowest ? V{} + *lowest : load<V>(best + I * W)...};
    IV id[] = {lowest ? IV{} : load<IV>(ids + I * W)...};
    const C* const row[] = {rows[I]...};
    for (int64_t start = 0; start < K; start += SPAN<C>, ++span) {
        const int64_t k = std::min(start, K - SPAN<C>);
        const V x0 = load<V>(x + k), x1 = load<V>(x + k + W), x2 = load<V>(x + k + 2 * W), x3 = load<V>(x + k + 3 * W);
        const auto step = [&](const C* a, V& acc, IV& id, IV& magnitude) {
            for (int line = 0; line < STEPS * VECTOR_BYTES; line += int(CACHE_LINE))
                __builtin_prefetch(reinterpret_cast<const char*>(a + ahead) + line);
            const V a0 = load<V>(a), a1 = load<V>(a + W), a2 = load<V>(a + 2 * W), a3 = load<V>(a + 3 * W);
            const V first = larger(Op::of(x1, a1), larger(Op::of(x0, a0), acc));
            const V top = larger(Op::of(x3, a3), larger(Op::of(x2, a2), first));
            rise<C>(round(top), span, acc, id);
            if constexpr (CLASSIFIES)
                for (const V& each : {a0, a1, a2, a3}) magnitude = larger(bit_cast<IV>(each) & MAGNITUDE, magnitude);
        };
        (step(row[I] + k, acc[I], id[I], magnitude[I]), ...);
    }
    (store(best + I * W, acc[I]), ...);
    (store(ids + I * W, id[I]), ...);
    if constexpr (!CLASSIFIES) return false;
    IV largest = {};
    ((largest = larger(magnitude[I], largest)), ...);
    return largest_lane<Index, W>(largest) >= bit_cast<Index>(std::numeric_limits<C>::infinity());
}

// For a few columns of B and rows of A that are contiguous in memory, which are read once, where they lie: nothing is
// packed but the columns. Winners: as in the tiles the span in which the maximum last rose, then the first k in it.
template <class T, class C, class Round, class Op, class Other>
class AlongK : Semiring<T, C, Round, Op, Other> {
    using Base = Semiring<T, C, Round, Op, Other>;
    using typename Base::Out;
    using Base::MAY_BE_NAN, Base::COMPLEMENTS, Base::LOWEST;
    using Base::p, Base::round, Base::flip, Base::with_op, Base::with_winners;
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    using Index = typename Simd<C>::Index;
    static constexpr int W = Simd<C>::WIDTH;
    static constexpr bool DIRECT = std::is_same_v<T, C>;  // then −(x + a) is −x − a, and a is read as it is
    static constexpr int64_t CHUNK = 16 * SPAN<C>;        // of k: rows of it stay in the first-level cache
    using Negated = std::conditional_t<COMPLEMENTS, SaturatedMinus, Minus>;

    const int64_t rows_a_task;

    struct Scratch {
        std::vector<C> x;           // [N][K]
        std::vector<int> specials;  // [N][chunks] of x
        std::vector<C> copy, best;  // [ALONG_ROWS][CHUNK], [N][ALONG_ROWS][W]
        std::vector<Index> ids;
    };

  public:
    static bool takes(const Problem& p) {
        return p.N <= FEW && p.a_strides.column == 1 && p.K >= SPAN<C> &&
               p.K / SPAN<C> < std::numeric_limits<Index>::max();
    }

    explicit AlongK(const Problem& problem)
        : Base(problem),
          rows_a_task(ceil_div(ceil_div(p.batch * p.M, p.tasks * p.threads), ALONG_ROWS) * ALONG_ROWS) {}

    void run() const {
        const int64_t blocks = ceil_div(p.M, rows_a_task), tasks = p.batch * blocks;
        const int threads = int(std::min<int64_t>(p.threads, tasks));
        const int64_t outputs = p.N * ALONG_ROWS;
        const Scratch empty{std::vector<C>(p.N * p.K),     std::vector<int>(p.N * ceil_div(p.K, CHUNK)),
                            std::vector<C>(DIRECT ? 0 : ALONG_ROWS * CHUNK), std::vector<C>(outputs * W),
                            std::vector<Index>(outputs * W)};
        std::vector<Scratch> scratch(threads, empty);
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
                run_task(task / blocks, task % blocks * rows_a_task, scratch[t]);
        });
    }

  private:
    struct Place { int64_t batch, m, n; };

    int64_t offset_of(Place place) const {
        return place.batch * p.c_strides.batch + place.m * p.c_strides.row + place.n * p.c_strides.column;
    }
    Out& output_at(Place place) const { return static_cast<Out*>(p.c)[offset_of(place)]; }

    template <class Visit>
    void with_op_here(const Visit& visit) const {
        if constexpr (DIRECT)
            if (p.negate) return visit(Negated{});
        with_op(visit);
    }

    void run_task(int64_t batch, int64_t m0, Scratch& s) const {
        const int64_t chunks = ceil_div(p.K, CHUNK), m1 = std::min(m0 + rows_a_task, p.M);
        const int64_t ahead = DIRECT ? ALONG_ROWS * p.a_strides.row : 0;
        take_columns(batch, s);
        for (int64_t m = m0; m < m1; m += ALONG_ROWS) {
            const T* rows[ALONG_ROWS];  // below the last the last again
            for (int64_t i = 0; i < ALONG_ROWS; ++i)
                rows[i] = static_cast<const T*>(p.a) + batch * p.a_strides.batch +
                          std::min(m + i, m1 - 1) * p.a_strides.row;
            unsigned suspects = 0;  // bit n: whether a NaN can be among the candidates of these rows and column n
            for (int64_t chunk = 0; chunk < chunks; ++chunk) {
                const int64_t k0 = std::min(chunk * CHUNK, p.K - SPAN<C>), K = std::min(CHUNK, p.K - k0);
                const C* pieces[ALONG_ROWS];
                for (int64_t i = 0; i < ALONG_ROWS; ++i) pieces[i] = piece(rows[i] + k0, K, s.copy.data() + i * CHUNK);
                with_op_here([&](auto op) {
                    using Chosen = decltype(op);
                    int special = 0;
                    for (int64_t n = 0; n < p.N; ++n) {
                        const int64_t at = n * ALONG_ROWS * W;
                        const auto run = [&](auto classifies) {
                            return along_k<decltype(classifies)::value, Chosen>(
                                pieces, ahead, s.x.data() + n * p.K + k0, K, Index(chunk * (CHUNK / SPAN<C>)), round,
                                chunk == 0 ? &LOWEST : nullptr, s.best.data() + at, s.ids.data() + at,
                                std::make_index_sequence<ALONG_ROWS>{});
                        };
                        if (!MAY_BE_NAN || p.ignore_nan || n > 0)
                            run(std::false_type{});
                        else if (run(std::bool_constant<MAY_BE_NAN>{}))
                            for (const C* each : pieces) special |= classify(each, K);
                        suspects |= unsigned(can_make_nan<Chosen>(special, s.specials[n * chunks + chunk])) << n;
                    }
                });
            }
            const int64_t height = std::min(ALONG_ROWS, m1 - m);
            if (!suspects && !p.winners) {
                for (int64_t n = 0; n < p.N; ++n)
                    for (int64_t i = 0; i < height; ++i)
                        output_at({batch, m + i, n}) =
                            narrow_exact<Out>(flip(largest_lane<C, W>(load<V>(s.best.data() + (n * ALONG_ROWS + i) * W))));
                continue;
            }
            with_op_here([&](auto op) {
                for (int64_t n = 0; n < p.N; ++n)
                    for (int64_t i = 0; i < height; ++i)
                        finish<decltype(op)>(rows[i], {batch, m + i, n}, n * ALONG_ROWS + i, suspects >> n & 1, s);
            });
        }
    }

    void take_columns(int64_t batch, Scratch& s) const {
        const auto flipped = flip;
        const int64_t chunks = ceil_div(p.K, CHUNK);
        const T* source = static_cast<const T*>(p.b) + batch * p.b_strides.batch;
        for (int64_t n = 0; n < p.N; ++n) {
            C* x = s.x.data() + n * p.K;
            for (int64_t k = 0; k < p.K; ++k)
                x[k] = flipped(widen<C>(source[k * p.b_strides.row + n * p.b_strides.column]));
            if constexpr (MAY_BE_NAN)
                for (int64_t chunk = 0; chunk < (p.ignore_nan ? 0 : chunks); ++chunk)
                    s.specials[n * chunks + chunk] = classify(x + chunk * CHUNK, std::min(CHUNK, p.K - chunk * CHUNK));
        }
    }

    const C* piece(const T* row, int64_t K, C* copy) const {
        if constexpr (DIRECT) {
            return row;
        } else {
            const auto flipped = flip;
            for (int64_t k = 0; k < K; ++k) copy[k] = flipped(widen<C>(row[k]));
            return copy;
        }
    }

    template <class Chosen>
    [[gnu::noinline]] void finish(const T* row, Place place, int64_t output, bool suspect, const Scratch& s) const {
        const C* const x = s.x.data() + place.n * p.K;
        const auto candidate = [&](int64_t k) {
            const C a = DIRECT ? widen<C>(row[k]) : flip(widen<C>(row[k]));
            return C(round(C(Chosen::of(x[k], a))));
        };
        const auto find = [&](const auto& is_so) {  // the first k whose candidate is so, or K
            int64_t k = 0;
            while (k < p.K && !is_so(candidate(k))) ++k;
            return k;
        };
        const C* const best = s.best.data() + output * W;
        const Index* const ids = s.ids.data() + output * W;
        const V tops = load<V>(best);
        C value = largest_lane<C, W>(tops);
        const int64_t nan = suspect ? find([](C x) { return x != x; }) : p.K;
        int64_t winner = nan;
        if (nan < p.K) {
            value = std::numeric_limits<C>::quiet_NaN();
        } else if (p.winners) {
            const Index span = ~largest_lane<Index, W>(tops == value - V{} ? ~load<IV>(ids) : IV{} + std::numeric_limits<Index>::min());
            Index ahead = SPAN<C>;
            const int64_t start = std::min(span * SPAN<C>, p.K - SPAN<C>);
            for (int i = 0; i < SPAN<C>; ++i)
                ahead = std::min(ahead, candidate(start + i) == value ? Index(i) : Index(SPAN<C>));
            // where nothing rose above the lowest value, no span was noted
            winner = ahead < SPAN<C> ? start + ahead : find([&](C x) { return x == value; });
        }
        const bool nothing = p.winners && winner == p.K;  // every candidate was a NaN to be ignored
        output_at(place) = narrow_exact<Out>(nothing && p.times ? C(0) : flip(value));
        with_winners([&](auto* winners) {
            winners[offset_of(place)] = std::remove_reference_t<decltype(*winners)>(nothing ? -1 : winner);
        });
    }
};

}  // namespace
