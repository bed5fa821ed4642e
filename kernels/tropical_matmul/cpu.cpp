// Tropical matrix product on the CPU:  C[m, n] = max_k A[m, k] + B[k, n]  (or min; or max of A · B), and its backward.
//
// min is max of negated operands: B always passes through a packed copy, so the signs cost nothing there.
//
//   task   = MC rows × NC columns of one batch; threads draw tasks from one counter
//   block  = KC of K; B's block is packed once a task into panels [KC][NR], sized to stay in the second-level cache
//   tile   = MR rows × NR columns, accumulators in registers: one add and one max a vector and k
//
// Winners: the main loop notes, per output, the group of four k in which the maximum last rose (strict, so the first
// group wins a tie), which costs one compare and one blend a group; the exact k is then found inside that group, the
// first whose sum equals the maximum.
//
// max instructions drop NaN. Every packed panel is therefore classified, and a pair of panels that can make a NaN takes
// a tile that follows torch.max instead: the price is paid by those tiles alone.
//
// Sums are rounded to the element type before they are compared. Rounding is monotone, so it may be done on the
// maximum of a group instead of on each sum.

#include "../native.hpp"

#include <cstdlib>
#include <memory>
#include <utility>

namespace {

// ------------------------------------------------------------------------------------------------ tiles

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

// rows: MR pointers to K elements of A.  b: a panel [K][NR].  best, ids: [MR][NR], read and written.
// The accumulators live in registers because every index into them is a template constant.

template <class Op, int VECTORS, class C, std::size_t... I>
[[gnu::noinline]] void value_tile(const C* const* rows, const C* b, int64_t K, C* best, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    constexpr int W = Simd<C>::WIDTH, NR = PANEL<C>;
    V acc[] = {load<V>(best + I / VECTORS * NR + I % VECTORS * W)...};
    const C* const row[] = {rows[I / VECTORS]...};
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

// One vector of columns, WINNER_ROWS rows. ids receive the first k of the group where the maximum last rose, or keep
// what they held.
template <class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void winner_tile(const C* const* rows, const C* b, int64_t K, Round round, C* best,
                                   typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const C* const row[] = {rows[I]...};
    int64_t k = 0;
    for (; k + GROUP <= K; k += GROUP, b += GROUP * NR) {
        const V b0 = load<V>(b), b1 = load<V>(b + NR), b2 = load<V>(b + 2 * NR), b3 = load<V>(b + 3 * NR);
        (rise<C>(round(larger(larger(Op::of(row[I][k], b0), Op::of(row[I][k + 1], b1)),
                              larger(Op::of(row[I][k + 2], b2), Op::of(row[I][k + 3], b3)))),
                 k, acc[I], id[I]), ...);
    }
    for (; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        (rise<C>(round(Op::of(row[I][k], bk)), k, acc[I], id[I]), ...);
    }
    (store(best + I * NR, acc[I]), ...);
    (store(ids + I * NR, id[I]), ...);
}

constexpr int UNCHANGED = -1;  // the maximum did not rise in this block of k
constexpr int NOTHING = -2;    // every candidate so far was a NaN to be ignored

// torch.max, one k at a time: the first NaN wins, or (ignoring) the first candidate that is none.
template <bool IGNORE_NAN, class Op, class C, class Round, std::size_t... I>
[[gnu::noinline]] void exact_tile(const C* const* rows, const C* b, int64_t K, Round round, C* best,
                                  typename Simd<C>::Index* ids, std::index_sequence<I...>) {
    using V = typename Simd<C>::Vector;
    using IV = typename Simd<C>::IndexVector;
    constexpr int NR = PANEL<C>;
    V acc[] = {load<V>(best + I * NR)...};
    IV id[] = {load<IV>(ids + I * NR)...};
    const C* const row[] = {rows[I]...};
    for (int64_t k = 0; k < K; ++k, b += NR) {
        const V bk = load<V>(b);
        const IV here = IV{} + typename Simd<C>::Index(k);
        const auto step = [&](const C a, V& acc, IV& id) {
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

// ------------------------------------------------------------------------------------------------ forward

struct Strides { int64_t batch, row, column; };

struct Problem {
    int64_t batch, M, K, N;
    const void *a, *b;
    Strides a_strides, b_strides;
    void* c;
    int32_t* winners;  // null: not wanted
    Strides c_strides;  // of c and of winners
    bool negate, ignore_nan;
    int64_t KC, MC, NC;
    int threads;
};

template <class T, class C, class Op, class Round>
class Product {
    using Index = typename Simd<C>::Index;
    static constexpr int W = Simd<C>::WIDTH, NR = PANEL<C>;
    static constexpr bool MAY_BE_NAN = !std::is_same_v<T, int32_t>;
    using Limits = std::numeric_limits<C>;
    static constexpr C LOWEST = Limits::has_infinity ? -Limits::infinity() : Limits::lowest();

    const Problem& p;
    const Round round;
    const int64_t KC;
    int64_t MC, NC;

    struct Scratch {
        C *b, *a, *best;
        Index* ids;
        std::vector<int> specials;
    };

  public:
    explicit Product(const Problem& problem)
        : p(problem),
          round(problem.negate),
          KC(std::min(problem.K, std::max<int64_t>(problem.KC, GROUP) / GROUP * GROUP)),
          MC(std::min(ceil_div(problem.M, MR), std::max<int64_t>(problem.MC / MR, 1)) * MR),
          NC(std::min(ceil_div(problem.N, NR), std::max<int64_t>(problem.NC / NR, 1)) * NR) {
        // halved until there are two a thread; rows first, while they are enough to pay for packing B once more
        while (p.threads > 1 && count_tasks() < 2 * p.threads && MC * NC > MR * NR) {
            if (MC > 64 || NC == NR)
                MC = ceil_div(MC / MR, 2) * MR;
            else
                NC = ceil_div(NC / NR, 2) * NR;
        }
    }

    void run() const {
        const int64_t tasks = count_tasks();
        const int threads = int(std::min<int64_t>(p.threads, tasks));
        const std::size_t best_size = MR * NR, bytes = scratch_bytes();
        // the caller allocates for all, so that the allocator keeps these pages from one call to the next
        using Memory = std::unique_ptr<void, decltype(&std::free)>;
        const Memory memory(std::aligned_alloc(CACHE_LINE, bytes * threads), &std::free);
        if (!memory) throw std::bad_alloc();
        std::vector<Scratch> scratch(threads);
        for (int t = 0; t < threads; ++t) {
            C* b = reinterpret_cast<C*>(static_cast<char*>(memory.get()) + bytes * t);
            C *a = b + KC * NC, *best = a + MR * round_up(KC);
            scratch[t] = {b, a, best, reinterpret_cast<Index*>(best + best_size), std::vector<int>(NC / NR)};
        }
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t rows = ceil_div(p.M, MC), columns = ceil_div(p.N, NC);
                run_task(task / (rows * columns), task % rows * MC, task / rows % columns * NC, scratch[t]);
            }
        });
    }

  private:
    int64_t count_tasks() const { return p.batch * ceil_div(p.M, MC) * ceil_div(p.N, NC); }

    static constexpr int64_t round_up(int64_t k) { return ceil_div(k, NR) * NR; }

    std::size_t scratch_bytes() const {
        const std::size_t size = (KC * NC + MR * round_up(KC) + MR * NR) * sizeof(C) + MR * NR * sizeof(Index);
        return (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    }

    void run_task(int64_t batch, int64_t m0, int64_t n0, Scratch& s) const {
        const int64_t m1 = std::min(m0 + MC, p.M), n1 = std::min(n0 + NC, p.N);
        for (int64_t k0 = 0; k0 < p.K; k0 += KC) {
            const int64_t K = std::min(KC, p.K - k0);
            for (int64_t n = n0; n < n1; n += NR)
                s.specials[(n - n0) / NR] = pack_b(batch, k0, K, n, std::min<int64_t>(NR, n1 - n), s.b + (n - n0) * K);
            for (int64_t m = m0; m < m1; m += MR) {
                const int64_t height = std::min<int64_t>(MR, m1 - m);
                const C* rows[MR];
                take_rows(batch, m, height, k0, K, s.a, rows);
                int special = 0;
                for (int64_t i = 0; i < height; ++i) special |= classify(rows[i], K);
                for (int64_t n = n0; n < n1; n += NR) {
                    const Tile tile{batch, m, n, height, std::min<int64_t>(NR, n1 - n), k0, K};
                    const bool with_nan = can_make_nan<Op>(special, s.specials[(n - n0) / NR]);
                    run_tile(tile, rows, s.b + (n - n0) * K, with_nan, s);
                }
            }
        }
    }

    // By strips of k, which stay in the first-level cache while their columns fill and are classified.
    int pack_b(int64_t batch, int64_t k0, int64_t K, int64_t n, int64_t width, C* panel) const {
        constexpr int64_t STRIP = 16;
        const int64_t row = p.b_strides.row, column = p.b_strides.column;
        const T* source = static_cast<const T*>(p.b) + batch * p.b_strides.batch + k0 * row + n * column;
        const C sign = p.negate ? C(-1) : C(1);
        int special = 0;
        for (int64_t strip = 0; strip < K; strip += STRIP) {
            const int64_t end = std::min(strip + STRIP, K);
            if (column == 1 && width == NR) {
                for (int64_t k = strip; k < end; ++k) {
                    for (int j = 0; j < NR; j += CACHE_LINE / sizeof(T))
                        __builtin_prefetch(source + (k + STRIP) * row + j);
                    for (int j = 0; j < NR; ++j) panel[k * NR + j] = sign * widen<C>(source[k * row + j]);
                }
            } else {
                for (int64_t j = 0; j < NR; ++j)
                    for (int64_t k = strip; k < end; ++k)
                        panel[k * NR + j] = j < width ? sign * widen<C>(source[k * row + j * column]) : C(0);
            }
            special |= classify(panel + strip * NR, (end - strip) * NR);
        }
        return special;
    }

    // Rows below the last are the last again.
    void take_rows(int64_t batch, int64_t m, int64_t height, int64_t k0, int64_t K, C* copy, const C** rows) const {
        const Strides& strides = p.a_strides;
        const T* source = static_cast<const T*>(p.a) + batch * strides.batch + m * strides.row + k0 * strides.column;
        for (int64_t i = 0; i < MR; ++i) {
            const T* row = source + std::min(i, height - 1) * strides.row;
            if constexpr (std::is_same_v<T, C>) {
                if (strides.column == 1 && !p.negate) {
                    rows[i] = row;
                    continue;
                }
            }
            C* target = copy + i * round_up(KC);
            rows[i] = target;
            const C sign = p.negate ? C(-1) : C(1);
            for (int64_t k = 0; k < K; ++k) target[k] = sign * widen<C>(row[k * strides.column]);
        }
    }

    struct Tile { int64_t batch, m, n, height, width, k0, K; };

    void run_tile(const Tile& tile, const C* const* rows, const C* panel, bool with_nan, Scratch& s) const {
        start(tile, s);
        using Rows = std::make_index_sequence<WINNER_ROWS>;
        if (MAY_BE_NAN && with_nan) {
            if constexpr (MAY_BE_NAN) {
                for_strips(tile, [&](int i, int j) {
                    const int at = i * NR + j;
                    if (p.ignore_nan)
                        exact_tile<true, Op>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at, Rows{});
                    else
                        exact_tile<false, Op>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at, Rows{});
                });
            }
        } else if (p.winners) {
            for (int i = 0; i < MR * NR; ++i) s.ids[i] = s.ids[i] == NOTHING ? 0 : s.ids[i];
            for_strips(tile, [&](int i, int j) {
                const int at = i * NR + j;
                winner_tile<Op>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at, Rows{});
            });
            find_in_groups(tile, rows, panel, s);
        } else {
            if (tile.width > W)
                value_tile<Op, NV>(rows, panel, tile.K, s.best, std::make_index_sequence<MR * NV>{});
            else
                value_tile<Op, 1>(rows, panel, tile.K, s.best, std::make_index_sequence<MR>{});
            for (int i = 0; i < MR * NR; ++i) s.best[i] = round(s.best[i]);
        }
        finish(tile, s);
    }

    template <class Strip>
    static void for_strips(const Tile& tile, const Strip& strip) {
        for (int i = 0; i < tile.height; i += WINNER_ROWS)
            for (int j = 0; j < tile.width; j += W) strip(i, j);
    }

    // The first k of the noted group whose rounded sum is the maximum. A tail k, noted on its own, finds itself.
    void find_in_groups(const Tile& tile, const C* const* rows, const C* panel, Scratch& s) const {
        const Index last = Index(tile.K - 1);
        for (int64_t i = 0; i < tile.height; ++i) {
            const C* const row = rows[i];
            const C* const best = s.best + i * NR;
            Index* const ids = s.ids + i * NR;
            for (int j = 0; j < NR; ++j) {
                const Index k0 = std::max<Index>(ids[j], 0);
                const Index k1 = std::min<Index>(k0 + 1, last), k2 = std::min<Index>(k0 + 2, last);
                const C x0 = round(Op::of(row[k0], panel[k0 * NR + j]));
                const C x1 = round(Op::of(row[k1], panel[k1 * NR + j]));
                const C x2 = round(Op::of(row[k2], panel[k2 * NR + j]));
                const Index skip = x0 < best[j] ? (x1 < best[j] ? (x2 < best[j] ? 3 : 2) : 1) : 0;
                ids[j] = ids[j] < 0 ? ids[j] : ids[j] + skip;
            }
        }
    }

    // best and ids before a block of k: nothing at the first, what the output holds at a later one.
    void start(const Tile& tile, Scratch& s) const {
        const Index fresh = p.ignore_nan ? NOTHING : 0;
        for (int i = 0; i < MR * NR; ++i) s.best[i] = LOWEST;
        for (int i = 0; i < MR * NR; ++i) s.ids[i] = fresh;
        if (tile.k0 == 0) return;
        const C sign = p.negate ? C(-1) : C(1);
        at_outputs(tile, [&](int i, int64_t at) {
            if (p.winners && p.winners[at] < 0) return;
            s.best[i] = sign * widen<C>(static_cast<const T*>(p.c)[at]);
            s.ids[i] = UNCHANGED;
        });
    }

    void finish(const Tile& tile, const Scratch& s) const {
        const C sign = p.negate ? C(-1) : C(1);
        const bool last = tile.k0 + tile.K == p.K;
        const bool zero = std::is_same_v<Op, Times> && last && p.ignore_nan;
        at_outputs(tile, [&](int i, int64_t at) {
            const bool nothing = s.ids[i] == NOTHING;
            static_cast<T*>(p.c)[at] = narrow_exact<T>(zero && nothing ? C(0) : C(sign * s.best[i]));
            if (p.winners && s.ids[i] != UNCHANGED) p.winners[at] = nothing ? -1 : int32_t(tile.k0 + s.ids[i]);
        });
    }

    template <class Visit>
    void at_outputs(const Tile& tile, const Visit& visit) const {
        const int64_t origin = tile.batch * p.c_strides.batch + tile.m * p.c_strides.row + tile.n * p.c_strides.column;
        for (int64_t i = 0; i < tile.height; ++i)
            for (int64_t j = 0; j < tile.width; ++j)
                visit(int(i * NR + j), origin + i * p.c_strides.row + j * p.c_strides.column);
    }
};

// Whether no sum or product of any pair leaves int32, with its lowest value to spare for the sign flip of min.
[[maybe_unused]] bool int32_is_wide_enough(const Problem& p, bool times) {
    const auto range = [&](const void* x, int64_t rows, int64_t columns, const Strides& s) {
        const int32_t* source = static_cast<const int32_t*>(x);
        int32_t low = std::numeric_limits<int32_t>::max(), high = std::numeric_limits<int32_t>::lowest();
        for (int64_t i = 0; i < p.batch; ++i)
            for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < columns; ++c) {
                    const int32_t value = source[i * s.batch + r * s.row + c * s.column];
                    low = std::min(low, value);
                    high = std::max(high, value);
                }
        return std::pair<int64_t, int64_t>(low, high);
    };
    constexpr int64_t bound = std::numeric_limits<int32_t>::max();
    const auto [a_low, a_high] = range(p.a, p.M, p.K, p.a_strides);
    const auto [b_low, b_high] = range(p.b, p.K, p.N, p.b_strides);
    if (a_low < -bound || b_low < -bound) return false;
    if (times) return std::max(-a_low, a_high) * std::max(-b_low, b_high) <= bound;
    return a_high + b_high <= bound && a_low + b_low >= -bound;
}

template <class Op>
void run(const Problem& p) {
    if constexpr (!std::is_same_v<Element, int32_t>)
        Product<Element, Compute, Op, Rounding>(p).run();
    else if (int32_is_wide_enough(p, std::is_same_v<Op, Times>))
        Product<int32_t, int32_t, Op, Unrounded>(p).run();
    else  // a double holds every sum of two int32 exactly, and of a product all that decides how it saturates
        Product<int32_t, double, Op, ToInt32>(p).run();
}

// ------------------------------------------------------------------------------------------------ backward

struct Scatter {
    int64_t batch, M, K, N;
    const void* dc;
    Strides dc_strides;
    const int32_t* winners;  // [batch, M, N], contiguous
    const void *a, *b;       // null for sums: the factor is 1
    Strides a_strides, b_strides;
    void *da, *db;           // contiguous, null: not wanted
    int threads;
};

// Rows of da and columns of db belong to one task each, summed in one order: no atomics, the same bits on any number of
// threads.
class Backward {
    static constexpr int64_t ROWS = 4;  // at a time: one row's few winners wait for one another's additions
    static constexpr int64_t COLUMNS = 32;
    static constexpr int64_t AHEAD = 8;  // rows to fetch early: no hardware prefetcher follows their stride

    const Scatter& p;
    const Element *const dc, *const a, *const b;
    mutable std::atomic<bool> in_range{true};

  public:
    explicit Backward(const Scatter& scatter)
        : p(scatter), dc(static_cast<const Element*>(scatter.dc)), a(static_cast<const Element*>(scatter.a)),
          b(static_cast<const Element*>(scatter.b)) {}

    bool run() const {
        const int64_t row_tasks = p.da ? ceil_div(p.M, ROWS) : 0, column_tasks = p.db ? ceil_div(p.N, COLUMNS) : 0;
        const int64_t tasks = p.batch * (row_tasks + column_tasks);
        const int threads = int(std::max<int64_t>(std::min<int64_t>(p.threads, tasks), 1));
        std::vector<std::vector<Compute>> sums(threads, std::vector<Compute>(p.K * (p.db ? COLUMNS : ROWS)));
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t part = task % (row_tasks + column_tasks), batch = task / (row_tasks + column_tasks);
                if (part < row_tasks)
                    to_rows(batch, part * ROWS, sums[t].data());
                else
                    to_columns(batch, (part - row_tasks) * COLUMNS, sums[t].data());
            }
        });
        return in_range;
    }

  private:
    bool is_winner(int32_t k) const {
        if (uint64_t(uint32_t(k)) < uint64_t(p.K)) return true;
        if (k != -1) in_range.store(false, std::memory_order_relaxed);
        return false;
    }

    void to_rows(int64_t batch, int64_t m0, Compute* sums) const {
        const int64_t height = std::min(ROWS, p.M - m0);
        const int32_t* winners = p.winners + (batch * p.M + m0) * p.N;
        const Element* upstream = dc + batch * p.dc_strides.batch + m0 * p.dc_strides.row;
        const Element* factors = b ? b + batch * p.b_strides.batch : nullptr;
        std::fill_n(sums, ROWS * p.K, Compute(0));
        const auto add = [&](int64_t i, int64_t n) {
            const int32_t k = winners[i * p.N + n];
            if (!is_winner(k)) return;
            const Compute g = widen<Compute>(upstream[i * p.dc_strides.row + n * p.dc_strides.column]);
            const int64_t factor = k * p.b_strides.row + n * p.b_strides.column;
            sums[i * p.K + k] += factors ? g * widen<Compute>(factors[factor]) : g;
        };
        if (height == ROWS)
            for (int64_t n = 0; n < p.N; ++n)
                for (int64_t i = 0; i < ROWS; ++i) add(i, n);
        else
            for (int64_t n = 0; n < p.N; ++n)
                for (int64_t i = 0; i < height; ++i) add(i, n);
        Element* target = static_cast<Element*>(p.da) + (batch * p.M + m0) * p.K;
        for (int64_t i = 0; i < height * p.K; ++i) target[i] = rounded(sums[i]);
    }

    void to_columns(int64_t batch, int64_t n0, Compute* sums) const {
        const int64_t width = std::min(COLUMNS, p.N - n0);
        std::fill_n(sums, p.K * COLUMNS, Compute(0));
        for (int64_t m = 0; m < p.M; ++m) {
            const int32_t* winners = p.winners + (batch * p.M + m) * p.N + n0;
            const Element* upstream = dc + batch * p.dc_strides.batch + m * p.dc_strides.row + n0 * p.dc_strides.column;
            const Element* factors = a ? a + batch * p.a_strides.batch + m * p.a_strides.row : nullptr;
            __builtin_prefetch(winners + AHEAD * p.N);
            __builtin_prefetch(upstream + AHEAD * p.dc_strides.row);
            for (int64_t j = 0; j < width; ++j) {
                const int32_t k = winners[j];
                if (!is_winner(k)) continue;
                const Compute g = widen<Compute>(upstream[j * p.dc_strides.column]);
                sums[k * COLUMNS + j] += factors ? g * widen<Compute>(factors[k * p.a_strides.column]) : g;
            }
        }
        Element* target = static_cast<Element*>(p.db) + batch * p.K * p.N + n0;
        for (int64_t k = 0; k < p.K; ++k)
            for (int64_t j = 0; j < width; ++j) target[k * p.N + j] = rounded(sums[k * COLUMNS + j]);
    }

    static Element rounded(Compute x) { return narrow_exact<Element>(Rounding(false)(x)); }
};

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// sizes: batch, M, K, N.  strides: three of a, three of b, in elements.  K ≥ 1, no size is 0.

extern "C" int tropical_forward(int times, int negate, int ignore_nan, const int64_t* sizes, const void* a,
                                const void* b, const int64_t* strides, void* c, int32_t* winners, int64_t KC,
                                int64_t MC, int64_t NC, int threads) {
    const int64_t batch = sizes[0], M = sizes[1], K = sizes[2], N = sizes[3];
    const Strides of_a{strides[0], strides[1], strides[2]}, of_b{strides[3], strides[4], strides[5]}, of_c{M * N, N, 1};
    const Problem problem{batch, M, K, N, a, b, of_a, of_b, c, winners, of_c, negate != 0, ignore_nan != 0,
                          KC, MC, NC, threads};
    return guarded([&] {
        times ? run<Times>(problem) : run<Plus>(problem);
        return true;
    });
}

// strides: three each of dc, a, b, in elements.  a and b: null for sums.  da, db: null where not wanted.
extern "C" int tropical_scatter(const int64_t* sizes, const void* dc, const int32_t* winners, const void* a,
                                const void* b, const int64_t* strides, void* da, void* db, int threads) {
    const Strides of_dc{strides[0], strides[1], strides[2]}, of_a{strides[3], strides[4], strides[5]};
    const Strides of_b{strides[6], strides[7], strides[8]};
    const Scatter scatter{sizes[0], sizes[1], sizes[2], sizes[3], dc, of_dc, winners, a, b, of_a, of_b,
                          da, db, threads};
    return guarded([&] { return Backward(scatter).run(); });
}

// parallel: see torch_team; null for fresh threads at every call.
extern "C" void tropical_set_team(void (*parallel)(void (*)(void*), void*, unsigned, unsigned)) { torch_team = parallel; }
