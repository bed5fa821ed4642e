// The backward of the tropical convolution: every upstream gradient is added at its winner's element of x and of w.

#pragma once

#include "geometry.hpp"

namespace {

struct Scatter {
    Sizes sizes;
    const void* dy;
    Strides dy_strides;
    const void* winners;  // [batch, filters of all groups, P, Q], contiguous
    bool short_winners;
    void *dx, *dw;  // contiguous, null: not wanted
    int threads;
};

// Rows of dx and filters of dw belong to one task each, summed in one order: no atomics, the same bits on any number of
// threads.
template <class Winner>
class Backward {
    static constexpr bool IN_PLACE = std::is_same_v<Element, Compute>;
    static constexpr int64_t SUMS = 4;  // of a weight, taken in turns: an addition does not wait for the one before

    struct Tap { int64_t channel, row, column; };

    const Scatter& p;
    const Sizes& s;
    const Element* const dy;
    const int64_t K;
    int64_t height;  // rows of dx that a task owns
    std::vector<Tap> taps;
    std::atomic<bool> in_range{true};

  public:
    explicit Backward(const Scatter& scatter)
        : p(scatter), s(scatter.sizes), dy(static_cast<const Element*>(scatter.dy)), K(s.K()), height(s.row.size) {
        for (int64_t k = 0; k < K; ++k)
            taps.push_back({k / s.taps(), k / s.column.taps % s.row.taps * s.row.dilation,
                            k % s.column.taps * s.column.dilation});
        // neighbouring tasks both read the outputs whose windows they share
        while (s.batch * s.groups * ceil_div(s.row.size, height) < 2 * p.threads && height > 4 * (s.row.reach() + 1))
            height = ceil_div(height, 2);
    }

    bool run() {
        const int64_t blocks = ceil_div(s.row.size, height);
        const int64_t of_dx = p.dx ? s.batch * s.groups * blocks : 0, of_dw = p.dw ? s.groups * s.filters : 0;
        const int threads = int(std::max<int64_t>(std::min<int64_t>(p.threads, of_dx + of_dw), 1));
        const int64_t rows = IN_PLACE || !p.dx ? 0 : s.channels * height * s.column.size;
        std::vector<std::vector<Compute>> sums(threads,
                                               std::vector<Compute>(std::max(rows, p.dw ? K * SUMS : int64_t(0))));
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int t) {
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < of_dx + of_dw;) {
                if (task < of_dx)
                    to_rows(task / blocks / s.groups, task / blocks % s.groups, task % blocks * height, sums[t].data());
                else
                    to_weights(task - of_dx, sums[t].data());
            }
        });
        return in_range;
    }

  private:
    bool is_winner(int64_t k) {
        if (uint64_t(k) < uint64_t(K)) return true;
        if (k != NOTHING) in_range.store(false, std::memory_order_relaxed);
        return false;
    }

    const Element* upstream(int64_t batch, int64_t filter, int64_t row) const {
        return dy + batch * p.dy_strides.batch + filter * p.dy_strides.channel + row * p.dy_strides.row;
    }

    const Winner* winners(int64_t batch, int64_t filter, int64_t row) const {
        const int64_t line = (batch * s.groups * s.filters + filter) * s.row.outputs + row;
        return static_cast<const Winner*>(p.winners) + line * s.column.outputs;
    }

    void to_rows(int64_t batch, int64_t group, int64_t h0, Compute* sums) {
        const Axis &row = s.row, &column = s.column;
        const int64_t h1 = std::min(h0 + height, row.size), area = row.size * column.size;
        Element* const dx = static_cast<Element*>(p.dx) + (batch * s.groups + group) * s.channels * area;
        int64_t channel_step = (h1 - h0) * column.size;
        if constexpr (IN_PLACE) {
            sums = dx + h0 * column.size;
            channel_step = area;
        }
        for (int64_t c = 0; c < s.channels; ++c)
            std::fill_n(sums + c * channel_step, (h1 - h0) * column.size, Compute(0));
        const int64_t p0 = std::max<int64_t>(ceil_div(h0 + row.padding - row.reach(), row.stride), 0);
        const int64_t p1 = std::min((h1 - 1 + row.padding) / row.stride + 1, row.outputs);
        for (int64_t o = group * s.filters; o < (group + 1) * s.filters; ++o)
            for (int64_t i = p0; i < p1; ++i) {
                const Winner* const won = winners(batch, o, i);
                const Element* const g = upstream(batch, o, i);
                for (int64_t q = 0; q < column.outputs; ++q) {
                    if (!is_winner(won[q])) continue;
                    const Tap& tap = taps[won[q]];
                    const int64_t h = row.position(i, 0) + tap.row, w = column.position(q, 0) + tap.column;
                    if (!row.holds(h) || !column.holds(w)) {
                        in_range.store(false, std::memory_order_relaxed);
                        continue;
                    }
                    if (h < h0 || h >= h1) continue;  // another task's
                    sums[tap.channel * channel_step + (h - h0) * column.size + w] +=
                        widen<Compute>(g[q * p.dy_strides.column]);
                }
            }
        if constexpr (!IN_PLACE)
            for (int64_t c = 0; c < s.channels; ++c)
                for (int64_t n = 0; n < channel_step; ++n)
                    dx[c * area + h0 * column.size + n] = rounded(sums[c * channel_step + n]);
    }

    void to_weights(int64_t filter, Compute* sums) {
        std::fill_n(sums, K * SUMS, Compute(0));
        for (int64_t batch = 0; batch < s.batch; ++batch)
            for (int64_t i = 0; i < s.row.outputs; ++i) {
                const Winner* const won = winners(batch, filter, i);
                const Element* const g = upstream(batch, filter, i);
                for (int64_t q = 0; q < s.column.outputs; ++q)
                    if (is_winner(won[q]))
                        sums[won[q] * SUMS + q % SUMS] += widen<Compute>(g[q * p.dy_strides.column]);
            }
        Element* const dw = static_cast<Element*>(p.dw) + filter * K;
        for (int64_t k = 0; k < K; ++k, sums += SUMS) dw[k] = rounded((sums[0] + sums[1]) + (sums[2] + sums[3]));
    }

    static Element rounded(Compute x) { return narrow_exact<Element>(Rounding(false)(x)); }
};

}  // namespace
