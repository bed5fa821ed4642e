// The readout of definition.py with a CSR weight: of each position the logits are the bias, but at the nonzeros of K rows.
//
// exp z[b, v] = exp bias[v] · Π_k exp(weights[k] · value): the exponentials of the bias and of each row's nonzeros are made
// once for all positions that name the row, and a position multiplies them. Σ_v is then a plain sum of all columns, with
// nothing subtracted from it: no digits cancel. Columns come in tiles; a row that fills much of one is written out there
// and multiplied as a whole.
//
// Where such a product might leave the normal numbers (`Range`), the position adds its logits up and takes exponentials
// of all columns, as the dense readout does.

#pragma once

#include "dense.hpp"

namespace {

struct SparseCall {
    int64_t B, K, D, V, wide, rows, threads;  // wide: col is int64, else int32; rows: positions of a task of the forward
    const int64_t* crow;
    const void* col;
    const Compute* values;
    const int64_t *contexts, *targets;
    const Compute *bias, *weights;

    int64_t column(int64_t j) const {
        return wide ? static_cast<const int64_t*>(col)[j] : static_cast<const int32_t*>(col)[j];
    }

    // The place of the first nonzero of [from, to) whose column is at least v.
    int64_t place(int64_t from, int64_t to, int64_t v) const {
        while (from < to) {
            const int64_t middle = from + (to - from) / 2;
            if (column(middle) < v)
                from = middle + 1;
            else
                to = middle;
        }
        return from;
    }
};

constexpr int64_t TILE = 2048;  // columns whose products, and whose base, lie in the first cache
constexpr int STEP = 4;         // vectors that are multiplied side by side
constexpr int64_t FILLED = 6;   // a row with more than TILE / FILLED nonzeros in a tile is written out there

// How far exponents may reach, so that no product of exponentials leaves the normal numbers.
template <class C>
struct Range;
template <>
struct Range<float> {
    static constexpr float ALL = 150, EACH = 80, UP = 70;  // e^UP leaves room for a sum over columns
};
template <>
struct Range<double> {
    static constexpr double ALL = 1350, EACH = 650, UP = 600;
};

// A row times the weight of a context's place: its nonzeros, and how far weight · value reaches up and down.
struct Term {
    int64_t k, begin, end;
    Compute up = 0, down = 0;
};

class SparseReadout {
    const SparseCall& call;
    int64_t tiles;
    Distinct named;  // pairs of a row and a k
    std::vector<Term> terms;
    std::vector<int64_t> starts;  // [terms, tiles + 1]: where a term's nonzeros begin in each tile
    std::vector<Compute> base;    // exp(bias − top)
    Compute top = -INFINITE, depth = 0;  // of bias: the largest, and how far the others reach down, but for −∞
    bool are_ascending = true;

    static int64_t key(const SparseCall& call, int64_t i) {
        const int64_t c = call.contexts[i];
        return c < 0 ? c : c * call.K + i % call.K;
    }

    // Returns whether the columns ascend in [0, V).
    template <class Column>
    bool measure(Term& term, const Column* col, int64_t* starts) const {
        const Compute w = call.weights[term.k];
        const int64_t count = term.end - term.begin;
        const Compute* values = call.values + term.begin;
        col += term.begin;
        Vector ups = {}, downs = {}, nothing = {};
        const Vector lowest = Vector{} - INFINITE;
        const auto take = [&](Vector x) {
            ups = larger(x, ups);
            const Vector fall = x == lowest ? Vector{} : -x;  // to a product of 0, exactly
            downs = larger(fall, downs);
            nothing = x == x ? nothing : x;
        };
        int64_t j = 0;
        for (; j + WIDTH <= count; j += WIDTH) take(load<Vector>(values + j) * w);
        for (; j < count; ++j) take(Vector{} + values[j] * w);
        for (int i = 0; i < WIDTH; ++i) {
            term.up = std::max(term.up, Compute(ups[i]));
            term.down = std::max(term.down, Compute(downs[i]));
        }
        for (int i = 0; i < WIDTH; ++i) term.up += nothing[i];
        bool is_right = count == 0 || (col[0] >= 0 && col[count - 1] < call.V);
        for (int64_t i = 1; i < count; ++i) is_right &= col[i] > col[i - 1];
        int64_t at = term.begin;
        for (int64_t t = 0; t <= tiles; ++t) starts[t] = at = call.place(at, term.end, t * TILE);
        return is_right;
    }

    // A position's scale, by which its products begin, if all of them are normal numbers; else NaN.
    Compute shift(int64_t b) const {
        using R = Range<Compute>;
        Compute up = 0, down = 0;
        bool fits = true;
        for (int64_t i = b * call.K; i < (b + 1) * call.K; ++i) {
            if (named.slots[i] < 0) continue;
            const Term& term = terms[named.slots[i]];
            up += term.up;
            down += term.down;
            fits &= term.up <= R::EACH && term.down <= R::EACH;
        }
        if (!(fits && depth + up + down <= R::ALL)) return NOT_A_NUMBER;
        return up > R::UP ? up - R::UP : 0;
    }

    // A tile of one term, as the positions multiply it.
    struct Factors {
        int64_t first = -1;   // in the room's factors; −1: not made yet
        int64_t columns = 0;  // in the room's columns
        int64_t values = -1;  // written-out values in the room's factors, of a row that is written out
        int64_t count = 0;
        bool is_whole = false;
    };

    struct Room {
        std::vector<Factors> made;
        std::vector<Compute> factors;
        std::vector<uint16_t> columns;
        std::vector<int64_t> whole;  // of one position: the rows that are written out, in factors
        alignas(CACHE_LINE) Compute p[TILE];
        explicit Room(const SparseReadout& readout) : made(readout.terms.size()), whole(readout.call.K) {}
    };

    int64_t width(int64_t tile) const { return std::min(TILE, call.V - tile * TILE); }

    const Factors& factors_of(int64_t slot, int64_t tile, bool with_values, Room& room) const {
        Factors& made = room.made[slot];
        if (made.first >= 0) return made;
        const Term& term = terms[slot];
        const int64_t* from = starts.data() + slot * (tiles + 1) + tile;
        const Compute w = call.weights[term.k];
        made.first = int64_t(room.factors.size());
        made.count = from[1] - from[0];
        made.is_whole = made.count * FILLED > TILE;
        const int64_t padded = ceil_div(made.count, WIDTH) * WIDTH;
        // the exponentials first, side by side
        room.factors.resize(made.first + padded, 0);
        Compute* e = room.factors.data() + made.first;
        for (int64_t j = 0; j < made.count; ++j) e[j] = call.values[from[0] + j] * w;
        for (int64_t j = 0; j < padded; j += WIDTH) store(e + j, exponential<Compute>(load<Vector>(e + j)));
        if (made.is_whole) {
            const int64_t whole = int64_t(room.factors.size());
            room.factors.resize(whole + (with_values ? 2 * TILE : TILE), 0);
            Compute *to = room.factors.data() + whole, *values = to + TILE;
            std::fill_n(to, TILE, Compute(1));
            e = room.factors.data() + made.first;
            for (int64_t j = 0; j < made.count; ++j) {
                const int64_t v = call.column(from[0] + j) - tile * TILE;
                to[v] = e[j];
                if (with_values) values[v] = call.values[from[0] + j];
            }
            made.first = whole;
            made.values = whole + TILE;
        } else {
            made.columns = int64_t(room.columns.size());
            room.columns.resize(made.columns + made.count);
            uint16_t* to = room.columns.data() + made.columns;
            for (int64_t j = 0; j < made.count; ++j) to[j] = uint16_t(call.column(from[0] + j) - tile * TILE);
        }
        return made;
    }

    static void begin(Room& room) {
        std::fill(room.made.begin(), room.made.end(), Factors{});
        room.factors.clear();
        room.columns.clear();
    }

    // room.p ← scale · exp(z − top), 0 beyond the last column.
    void multiply(int64_t b, int64_t tile, Compute scale, bool with_values, Room& room) const {
        Compute* const p = room.p;
        const int64_t padded = ceil_div(width(tile), STEP * WIDTH) * STEP * WIDTH;
        const Compute* from = base.data() + tile * TILE;
        int64_t whole = 0;
        for (int64_t k = 0; k < call.K; ++k)
            if (const int64_t slot = named.slots[b * call.K + k]; slot >= 0)
                if (const Factors& made = factors_of(slot, tile, with_values, room); made.is_whole)
                    room.whole[whole++] = made.first;
        for (int64_t j = 0; j < padded; j += STEP * WIDTH) {
            Vector products[STEP];
            for (int i = 0; i < STEP; ++i) products[i] = load<Vector>(from + j + i * WIDTH) * scale;
            for (int64_t n = 0; n < whole; ++n) {
                const Compute* factor = room.factors.data() + room.whole[n] + j;
                for (int i = 0; i < STEP; ++i) products[i] *= load<Vector>(factor + i * WIDTH);
            }
            for (int i = 0; i < STEP; ++i) store(p + j + i * WIDTH, products[i]);
        }
        for (int64_t k = 0; k < call.K; ++k) {
            const int64_t slot = named.slots[b * call.K + k];
            if (slot < 0 || room.made[slot].is_whole) continue;
            const Factors& made = room.made[slot];
            const Compute* const factor = room.factors.data() + made.first;
            const uint16_t* const column = room.columns.data() + made.columns;
            const int64_t count = made.count;
#pragma GCC unroll 4
            for (int64_t j = 0; j < count; ++j) p[column[j]] *= factor[j];
        }
    }

    // room.p ← z, −∞ beyond the last column.
    void add(int64_t b, int64_t tile, Room& room) const {
        Compute* const z = room.p;
        const int64_t columns = width(tile), first = tile * TILE;
        std::copy_n(call.bias + first, columns, z);
        std::fill(z + columns, z + ceil_div(columns, LANES) * LANES, -INFINITE);
        for (int64_t k = 0; k < call.K; ++k) {
            const int64_t slot = named.slots[b * call.K + k];
            if (slot < 0) continue;
            const int64_t* from = starts.data() + slot * (tiles + 1) + tile;
            const Compute w = call.weights[k];
            for (int64_t j = from[0]; j < from[1]; ++j) z[call.column(j) - first] += call.values[j] * w;
        }
    }

    Compute target_logit(int64_t b) const {
        const int64_t v = call.targets[b];
        Compute z = call.bias[v];
        for (int64_t k = 0; k < call.K; ++k) {
            const int64_t slot = named.slots[b * call.K + k];
            if (slot < 0) continue;
            const int64_t j = call.place(terms[slot].begin, terms[slot].end, v);
            if (j < terms[slot].end && call.column(j) == v) z += call.values[j] * call.weights[k];
        }
        return z;
    }

    // Σ_j dz[column[j]] · value[j] of one term in one tile.
    Compute dot(int64_t slot, int64_t tile, Room& room) const {
        const Factors& made = factors_of(slot, tile, true, room);
        const Compute* const dz = room.p;
        if (made.is_whole) {
            const Compute* values = room.factors.data() + made.values;
            PartialSums<Compute> sums;
            for (int64_t j = 0; j < TILE && j < width(tile); j += LANES)
                for (int i = 0; i < sums.VECTORS; ++i)
                    sums.parts[i] += product(load<Vector>(dz + j + i * WIDTH), load<Vector>(values + j + i * WIDTH));
            return sums.total();
        }
        const uint16_t* column = room.columns.data() + made.columns;
        const Compute* values = call.values + starts[slot * (tiles + 1) + tile];
        Compute sums[4] = {};
        int64_t j = 0;
        for (; j + 4 <= made.count; j += 4)
            for (int i = 0; i < 4; ++i) sums[i] += product(dz[column[j + i]], values[j + i]);
        for (; j < made.count; ++j) sums[0] += product(dz[column[j]], values[j]);
        return (sums[0] + sums[1]) + (sums[2] + sums[3]);
    }

    template <class Work>
    void each(int64_t tasks, const Work& work) const {
        std::atomic<int64_t> next{0};
        in_parallel(int(std::max<int64_t>(1, std::min(call.threads, tasks))), [&](int) {
            Room room(*this);
            for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(t, room);
        });
    }

    int64_t* at_tiles(int64_t term) { return starts.data() + term * (tiles + 1); }

public:
    explicit SparseReadout(const SparseCall& call)
        : call(call), tiles(ceil_div(call.V, TILE)), named(call.B * call.K, [&](int64_t i) { return key(call, i); }) {
        for (const int64_t each : named.keys) {
            const int64_t c = each / call.K;
            terms.push_back({each % call.K, call.crow[c], call.crow[c + 1]});
        }
        const int64_t count = int64_t(terms.size());
        starts.resize(count * (tiles + 1));
        constexpr int64_t SOME = 16;
        std::atomic<bool> are_right{true};
        std::atomic<int64_t> next{0};
        in_parallel(int(std::max<int64_t>(1, std::min(call.threads, count / SOME))), [&](int) {
            for (int64_t i; (i = next.fetch_add(SOME, std::memory_order_relaxed)) < count;)
                for (int64_t t = i; t < std::min(count, i + SOME); ++t)
                    if (!(call.wide ? measure(terms[t], static_cast<const int64_t*>(call.col), at_tiles(t))
                                    : measure(terms[t], static_cast<const int32_t*>(call.col), at_tiles(t))))
                        are_right = false;
        });
        are_ascending = are_right;
        Compute lowest = INFINITE, nothing = 0;
        for (int64_t v = 0; v < call.V; ++v) {
            const Compute x = call.bias[v];
            top = larger(x, top);
            lowest = x < lowest && x != -INFINITE ? x : lowest;
            nothing = x == x ? nothing : x;
        }
        depth = top - lowest + nothing;  // no number where there is none in bias, or a NaN or +∞
        if (lowest == INFINITE) depth = NOT_A_NUMBER;
        base.resize(tiles * TILE, 0);
        std::copy_n(call.bias, call.V, base.data());
        std::fill(base.begin() + call.V, base.end(), -INFINITE);
        for (int64_t j = 0; is_finite(depth) && j < tiles * TILE; j += WIDTH)
            store(base.data() + j, exponential<Compute>(load<Vector>(base.data() + j) - top));
    }

    bool are_columns_right() const { return are_ascending; }

    void forward(Compute* losses, Compute* tops, Compute* shares) const {
        const int64_t B = call.B, groups = ceil_div(B, call.rows);
        std::vector<Compute> parts(2 * tiles * B), shifts(B);
        Compute *part_top = parts.data(), *total = part_top + tiles * B;
        for (int64_t b = 0; b < B; ++b) shifts[b] = shift(b);
        each(tiles * groups, [&](int64_t task, Room& room) {
            const int64_t tile = task / groups, first = task % groups * call.rows;
            const int64_t padded = ceil_div(width(tile), LANES) * LANES;
            begin(room);
            for (int64_t b = first; b < std::min(B, first + call.rows); ++b) {
                const Compute shift = shifts[b];
                Compute highest = 0, sum;
                if (shift == shift) {
                    multiply(b, tile, exponential<Compute>(-shift), false, room);
                    PartialSums<Compute> sums;
                    for (int64_t j = 0; j < padded; j += LANES)
                        for (int i = 0; i < sums.VECTORS; ++i) sums.parts[i] += load<Vector>(room.p + j + i * WIDTH);
                    sum = sums.total();
                } else {
                    add(b, tile, room);
                    highest = largest(room.p, width(tile));
                    sum = total_of(room.p, width(tile), padded, highest);
                }
                part_top[tile * B + b] = highest;
                total[tile * B + b] = sum;
            }
        });
        for (int64_t b = 0; b < B; ++b) {
            const bool multiplied = shifts[b] == shifts[b];
            const Merged merged = merge(part_top + b, total + b, tiles, B);
            // the products are those of exp(z − top) and exp(−shift)
            const double beside = multiplied ? double(top) + shifts[b] : double(merged.top);
            losses[b] = Compute((beside - target_logit(b)) + std::log(merged.sum));
            tops[b] = Compute(beside);
            shares[b] = is_finite(tops[b]) ? Compute(1 / merged.sum) : NOT_A_NUMBER;
        }
    }

    void backward(const Slopes& slopes) const {
        const int64_t B = call.B, K = call.K;
        std::vector<double> parts(slopes.dweights ? tiles * K : 0);
        std::vector<Compute> shifts(B);
        for (int64_t b = 0; b < B; ++b) shifts[b] = shift(b);
        each(tiles, [&](int64_t tile, Room& room) {
            const int64_t first = tile * TILE, columns = width(tile), padded = ceil_div(columns, LANES) * LANES;
            Compute* const p = room.p;
            alignas(CACHE_LINE) Compute into_bias[TILE] = {};
            begin(room);
            for (int64_t b = 0; b < B; ++b) {
                const int64_t target = call.targets[b] - first;
                const Compute share = slopes.shares[b] * slopes.g[b];
                if (shifts[b] == shifts[b]) {
                    multiply(b, tile, exponential<Compute>(-shifts[b]), slopes.dweights, room);
                } else {
                    add(b, tile, room);
                    become_shares(p, padded, slopes.tops[b], 1);
                }
                for (int64_t j = 0; j < padded; j += WIDTH) {
                    const Vector dz = load<Vector>(p + j) * share;
                    store(p + j, dz);
                    store(into_bias + j, load<Vector>(into_bias + j) + dz);
                }
                if (target >= 0 && target < columns) {
                    p[target] -= slopes.g[b];
                    into_bias[target] -= slopes.g[b];
                }
                for (int64_t k = 0; slopes.dweights && k < K; ++k)
                    if (const int64_t slot = named.slots[b * K + k]; slot >= 0)
                        parts[tile * K + k] += dot(slot, tile, room);
            }
            if (slopes.dbias) std::copy_n(into_bias, columns, slopes.dbias + first);
        });
        for (int64_t k = 0; slopes.dweights && k < K; ++k) {
            double sum = 0;
            for (int64_t tile = 0; tile < tiles; ++tile) sum += parts[tile * K + k];
            slopes.dweights[k] = Compute(sum);
        }
    }
};

}  // namespace
