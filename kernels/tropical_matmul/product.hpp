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
    static constexpr bool IS_SPREAD = !std::is_same_v<C, Spread<C>>;

    const int64_t KC;
    int64_t MC, NC;
    const bool by_stretches;  // then B's block is packed along k as well, for the second look
    const int64_t turned_stride;
    mutable std::vector<std::atomic<uint8_t>> classes;

    struct Scratch {
        C *b, *turned, *best;
        Index* ids;
        Spread<C>* a;
        C* plain;  // A as it is, where the tiles read it spread
        int* specials;
    };

  public:
    explicit Product(const Problem& problem)
        : Base(problem),
          KC(std::min({problem.K, int64_t(std::numeric_limits<Index>::max()), std::max<int64_t>(problem.KC, 1)})),
          MC(std::min(ceil_div(problem.M, MR), std::max<int64_t>(problem.MC / MR, 1)) * MR),
          NC(std::min(ceil_div(problem.N, NR), std::max<int64_t>(problem.NC / NR, 1)) * NR),
          by_stretches(!COMPLEMENTS && problem.winners && KC >= STRETCHES_PAY<Round>),
          turned_stride(KC + CACHE_LINE / sizeof(C)),
          classes(MAY_BE_NAN ? problem.batch * ceil_div(problem.M, MR) * ceil_div(problem.K, KC) : 0) {
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
    struct Tile { int64_t batch, m, n, height, width, k0, K; };

    int64_t count_tasks() const { return p.batch * ceil_div(p.M, MC) * ceil_div(p.N, NC); }

    int64_t turned_columns() const { return by_stretches ? NC : 0; }

    static constexpr int64_t round_up(int64_t k) { return ceil_div(k, NR) * NR; }

    std::size_t scratch_bytes() const {
        const std::size_t outputs = MR * NR, rows = MR * round_up(KC);
        const std::size_t size = (KC * NC + turned_columns() * turned_stride + outputs) * sizeof(C) +
                                 outputs * sizeof(Index) + rows * (sizeof(Spread<C>) + IS_SPREAD * sizeof(C)) +
                                 NC / NR * sizeof(int);
        return (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
    }

    Scratch laid_out(char* memory) const {
        Scratch s;
        s.b = reinterpret_cast<C*>(memory);
        s.turned = s.b + KC * NC;
        s.best = s.turned + turned_columns() * turned_stride;
        s.ids = reinterpret_cast<Index*>(s.best + MR * NR);
        s.a = reinterpret_cast<Spread<C>*>(s.ids + MR * NR);
        s.plain = reinterpret_cast<C*>(s.a + MR * round_up(KC));
        s.specials = reinterpret_cast<int*>(s.plain + IS_SPREAD * MR * round_up(KC));
        return s;
    }

    void run_task(int64_t batch, int64_t m0, int64_t n0, const Scratch& s) const {
        const int64_t m1 = std::min(m0 + MC, p.M), n1 = std::min(n0 + NC, p.N);
        for (int64_t k0 = 0; k0 < p.K; k0 += KC) {
            const int64_t K = std::min(KC, p.K - k0);
            pack_b(batch, k0, K, n0, n1, s);
            for (int64_t m = m0; m < m1; m += MR) {
                const int64_t height = std::min<int64_t>(MR, m1 - m);
                const Spread<C>* rows[MR];
                take_rows(batch, m, height, k0, K, s.a, s.plain, rows);
                const int special = class_of_rows(batch, m, height, k0, K, rows);
                for (int64_t n = n0; n < n1; n += NR) {
                    const Tile tile{batch, m, n, height, std::min<int64_t>(NR, n1 - n), k0, K};
                    const int specials[] = {special, s.specials[(n - n0) / NR]};
                    start(tile, s);
                    with_op([&](auto op) {
                        run_tile<decltype(op)>(tile, rows, s.b + (n - n0) * K, s.turned + (n - n0) * turned_stride,
                                               specials, s);
                    });
                    finish(tile, s);
                }
            }
        }
    }

    // Of a tile's rows, whoever looks at them first: the others find it noted.
    int class_of_rows(int64_t batch, int64_t m, int64_t height, int64_t k0, int64_t K, const Spread<C>* const* rows) const {
        if constexpr (!MAY_BE_NAN) return 0;
        constexpr int KNOWN = 128;
        std::atomic<uint8_t>& noted = classes[(batch * ceil_div(p.M, MR) + m / MR) * ceil_div(p.K, KC) + k0 / KC];
        int special = noted.load(std::memory_order_relaxed);
        if (!special) {
            special = KNOWN;
            for (int64_t i = 0; i < height; ++i) special |= classify(rows[i], K);
            noted.store(uint8_t(special), std::memory_order_relaxed);
        }
        return special & ~KNOWN;
    }

    // By strips of k, which stay in the first-level cache while their columns fill and are classified: of one strip all
    // panels, since they lie side by side in the same pages.
    void pack_b(int64_t batch, int64_t k0, int64_t K, int64_t n0, int64_t n1, const Scratch& s) const {
        constexpr int64_t STRIP = std::max(16, W);
        std::fill_n(s.specials, ceil_div(n1 - n0, NR), 0);
        for (int64_t strip = 0; strip < K; strip += STRIP)
            for (int64_t n = n0; n < n1; n += NR) {
                const int64_t end = std::min(strip + STRIP, K), width = std::min<int64_t>(NR, n1 - n);
                C* const panel = s.b + (n - n0) * K;
                pack_strip(batch, k0, strip, end, n, width, panel);
                if (by_stretches) turn(panel + strip * NR, end - strip, s.turned + (n - n0) * turned_stride + strip);
                if constexpr (MAY_BE_NAN)
                    s.specials[(n - n0) / NR] |= classify(panel + strip * NR, (end - strip) * NR);
            }
    }

    void pack_strip(int64_t batch, int64_t k0, int64_t strip, int64_t end, int64_t n, int64_t width, C* panel) const {
        const int64_t row = p.b_strides.row, column = p.b_strides.column, ahead = end - strip;
        const T* source = static_cast<const T*>(p.b) + batch * p.b_strides.batch + k0 * row + n * column;
        const C sign = COMPLEMENTS ? C(1) : flip.by;
        if (column == 1 && width == NR) {
            for (int64_t k = strip; k < end; ++k) {
                for (int j = 0; j < NR; j += CACHE_LINE / sizeof(T)) __builtin_prefetch(source + (k + ahead) * row + j);
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
    }

    // [K][NR], one below the other, to NR rows of K.
    void turn(const C* panel, int64_t K, C* turned) const {
        int64_t k = 0;
        for (; k + W <= K; k += W)
            for (int j = 0; j < NR; j += W) {
                typename Simd<C>::Vector square[W];
                for (int i = 0; i < W; ++i) square[i] = load<typename Simd<C>::Vector>(panel + (k + i) * NR + j);
                transpose<C>(square);
                for (int i = 0; i < W; ++i) store(turned + (j + i) * turned_stride + k, square[i]);
            }
        for (; k < K; ++k)
            for (int j = 0; j < NR; ++j) turned[j * turned_stride + k] = panel[k * NR + j];
    }

    // Rows below the last are the last again.
    void take_rows(int64_t batch, int64_t m, int64_t height, int64_t k0, int64_t K, Spread<C>* copy, C* plain,
                   const Spread<C>** rows) const {
        const auto flipped = flip;
        const MatrixStrides& strides = p.a_strides;
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
            if (IS_SPREAD && by_stretches)
                for (int64_t k = 0; k < K; ++k) plain[i * round_up(KC) + k] = C(target[k]);
        }
    }

    template <class Chosen>
    void run_tile(const Tile& tile, const Spread<C>* const* rows, const C* panel, const C* turned, const int* specials,
                  const Scratch& s) const {
        if (MAY_BE_NAN && can_make_nan<Chosen>(specials[0], specials[1])) {
            if constexpr (MAY_BE_NAN)
                p.ignore_nan ? run_exact<true, Chosen>(tile, rows, panel, s)
                             : run_exact<false, Chosen>(tile, rows, panel, s);
        } else if (p.winners) {
            for (int i = 0; i < MR * NR; ++i) s.ids[i] = s.ids[i] == NOTHING ? 0 : s.ids[i];
            if (by_stretches && tile.K >= STRETCHES_PAY<Round>) {
                run_values(tile, [&](auto vectors, auto seq) {
                    noted_tile<Chosen, vectors>(rows, panel, tile.K, round, s.best, s.ids, seq);
                });
                find_in_stretches<Chosen>(tile, rows, turned, s);
            } else {
                run_winners<Chosen>(tile, rows, panel, s);
            }
        } else {
            run_values(tile, [&](auto vectors, auto seq) {
                value_tile<Chosen, vectors>(rows, panel, tile.K, s.best, seq);
            });
            for (int i = 0; i < MR * NR; ++i) s.best[i] = round(s.best[i]);
        }
    }

    // run(the vectors a row, the numbers of all vectors), of a tile no larger than it must be
    template <class Run>
    static void run_values(const Tile& tile, const Run& run) {
        if (tile.width > W)
            at_height<MR, 1, 2, 4>(tile.height, [&](auto rows) {
                run(std::integral_constant<int, NV>{}, std::make_index_sequence<rows.size() * NV>{});
            });
        else
            run(std::integral_constant<int, 1>{}, std::make_index_sequence<MR>{});
    }

    template <bool IGNORE_NAN, class Chosen>
    void run_exact(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        for_strips(tile, [&](int i, int j) {
            const int at = i * NR + j;
            exact_tile<IGNORE_NAN, Chosen>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at,
                                        std::make_index_sequence<WINNER_ROWS>{});
        });
    }

    template <class Chosen>
    void run_winners(const Tile& tile, const Spread<C>* const* rows, const C* panel, const Scratch& s) const {
        for_strips(tile, [&](int i, int j) {
            at_height<WINNER_ROWS, 1>(tile.height - i, [&](auto seq) {
                const int at = i * NR + j;
                winner_tile<Chosen>(rows + i, panel + j, tile.K, round, s.best + at, s.ids + at, seq);
            });
        });
    }

    template <class Strip>
    static void for_strips(const Tile& tile, const Strip& strip) {
        for (int i = 0; i < tile.height; i += WINNER_ROWS)
            for (int j = 0; j < tile.width; j += W) strip(i, j);
    }

    // The first k of the noted stretch whose rounded sum is the maximum. The last stretch is looked at together with k
    // before it, if it is shorter: their sums are less.
    template <class Chosen>
    void find_in_stretches(const Tile& tile, const Spread<C>* const* rows, const C* turned, const Scratch& s) const {
        const Index last = Index(tile.K - STRETCH);
        for (int64_t i = 0; i < tile.height; ++i) {
            const C* row;
            if constexpr (IS_SPREAD)
                row = s.plain + i * round_up(KC);
            else
                row = rows[i];
            const C* const best = s.best + i * NR;
            Index* const ids = s.ids + i * NR;
            Index from[NR], ahead[NR] = {};
            for (int j = 0; j < NR; ++j) from[j] = std::clamp<Index>(ids[j], 0, last);
            for (int64_t j = 0; j < tile.width; ++j)
                ahead[j] = first_equal<Chosen>(row + from[j], turned + j * turned_stride + from[j], best[j], round);
            for (int j = 0; j < NR; ++j) ids[j] = ids[j] < 0 ? ids[j] : from[j] + ahead[j];
        }
    }

    // best and ids before a block of k: nothing at the first, what the output holds at a later one.
    [[gnu::noinline]] void start(const Tile& tile, const Scratch& s) const {
        const Index fresh = p.ignore_nan ? NOTHING : 0;
        std::fill_n(s.best, MR * NR, LOWEST);
        std::fill_n(s.ids, MR * NR, fresh);
        if (tile.k0 == 0) return;
        const auto flipped = flip;
        at_rows(tile, [&](int row, int64_t at, auto width, auto column) {
            const Out* const from = static_cast<const Out*>(p.c) + at;
            C* __restrict const best = s.best + row;
            Index* __restrict const ids = s.ids + row;
            for (int j = 0; j < width; ++j) best[j] = flipped(widen<C>(from[j * column]));
            for (int j = 0; j < width; ++j) ids[j] = UNCHANGED;
        });
        with_winners([&](const auto* winners) {
            at_rows(tile, [&](int row, int64_t at, auto width, auto column) {
                C* __restrict const best = s.best + row;
                Index* __restrict const ids = s.ids + row;
                for (int j = 0; j < width; ++j) {
                    const bool none = winners[at + j * column] < 0;
                    best[j] = none ? LOWEST : best[j];
                    ids[j] = none ? fresh : ids[j];
                }
            });
        });
    }

    [[gnu::noinline]] void finish(const Tile& tile, const Scratch& s) const {
        const auto flipped = flip;
        if (p.times && p.ignore_nan && tile.k0 + tile.K == p.K)
            for (int i = 0; i < MR * NR; ++i) s.best[i] = s.ids[i] == NOTHING ? C(0) : s.best[i];
        at_rows(tile, [&](int row, int64_t at, auto width, auto column) {
            const C* const best = s.best + row;
            Out* __restrict const to = static_cast<Out*>(p.c) + at;
            for (int j = 0; j < width; ++j) to[j * column] = narrow_exact<Out>(flipped(best[j]));
        });
        with_winners([&](auto* winners) {
            using Winner = std::remove_reference_t<decltype(*winners)>;
            const auto k0 = Winner(tile.k0);
            at_rows(tile, [&](int row, int64_t at, auto width, auto column) {
                const Index* const ids = s.ids + row;
                Winner* __restrict const to = winners + at;
                const auto found = [&](int j) { return ids[j] == NOTHING ? Winner(-1) : Winner(k0 + Winner(ids[j])); };
                if (k0 == 0)  // nothing is unchanged, and nothing read
                    for (int j = 0; j < width; ++j) to[j * column] = found(j);
                else
                    for (int j = 0; j < width; ++j) to[j * column] = ids[j] == UNCHANGED ? to[j * column] : found(j);
            });
        });
    }

    // visit(the first of a row in the tile, the first in the output, its width, the output's stride from one to the
    // next). The last two are constants where the row is whole, so that the loops over it become vectors.
    template <class Visit>
    void at_rows(const Tile& tile, const Visit& visit) const {
        const int64_t origin = tile.batch * p.c_strides.batch + tile.m * p.c_strides.row + tile.n * p.c_strides.column;
        const bool whole = tile.width == NR && p.c_strides.column == 1;
        for (int64_t i = 0; i < tile.height; ++i) {
            const int64_t at = origin + i * p.c_strides.row;
            if (whole)
                visit(int(i * NR), at, std::integral_constant<int, NR>{}, std::integral_constant<int64_t, 1>{});
            else
                visit(int(i * NR), at, int(tile.width), p.c_strides.column);
        }
    }
};

}  // namespace
