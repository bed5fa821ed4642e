// The tropical convolution, by tasks whose rows are copied with their padding.
//
//   task   = some rows of outputs of one image and one group of channels; threads draw tasks from one counter
//   plane  = the rows of a channel that a task sees, copied with their padding, one plane for each phase of the stride:
//            with f = p · pitch + q the number of an output, tap k reads plane[offset[k] + f], whatever p and q.  So the
//            convolution is a product of w [O, K] with K shifted views of the planes; nothing is unfolded
//   tile   = ROWS filters × a few vectors of f (tiles.hpp)
//
// The padding right of a row is the padding left of the next: pitch = ⌈(W + pad) / s⌉, of which Q outputs are wanted.
// It holds what can never win: −∞, or for integers less than any sum.
//
// An output that nothing raised above −∞ has the first tap inside the image for a winner. Copies are classified, and a
// task and a tile of w that together can make a NaN take a tile that follows torch.max.

#pragma once

#include <cstdlib>
#include <memory>

#include "tiles.hpp"

namespace {

constexpr bool IS_SHORT_INTEGER = std::is_integral_v<Element> && sizeof(Element) < sizeof(int32_t);
using Sum = std::conditional_t<IS_SHORT_INTEGER, int32_t, Compute>;
using Value = std::conditional_t<std::is_same_v<Element, int8_t>, int32_t, Element>;

struct Problem {
    Sizes sizes;
    const void *x, *w;
    Strides x_strides, w_strides;
    void *y, *winners;  // [batch, filters of all groups, P, Q], contiguous; winners null: not wanted
    bool short_winners, negate, ignore_nan;
    int64_t positions;  // outputs that a task takes of each filter, about
    int threads;
};

template <class C, class Round>
class Dilation {
    using Index = typename Simd<C>::Index;
    using Limits = std::numeric_limits<C>;
    static constexpr int W = Simd<C>::WIDTH;
    static constexpr bool MAY_BE_NAN = !std::is_integral_v<Element>;
    static constexpr C LOWEST = Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
    // less than any sum of integers below 2^29, and no such addend takes it out of range
    static constexpr C OUTSIDE = Limits::has_infinity ? -Limits::infinity() : C(-3) * (1 << 29);
    static constexpr int64_t PACKED = 1 << 18;  // cells of a task's planes, to stay in the second-level cache

    struct Tile { int64_t filter, rows; };

    struct Scratch {
        C *planes, *best;
        Index *mask, *ids;
    };

    const Problem& p;
    const Sizes& s;
    const Round round;
    const C start, sign;
    const int64_t K, pitch;
    const std::vector<int64_t> row_phases, column_phases, first_row, first_column;
    const bool has_empty, shares_rows;  // the latter: a lone filter takes rows of outputs, in lines of whole vectors
    const int64_t line;
    int64_t height, block;  // of a task: rows of outputs, filters
    int64_t plane, planes, lanes;  // cells of a plane, planes of a channel, cells of a filter's outputs
    std::vector<Tile> tiles;  // of a group's filters
    std::vector<int64_t> offset;
    std::vector<C> weights;
    std::vector<int> specials;  // of weights, by group and tile

  public:
    explicit Dilation(const Problem& problem)
        : p(problem), s(problem.sizes), round(problem.negate), start(round(LOWEST)), sign(problem.negate ? -1 : 1),
          K(s.K()), pitch(ceil_div(s.column.size + s.column.padding, s.column.stride)), row_phases(s.row.phases()),
          column_phases(s.column.phases()), first_row(s.row.firsts_inside()), first_column(s.column.firsts_inside()),
          has_empty(lacks(first_row) || lacks(first_column)),
          // unless the ends of short lines waste more than the loads that are saved
          shares_rows(!p.winners && s.row.stride == 1 && s.row.dilation == 1 && 10 * lined() <= 13 * pitch),
          line(shares_rows ? lined() : pitch), planes(row_phases.size() * column_phases.size()) {
        choose_blocks();
        plane = plane_cells(height);
        lanes = ceil_div(height * std::max(pitch, line), W) * W;
        for (int64_t k = 0; k < K; ++k) {
            const int64_t i = k / s.column.taps % s.row.taps, j = k % s.column.taps;
            const int64_t row_phase = index(row_phases, i * s.row.dilation % s.row.stride);
            const int64_t column_phase = index(column_phases, j * s.column.dilation % s.column.stride);
            const int64_t number = k / s.taps() * planes + row_phase * int64_t(column_phases.size()) + column_phase;
            offset.push_back(number * plane + s.row.shift(i) * pitch + s.column.shift(j));
        }
        const int64_t most = p.winners ? ACCUMULATORS / 4 : ACCUMULATORS / 2;
        for (int64_t filter = 0, rows = most; filter < s.filters; filter += rows) {
            while (rows > s.filters - filter) rows /= 2;
            tiles.push_back({filter, rows});
        }
    }

    void run() {
        pack_weights();
        const int64_t height_blocks = ceil_div(s.row.outputs, height), filter_blocks = ceil_div(s.filters, block);
        const int64_t tasks = s.batch * s.groups * height_blocks * filter_blocks;
        const int threads = int(std::min<int64_t>(p.threads, tasks));
        const std::size_t of_planes = s.channels * planes * plane + W, of_mask = planes * plane + W;
        const std::size_t of_best = lanes * (ACCUMULATORS / 2);
        const std::size_t size = (of_planes + of_best) * sizeof(C) + (of_mask + of_best) * sizeof(Index);
        const std::size_t bytes = (size + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
        // the caller allocates for all, so that the allocator keeps these pages from one call to the next
        const std::unique_ptr<void, decltype(&std::free)> memory(std::aligned_alloc(CACHE_LINE, bytes * threads),
                                                                 &std::free);
        if (!memory) throw std::bad_alloc();
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            C* best = reinterpret_cast<C*>(static_cast<char*>(memory.get()) + bytes * t);
            Index* ids = reinterpret_cast<Index*>(best + of_best);
            C* copies = reinterpret_cast<C*>(ids + of_best);
            const Scratch scratch{copies, best, reinterpret_cast<Index*>(copies + of_planes), ids};
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t image = task / filter_blocks / height_blocks;
                run_task(image / s.groups, image % s.groups, task / filter_blocks % height_blocks * height,
                         task % filter_blocks * block, scratch);
            }
        });
    }

  private:
    static bool lacks(const std::vector<int64_t>& firsts) {
        return std::find(firsts.begin(), firsts.end(), NOTHING) != firsts.end();
    }

    static int64_t index(const std::vector<int64_t>& phases, int64_t phase) {
        return std::find(phases.begin(), phases.end(), phase) - phases.begin();
    }

    int64_t lined() const { return ceil_div(s.column.outputs, W) * W; }

    int64_t plane_rows(int64_t height) const { return height + s.row.shift(s.row.taps - 1); }

    // A row's padding on the right is the next row's on the left; after the last there must be some.
    int64_t plane_cells(int64_t height) const {
        return plane_rows(height) * pitch + s.column.shift(s.column.taps - 1);
    }

    void choose_blocks() {
        const auto halved = [](int64_t x) { return (x + 1) / 2; };
        const int64_t P = s.row.outputs;
        // of a wide image some rows nevertheless, whose windows share what is copied
        height = std::min(std::max<int64_t>(p.positions / pitch, 8), P);
        while (height > 1 && s.channels * planes * plane_cells(height) > PACKED) height = halved(height);
        block = ceil_div(s.filters, ACCUMULATORS) * ACCUMULATORS;
        // two tasks a thread; rows last, for they are copied again where the windows overlap
        const auto few = [&] {
            return s.batch * s.groups * ceil_div(P, height) * ceil_div(s.filters, block) < 2 * p.threads;
        };
        while (p.threads > 1 && few() && block > ACCUMULATORS) block = ceil_div(halved(block), ACCUMULATORS) * ACCUMULATORS;
        while (p.threads > 1 && few() && height > s.row.taps) height = halved(height);
        height = ceil_div(P, ceil_div(P, height));
    }

    void pack_weights() {
        weights.resize(s.groups * s.filters * K);
        specials.resize(s.groups * tiles.size());
        const int64_t tasks = specials.size();
        std::atomic<int64_t> next{0};
        in_parallel(int(std::min<int64_t>(p.threads, tasks)), [&](int) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t group = task / int64_t(tiles.size());
                const Tile& tile = tiles[task % tiles.size()];
                C* const target = weights_of(group, tile);
                for (int64_t r = 0; r < tile.rows; ++r) {
                    const Element* source = static_cast<const Element*>(p.w) +
                                            (group * s.filters + tile.filter + r) * p.w_strides.batch;
                    C* to = target + r;
                    for (int64_t c = 0; c < s.channels; ++c)
                        for (int64_t i = 0; i < s.row.taps; ++i)
                            for (int64_t j = 0; j < s.column.taps; ++j, to += tile.rows)
                                *to = sign * widen<C>(source[c * p.w_strides.channel + i * p.w_strides.row +
                                                             j * p.w_strides.column]);
                }
                specials[task] = classify(target, K * tile.rows);
            }
        });
    }

    C* weights_of(int64_t group, const Tile& tile) { return weights.data() + (group * s.filters + tile.filter) * K; }

    void run_task(int64_t batch, int64_t group, int64_t p0, int64_t filter0, const Scratch& scratch) {
        const int64_t count = std::min(height, s.row.outputs - p0);
        int special = 0;
        for (int64_t c = 0; c < s.channels; ++c) {
            const Element* source = static_cast<const Element*>(p.x) + batch * p.x_strides.batch +
                                    (group * s.channels + c) * p.x_strides.channel;
            for_planes([&](int64_t number, int64_t row_phase, int64_t column_phase) {
                C* const target = scratch.planes + (c * planes + number) * plane;
                special |= fill_plane(source, p0, count, row_phase, column_phase, target);
            });
        }
        std::fill_n(scratch.planes + s.channels * planes * plane, W, OUTSIDE);
        if (MAY_BE_NAN && (s.row.padding || s.column.padding)) special |= HAS_MINUS_INFINITY;
        bool has_mask = false;
        const int64_t end = ceil_div(count * pitch, W) * W;
        for (std::size_t number = 0; number < tiles.size(); ++number) {
            const Tile& tile = tiles[number];
            if (tile.filter < filter0 || tile.filter >= filter0 + block) continue;
            const C* const w = weights_of(group, tile);
            const bool exact = MAY_BE_NAN && can_make_nan<Plus>(special, specials[group * tiles.size() + number]);
            if (exact && !has_mask) fill_mask(p0, count, scratch.mask);
            has_mask |= exact;
            if (exact)
                run_exact(tile, w, end, scratch);
            else
                run_tile<ACCUMULATORS / 2>(tile, w, count, end, scratch);
            const int64_t apart = tile.rows == 1 && !exact ? line : pitch;
            finish(batch, group, tile, p0, count, apart, exact, scratch);
        }
    }

    template <class Visit>
    void for_planes(const Visit& visit) const {
        int64_t number = 0;
        for (const int64_t row_phase : row_phases)
            for (const int64_t column_phase : column_phases) visit(number++, row_phase, column_phase);
    }

    // Calls fill(n, u) for the runs of cells outside the image and copy(row, column, n, u) for those inside: n cells
    // from u of the plane, the first from that row and column of the image, each a stride after the last.
    template <class Fill, class Copy>
    void visit_plane(int64_t p0, int64_t count, int64_t row_phase, int64_t column_phase, const Fill& fill,
                     const Copy& copy) const {
        const Axis &row = s.row, &column = s.column;
        const int64_t before = column.padding - column_phase;  // the plane's column u is the image's u · stride − before
        const int64_t u0 = std::min(std::max<int64_t>(ceil_div(before, column.stride), 0), pitch);
        const int64_t u1 = std::max(std::min(ceil_div(before + column.size, column.stride), pitch), u0);
        const int64_t rows = plane_rows(count);
        for (int64_t v = 0; v < rows; ++v) {
            const int64_t h = (p0 + v) * row.stride - row.padding + row_phase, u = v * pitch;
            if (row.holds(h) && u1 > u0) {
                fill(u0, u);
                copy(h, u0 * column.stride - before, u1 - u0, u + u0);
                fill(pitch - u1, u + u1);
            } else {
                fill(pitch, u);
            }
        }
        fill(plane_cells(count) - rows * pitch, rows * pitch);
    }

    int fill_plane(const Element* source, int64_t p0, int64_t count, int64_t row_phase, int64_t column_phase,
                   C* target) const {
        int special = 0;
        const C sign = this->sign;  // the target could be this member, for all a compiler knows
        visit_plane(
            p0, count, row_phase, column_phase, [&](int64_t n, int64_t u) { std::fill_n(target + u, n, OUTSIDE); },
            [&](int64_t h, int64_t w, int64_t n, int64_t u) {
                const Element* const from = source + h * p.x_strides.row + w * p.x_strides.column;
                const int64_t step = s.column.stride * p.x_strides.column;
                C* const to = target + u;
                if (step == 1)
                    for (int64_t i = 0; i < n; ++i) to[i] = sign * widen<C>(from[i]);
                else
                    for (int64_t i = 0; i < n; ++i) to[i] = sign * widen<C>(from[i * step]);
                special |= classify(to, n);
            });
        return special;
    }

    void fill_mask(int64_t p0, int64_t count, Index* mask) const {
        std::fill_n(mask + planes * plane, W, Index(0));
        for_planes([&](int64_t number, int64_t row_phase, int64_t column_phase) {
            Index* const target = mask + number * plane;
            visit_plane(
                p0, count, row_phase, column_phase, [&](int64_t n, int64_t u) { std::fill_n(target + u, n, Index(0)); },
                [&](int64_t, int64_t, int64_t n, int64_t u) { std::fill_n(target + u, n, Index(-1)); });
        });
    }

    void run_exact(const Tile& tile, const C* w, int64_t end, const Scratch& scratch) const {
        if constexpr (MAY_BE_NAN) {
            for (int64_t r = 0; r < tile.rows; ++r)
                for (int64_t f = 0; f < end; f += W) {
                    const auto run = p.ignore_nan ? exact_tile<true, C, Round> : exact_tile<false, C, Round>;
                    run(scratch.planes + f, scratch.mask + f, offset.data(), w + r, tile.rows, K, s.taps(), round,
                        start, scratch.best + r * lanes + f, scratch.ids + r * lanes + f);
                }
        }
    }

    template <int ROWS>
    void run_tile(const Tile& tile, const C* w, int64_t count, int64_t end, const Scratch& scratch) const {
        if (tile.rows != ROWS) {
            if constexpr (ROWS > 1) run_tile<ROWS / 2>(tile, w, count, end, scratch);
        } else if (!p.winners) {
            if (ROWS == 1 && shares_rows)
                run_rows<4>(0, count, w, scratch);
            else
                run_strips<ROWS, std::min(ACCUMULATORS / ROWS, 8)>(0, end, [&](int64_t f, auto tile_shape) {
                    value_tile<ROWS>(scratch.planes + f, offset.data(), w, K, start, scratch.best + f, lanes,
                                     tile_shape);
                });
            if constexpr (!std::is_same_v<Round, Unrounded>)
                for (int64_t r = 0; r < ROWS; ++r)
                    for (int64_t f = 0; f < lanes; ++f) scratch.best[r * lanes + f] = round(scratch.best[r * lanes + f]);
        } else if constexpr (ROWS <= ACCUMULATORS / 4) {
            constexpr bool rounds = !std::is_same_v<Round, Unrounded>;
            const auto run = [&](auto taps) {
                run_strips<ROWS, std::min(ACCUMULATORS / 2 / ROWS, 4)>(0, end, [&](int64_t f, auto tile_shape) {
                    winner_tile<ROWS, decltype(taps)::value>(scratch.planes + f, offset.data(), w, K, round, start,
                                                             scratch.best + f, scratch.ids + f, lanes, tile_shape);
                });
            };
            if (rounds || K >= MANY_TAPS) {
                run(std::integral_constant<int, GROUP>{});
                find_in_groups(ROWS, end, w, scratch);
            } else if constexpr (!rounds) {
                run(std::integral_constant<int, 1>{});
            }
        }
    }

    template <int ROWS>
    void run_rows(int64_t v, int64_t count, const C* w, const Scratch& scratch) const {
        for (; v + ROWS <= count; v += ROWS)
            run_strips<ROWS, ACCUMULATORS / 4>(0, line, [&](int64_t u, auto tile_shape) {
                row_tile<ROWS>(scratch.planes + v * pitch + u, offset.data(), w, s.channels, s.taps(), s.column.taps,
                               pitch, start, scratch.best + v * line + u, line, tile_shape);
            });
        if constexpr (ROWS > 1) run_rows<1>(v, count, w, scratch);
    }

    // Strips of the most vectors that fit, then of half as many, down to one.
    template <int ROWS, int VECTORS, class Strip>
    static void run_strips(int64_t f, int64_t end, const Strip& strip) {
        for (; f + VECTORS * W <= end; f += VECTORS * W) strip(f, std::make_index_sequence<ROWS * VECTORS>{});
        if constexpr (VECTORS > 1) run_strips<ROWS, VECTORS / 2>(f, end, strip);
    }

    // The first tap of the noted group whose rounded sum is the maximum. A last one, noted on its own, finds itself.
    void find_in_groups(int64_t rows, int64_t end, const C* w, const Scratch& scratch) const {
        const Index last = Index(K - 1);
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t f = 0; f < end; ++f) {
                Index& id = scratch.ids[r * lanes + f];
                const C best = scratch.best[r * lanes + f];
                const Index k0 = std::max<Index>(id, 0);
                const auto falls_short = [&](Index k) {
                    k = std::min(k, last);
                    return round(w[k * rows + r] + scratch.planes[offset[k] + f]) < best;
                };
                const Index skip = falls_short(k0) ? (falls_short(k0 + 1) ? (falls_short(k0 + 2) ? 3 : 2) : 1) : 0;
                id = id < 0 ? id : id + skip;
            }
    }

    void finish(int64_t batch, int64_t group, const Tile& tile, int64_t p0, int64_t count, int64_t apart, bool exact,
                const Scratch& scratch) const {
        using Bounds = std::numeric_limits<Value>;
        const int64_t Q = s.column.outputs;
        const C sign = this->sign;
        const auto zero = [&] {
            if constexpr (std::is_integral_v<Value>)
                return p.negate ? Bounds::max() : Bounds::lowest();
            else
                return narrow_exact<Value>(sign * LOWEST);
        }();
        for (int64_t r = 0; r < tile.rows; ++r)
            for (int64_t v = 0; v < count; ++v) {
                const C* const best = scratch.best + r * lanes + v * apart;
                const Index* const ids = scratch.ids + r * lanes + v * apart;
                const int64_t filter = (batch * s.groups + group) * s.filters + tile.filter + r;
                const int64_t at = (filter * s.row.outputs + p0 + v) * Q, first = first_row[p0 + v];
                Value* const values = static_cast<Value*>(p.y) + at;
                for (int64_t q = 0; q < Q; ++q) values[q] = narrow_exact<Value>(C(sign * best[q]));
                const auto is_empty = [&](int64_t q) { return first < 0 || first_column[q] < 0; };
                if (exact)
                    for (int64_t q = 0; q < Q; ++q) values[q] = ids[q] == NOTHING ? zero : values[q];
                else if (has_empty)
                    for (int64_t q = 0; q < Q; ++q) values[q] = is_empty(q) ? zero : values[q];
                if (!p.winners) continue;
                const auto name = [&](auto* won) {
                    using Winner = std::remove_pointer_t<decltype(won)>;
                    Index least = 0;
                    for (int64_t q = 0; q < Q; ++q) least = std::min(least, ids[q]);
                    for (int64_t q = 0; q < Q; ++q) won[q] = Winner(ids[q]);
                    if (exact || (least > NOTHING && !has_empty)) return;  // integers rise from outside the image, too
                    for (int64_t q = 0; q < Q; ++q)
                        if (is_empty(q))
                            won[q] = NOTHING;
                        else if (ids[q] == NOTHING)
                            won[q] = Winner(first * s.column.taps + first_column[q]);
                };
                p.short_winners ? name(static_cast<int16_t*>(p.winners) + at)
                                : name(static_cast<int32_t*>(p.winners) + at);
            }
    }
};

}  // namespace
