// The tropical product of any shape, by blocks that are packed.
//
//   task   = MC rows × NC columns of one batch; threads draw tasks from one counter
//   block  = KC of K; B's block is packed once a task into panels [KC][NR], sized to stay in the second-level cache
//   tile   = MR rows × NR columns (tiles.hpp)
//
// Every packed panel is classified, and a pair of panels that can make a NaN takes a tile that follows torch.max: the
// price is paid by those tiles alone.

#pragma once

#include <cstdlib>
#include <memory>

#include "tiles.hpp"
#include "problem.hpp"

namespace {

template <class T, class C, class Round, class Op, class Other>
class Product : Semiring<T, C, Round, Op, Other> {
    using Base = Semiring<T, C, Round, Op, Other>;
    using typename Base::Out;
    using Base::MAY_BE_NAN, Base::COMPLEMENTS, Base::LOWEST;
    using Base::p, Base::round, Base::flip, Base::with_op, Base::with_winners;
    using Index = typename Simd<C>::Index;
    static constexpr int W = Simd<C>::WIDTH, NR = PANEL<C>;

    const int64_t KC;
    int64_t MC, NC;

    struct Scratch {
        C *b, *best;
        Index* ids;
        Spread<C>* a;
        int* specials;
    };

  public:
    explicit Product(const Problem& problem)
        : Base(problem),
          KC(std::min({problem.K, int64_t(std::numeric_limits<Index>::max()) / GROUP * GROUP,
                       std::max<int64_t>(problem.KC, GROUP) / GROUP * GROUP})),
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
        const std::size_t bytes = scratch_bytes();
        // the caller allocates for all, so that the allocator keeps these pages from one call to the next
        using Memory = std::unique_ptr<void, decltype(&std::free)>;
        const Memory memory(std::aligned_alloc(CACHE_LINE, bytes * threads), &std::free);
        if (!memory) throw std::bad_alloc();
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            const Scratch scratch = laid_out(static_cast<char*>(memory.get()) + bytes * t);
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t rows = ceil_div(p.M, MC), columns = ceil_div(p.N, NC);
                run_task(task / (rows * columns), task % rows * MC, task / rows % columns * NC, scratch);
            }
        });
    }

  private:
    int64_t count_tasks() const { return p.batch * ceil_div(p.M, MC) * ceil_div(p.N, NC); }

    static constexpr int64_t round_up(int64_t k) { return ceil_div(k, NR) * NR; }

    std::size_t scratch_bytes() const {
        const std::size_t outputs = MR * NR, rows = MR * round_up(KC);
        const std::size_t size = (KC * NC + outputs) * sizeof(C) + outputs * sizeof(Index) + rows * sizeof(Spread<C>) +
                                 NC / NR * sizeof(int);
        return (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    }

    Scratch laid_out(char* memory) const {
        Scratch s;
        s.b = reinterpret_cast<C*>(memory);
        s.best = s.b + KC * NC;
        s.ids = reinterpret_cast<Index*>(s.best + MR * NR);
        s.a = reinterpret_cast<Spread<C>*>(s.ids + MR * NR);
        s.specials = reinterpret_cast<int*>(s.a + MR * round_up(KC));
        return s;
    }

    void run_task(int64_t batch, int64_t m0, int64_t n0, const Scratch& s) const {
        const int64_t m1 = std::min(m0 + MC, p.M), n1 = std::min(n0 + NC, p.N);
        for (int64_t k0 = 0; k0 < p.K; k0 += KC) {
            const int64_t K = std::min(KC, p.K - k0);
            for (int64_t n = n0; n < n1; n += NR)
                s.specials[(n - n0) / NR] = pack_b(batch, k0, K, n, std::min<int64_t>(NR, n1 - n), s.b + (n - n0) * K);
            for (int64_t m = m0; m < m1; m += MR) {
                const int64_t height = std::min<int64_t>(MR, m1 - m);
                const Spread<C>* rows[MR];
                take_rows(batch, m, height, k0, K, s.a, rows);
                int special = 0;
                if constexpr (MAY_BE_NAN)
                    for (int64_t i = 0; i < height; ++i) special |= classify(rows[i], K);
                for (int64_t n = n0; n < n1; n += NR) {
                    const Tile tile{batch, m, n, height, std::min<int64_t>(NR, n1 - n), k0, K};
                    const int specials[] = {special, s.specials[(n - n0) / NR]};
                    start(tile, s);
                    with_op([&](auto op) { run_tile<decltype(op)>(tile, rows, s.b + (n - n0) * K, specials, s); });
                    finish(tile, s);
                }
            }
        }
    }

    // By strips of k, which stay in the first-level cache while their columns fill and are classified.
    int pack_b(int64_t batch, int64_t k0, int64_t K, int64_t n, int64_t width, C* panel) const {
        constexpr int64_t STRIP = 16;
        const int64_t row = p.b_strides.row, column = p.b_strides.column;
        const T* source = static_cast<const T*>(p.b) + batch * p.b_strides.batch + k0 * row + n * column;
        const C sign = COMPLEMENTS ? C(1) : flip.by;
        int special = 0;
        for (int64_t strip = 0; strip < K; strip += STRIP) {
            const int64_t end = std::min(strip + STRIP, K);
            if (column == 1 && width == NR) {
                for (int64_t k = strip; k < end; ++k) {
                    for (int j = 0; j < NR; j += CACHE_LINE / sizeof(T))
                        __builtin_prefetch(source + (k + STRIP) * row + j);
                    for (int j = 0; j < NR; ++j) panel[k * NR + j] = C(sign * widen<C>(source[k * row + j]));
                }
            } else if (column == 1) {
                for (int64_t k = strip; k < end; ++k) {
                    for (int64_t j = 0; j < width; ++j) panel[k * NR + j] = C(sign * widen<C>(source[k * row + j]));
                    std::fill(panel + k * NR + width, panel + (k + 1) * NR, C(0));
                }
            } else {
                for (int64_t j = 0; j < NR; ++j)
                    for (int64_t k = strip; k < end; ++k)
                        panel[k * NR + j] = j < width ? C(sign * widen<C>(source[k * row + j * column])) : C(0);
            }
            if constexpr (MAY_BE_NAN) special |= classify(panel + strip * NR, (end - strip) * NR);
        }
        return special;
    }

    // Rows below the last are the last again.
    void take_rows(int64_t batch, int64_t m, int64_t height, int64_t k0, int64_t K, Spread<C>* copy,
                   const Spread<C>** rows) const {
        const auto flipped = flip;
        const Strides& strides = p.a_strides;
        const T* source = static_cast<const T*>(p.a) + batch * strides.batch + m * strides.row + k0 * strides.column;
        for (int64_t i = 0; i < MR; ++i) {
            const T* row = source + std::min(i, height - 1) * strides.row;
            if constexpr (std::is_same_v<T, Spread<C>>) {
                if (strides.column == 1 && !p.negate) {
                    rows[i] = row;
                    continue;
                }
            }
            Spread<C>* target = copy + i * round_up(KC);
            rows[i] = target;
            for (int64_t k = 0; k < K; ++k) target[k] = spread(flipped(widen<C>(row[k * strides.column])));
        }
    }

    struct Tile { int64_t batch, m, n, height, width, k0, K; };

    template <class Chosen>
    void run_tile(const Tile& tile, const Spread<C>* const* rows, const C* panel, const int* specials,
                  const Scratch& s) const {
        if (MAY_BE_NAN && can_make_nan<Chosen>(specials[0], specials[1])) {
            if constexpr (MAY_BE_NAN)
                p.ignore_nan ? run_exact<true, Chosen>(tile, rows, panel, s)
                             : run_exact<false, Chosen>(tile, rows, panel, s);
        } else if (p.winners) {
            for (int i = 0; i < MR * NR; ++i) s.ids[i] = s.ids[i] == NOTHING ? 0 : s.ids[i];
            constexpr int64_t least = groups_pay<C, Round>();
            if (tile.K < least) {
                if constexpr (least > 0) run_winners<false, Chosen>(tile, rows, panel, s);
            } else {
                if constexpr (least < ANY_K) {
                    run_winners<true, Chosen>(tile, rows, panel, s);
                    find_in_groups<Chosen>(tile, rows, panel, s);
                }
            }
        } else {
            if (tile.width > W)
                at_height<MR, 1, 2, 4>(tile.height, [&](auto seq) {
                    value_tile<Chosen, NV>(rows, panel, tile.K, s.best, std::make_index_sequence<seq.size() * NV>{});
                });
            else
                value_tile<Chosen, 1>(rows, panel, tile.K, s.best, std::make_index_sequence<MR>{});
            for (int i = 0; i < MR * NR; ++i) s.best[i] = round(s.best[i]);
        }
    }

    template <bool IGNORE_NAN, class Chosen>
    void run_exact(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        for_strips(tile, [&](int i, int j) {
            const int at = i * NR + j;
            exact_tile<IGNORE_NAN, Chosen>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at,
                                        std::make_index_sequence<WINNER_ROWS>{});
        });
    }

    template <bool GROUPED, class Chosen>
    void run_winners(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        for_strips(tile, [&](int i, int j) {
            at_height<WINNER_ROWS, 1>(tile.height - i, [&](auto seq) {
                const int at = i * NR + j;
                winner_tile<GROUPED, Chosen>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at, seq);
            });
        });
    }

    template <class Strip>
    static void for_strips(const Tile& tile, const Strip& strip) {
        for (int i = 0; i < tile.height; i += WINNER_ROWS)
            for (int j = 0; j < tile.width; j += W) strip(i, j);
    }

    // The first k of the noted group whose rounded sum is the maximum. A tail k, noted on its own, finds itself.
    template <class Chosen>
    void find_in_groups(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        const Index last = Index(tile.K - 1);
        for (int64_t i = 0; i < tile.height; ++i) {
            const Spread<C>* const row = rows[i];
            const C* const best = s.best + i * NR;
            Index* const ids = s.ids + i * NR;
            for (int j = 0; j < NR; ++j) {
                const Index k0 = std::max<Index>(ids[j], 0);
                const Index k1 = std::min<Index>(k0 + 1, last), k2 = std::min<Index>(k0 + 2, last);
                const C x0 = round(Chosen::of(row[k0], panel[k0 * NR + j]));
                const C x1 = round(Chosen::of(row[k1], panel[k1 * NR + j]));
                const C x2 = round(Chosen::of(row[k2], panel[k2 * NR + j]));
                const Index skip = x0 < best[j] ? (x1 < best[j] ? (x2 < best[j] ? 3 : 2) : 1) : 0;
                ids[j] = ids[j] < 0 ? ids[j] : ids[j] + skip;
            }
        }
    }

    // best and ids before a block of k: nothing at the first, what the output holds at a later one.
    [[gnu::noinline]] void start(const Tile& tile, const Scratch& s) const {
        const Index fresh = p.ignore_nan ? NOTHING : 0;
        for (int i = 0; i < MR * NR; ++i) s.best[i] = LOWEST;
        for (int i = 0; i < MR * NR; ++i) s.ids[i] = fresh;
        if (tile.k0 == 0) return;
        const auto flipped = flip;
        at_outputs(tile, [&](int i, int64_t at) {
            s.best[i] = flipped(widen<C>(static_cast<const Out*>(p.c)[at]));
            s.ids[i] = UNCHANGED;
        });
        with_winners([&](const auto* winners) {
            at_outputs(tile, [&](int i, int64_t at) {
                if (winners[at] >= 0) return;
                s.best[i] = LOWEST;
                s.ids[i] = fresh;
            });
        });
    }

    [[gnu::noinline]] void finish(const Tile& tile, const Scratch& s) const {
        const auto flipped = flip;
        if (p.times && p.ignore_nan && tile.k0 + tile.K == p.K)
            for (int i = 0; i < MR * NR; ++i) s.best[i] = s.ids[i] == NOTHING ? C(0) : s.best[i];
        at_outputs(tile,
                   [&](int i, int64_t at) { static_cast<Out*>(p.c)[at] = narrow_exact<Out>(flipped(s.best[i])); });
        with_winners([&](auto* winners) {
            using Winner = std::remove_reference_t<decltype(*winners)>;
            at_outputs(tile, [&](int i, int64_t at) {
                const Index id = s.ids[i];
                if (id != UNCHANGED) winners[at] = id == NOTHING ? Winner(-1) : Winner(tile.k0 + id);
            });
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

}  // namespace
