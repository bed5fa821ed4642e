// The readout of definition.py with a dense weight. Columns come in blocks, and all positions pass a block before the
// next: a row that several positions name is read from memory once.
//
// Of each block and position the forward keeps the largest logit and the sum of exponentials beside it, which are put
// together in the order of the blocks; the backward adds up what flows to a column in the order of the positions, and
// no two threads write one column. So the bits depend neither on the threads nor on which position goes where.

#pragma once

#include "../runtime/native/exponential.hpp"

#include <cmath>

namespace {

static_assert(std::is_floating_point_v<Compute>);
using Vector = typename Simd<Compute>::Vector;
constexpr int WIDTH = Simd<Compute>::WIDTH;
constexpr int LANES = PartialSums<Compute>::COUNT;
constexpr int64_t BLOCK = 1024;  // columns whose logits lie in the first cache
constexpr Compute INFINITE = std::numeric_limits<Compute>::infinity();
constexpr Compute NOT_A_NUMBER = std::numeric_limits<Compute>::quiet_NaN();

bool is_finite(Compute x) { return x - x == 0; }

// WIDTH elements, as the compute type.
template <class T>
inline Vector fetch(const T* source) {
    if constexpr (std::is_same_v<T, Compute>) {
        return load<Vector>(source);
    } else {
        typedef uint16_t Short __attribute__((vector_size(VECTOR_BYTES / 2)));
        using I = typename Simd<Compute>::IndexVector;
        const I bits = __builtin_convertvector(load<Short>(source), I);
        if constexpr (std::is_same_v<T, Brain>) return bit_cast<Vector>(bits << 16);
        const I sign = (bits & 0x8000) << 16, magnitude = bits & 0x7fff;
        const I normal = (magnitude << 13) + (magnitude < 0x7c00 ? I{} + (112 << 23) : I{} + (224 << 23));
        const I subnormal = bit_cast<I>(__builtin_convertvector(magnitude, Vector) * 0x1p-24f);
        return bit_cast<Vector>(sign | (magnitude < 0x0400 ? subnormal : normal));
    }
}

struct Call {
    int64_t B, K, D, V, row_stride, column_stride, rows, threads;  // rows: positions of a task of the forward
    const Element* weight;
    const int64_t *contexts, *targets;
    const Compute *bias, *weights;

    int64_t blocks() const { return ceil_div(V, BLOCK); }
    int64_t columns(int64_t block) const { return std::min(BLOCK, V - block * BLOCK); }
    const Element* row(int64_t c) const { return weight + c * row_stride; }

    // The logit of one column, added up as `Logits` does.
    Compute logit(int64_t b, int64_t v) const {
        Compute z = bias[v];
        for (int64_t k = 0; k < K; ++k)
            if (const int64_t c = contexts[b * K + k]; c >= 0)
                z += weights[k] * widen<Compute>(row(c)[v * column_stride]);
        return z;
    }
};

// Σ exp(z − top) of `count` logits, beyond which z is −∞ up to `padded`; where top is infinite, how many z equal it.
inline Compute total_of(const Compute* z, int64_t count, int64_t padded, Compute top) {
    if (!is_finite(top)) {
        Compute total = 0;
        for (int64_t j = 0; j < count; ++j) total += z[j] == z[j] ? Compute(z[j] == top) : NOT_A_NUMBER;
        return total;
    }
    PartialSums<Compute> sums;
    for (int64_t j = 0; j < padded; j += LANES)
        for (int i = 0; i < sums.VECTORS; ++i)
            sums.parts[i] += exponential<Compute>(load<Vector>(z + j + i * WIDTH) - top);
    return sums.total();
}

// z ← exp(z − top) · share, 0 beyond the last logit.
inline void become_shares(Compute* z, int64_t padded, Compute top, Compute share) {
    for (int64_t j = 0; j < padded; j += WIDTH) store(z + j, exponential<Compute>(load<Vector>(z + j) - top) * share);
}

// The largest that is no NaN; −∞ if there is none.
inline Compute largest(const Compute* z, int64_t count) {
    Compute top = -INFINITE;
    for (int64_t j = 0; j < count; ++j) top = larger(z[j], top);
    return top;
}

// Parts of a sum of exponentials, each beside a largest logit of its own, put together in their order.
struct Merged {
    Compute top;
    double sum;
};

inline Merged merge(const Compute* tops, const Compute* totals, int64_t parts, int64_t step) {
    Merged merged{-INFINITE, 0};
    for (int64_t i = 0; i < parts; ++i) merged.top = std::max(merged.top, tops[i * step]);
    for (int64_t i = 0; i < parts; ++i) {
        const Compute x = tops[i * step];
        merged.sum += double(x == merged.top ? Compute(1) : exponential<Compute>(x - merged.top)) * totals[i * step];
    }
    return merged;
}

// The logits of one position in one block of columns, and −∞ beyond the last, in whole partial sums.
struct Logits {
    const Call& call;
    std::vector<const Element*> rows;     // those that the position names
    std::vector<int64_t> places;          // of these among the K
    std::vector<Element> gathered;        // rows whose columns do not lie side by side
    alignas(CACHE_LINE) Compute z[BLOCK];
    int64_t count = 0, padded = 0;
    Compute top = -INFINITE;              // the largest that is no NaN

    explicit Logits(const Call& call) : call(call), rows(call.K), places(call.K) {
        if (call.column_stride != 1) gathered.resize(call.K * BLOCK);
    }

    int64_t names(int64_t b, int64_t first) {
        int64_t named = 0;
        for (int64_t k = 0; k < call.K; ++k) {
            const int64_t c = call.contexts[b * call.K + k];
            if (c < 0) continue;
            rows[named] = call.row(c) + first * call.column_stride;
            places[named++] = k;
        }
        return named;
    }

    int64_t fill(int64_t b, int64_t block) {
        const int64_t first = block * BLOCK, named = names(b, first);
        count = call.columns(block);
        padded = ceil_div(count, LANES) * LANES;
        if (call.column_stride != 1) {
            for (int64_t i = 0; i < named; ++i) {
                Element* to = gathered.data() + i * BLOCK;
                for (int64_t j = 0; j < count; ++j) to[j] = rows[i][j * call.column_stride];
                rows[i] = to;
            }
        }
        const Compute* bias = call.bias + first;
        constexpr int STEP = 4;
        Vector tops[STEP];
        for (Vector& x : tops) x = Vector{} - INFINITE;
        int64_t j = 0;
        for (; j + STEP * WIDTH <= count; j += STEP * WIDTH) {
            Vector sums[STEP];
            for (int i = 0; i < STEP; ++i) sums[i] = load<Vector>(bias + j + i * WIDTH);
            for (int64_t n = 0; n < named; ++n) {
                const Compute w = call.weights[places[n]];
                for (int i = 0; i < STEP; ++i) sums[i] += fetch(rows[n] + j + i * WIDTH) * w;
            }
            for (int i = 0; i < STEP; ++i) {
                store(z + j + i * WIDTH, sums[i]);
                tops[i] = larger(sums[i], tops[i]);
            }
        }
        top = -INFINITE;
        for (const Vector& x : tops)
            for (int i = 0; i < WIDTH; ++i) top = std::max(top, Compute(x[i]));
        for (; j < count; ++j) {
            Compute sum = bias[j];
            for (int64_t n = 0; n < named; ++n) sum += widen<Compute>(rows[n][j]) * call.weights[places[n]];
            z[j] = sum;
            top = larger(sum, top);
        }
        for (; j < padded; ++j) z[j] = -INFINITE;
        return named;
    }
};

// work(t) of [0, tasks), by as many threads; each makes its `Room` once.
template <class Room, class Work>
void share_out(const Call& call, int64_t tasks, const Work& work) {
    std::atomic<int64_t> next{0};
    in_parallel(int(std::max<int64_t>(1, std::min(call.threads, tasks))), [&](int) {
        Room room(call);
        for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) work(t, room);
    });
}

void forward(const Call& call, Compute* losses, Compute* tops, Compute* shares) {
    const int64_t B = call.B, blocks = call.blocks(), groups = ceil_div(B, call.rows);
    std::vector<Compute> parts(2 * blocks * B);
    Compute *top = parts.data(), *total = top + blocks * B;
    share_out<Logits>(call, blocks * groups, [&](int64_t task, Logits& logits) {
        const int64_t block = task / groups, first = task % groups * call.rows;
        for (int64_t b = first; b < std::min(B, first + call.rows); ++b) {
            logits.fill(b, block);
            top[block * B + b] = logits.top;
            total[block * B + b] = total_of(logits.z, logits.count, logits.padded, logits.top);
        }
    });
    for (int64_t b = 0; b < B; ++b) {
        const Merged merged = merge(top + b, total + b, blocks, B);
        losses[b] = Compute((double(merged.top) - call.logit(b, call.targets[b])) + std::log(merged.sum));
        tops[b] = merged.top;
        shares[b] = is_finite(merged.top) ? Compute(1 / merged.sum) : NOT_A_NUMBER;
    }
}

struct Slopes {
    const Compute *g, *tops, *shares;  // [B]
    Compute *dbias, *dweights;         // null where not needed, as
    Element* dweight;                  // [D, V], zeros
};

// dz · row of WIDTH or one; 0 where dz is, of −∞ too.
template <class X>
inline X product(X dz, X row) {
    const X zero = X{};
    return dz == zero ? zero : dz * row;
}

// The distinct ones among keys ≥ 0, in the order in which they come first.
struct Distinct {
    std::vector<int64_t> slots;  // of each key among them; −1 of a key below 0
    std::vector<int64_t> keys;

    template <class Key>
    Distinct(int64_t count, const Key& key) : slots(count, -1) {
        int64_t size = 16;
        while (size < 2 * count) size *= 2;
        std::vector<int64_t> table(size, -1);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t wanted = key(i);
            if (wanted < 0) continue;
            for (uint64_t at = (uint64_t(wanted) * 0x9E3779B97F4A7C15u) >> 20;; ++at) {
                int64_t& slot = table[at & (size - 1)];
                if (slot < 0) {
                    slot = int64_t(keys.size());
                    keys.push_back(wanted);
                }
                if (keys[slot] == wanted) {
                    slots[i] = slot;
                    break;
                }
            }
        }
    }
};

struct BackwardRoom {
    Logits logits;
    std::vector<Compute> rows;
    explicit BackwardRoom(const Call& call) : logits(call) {}
};

void backward(const Call& call, const Slopes& slopes) {
    constexpr bool IS_NARROW = !std::is_same_v<Element, Compute>;
    const int64_t B = call.B, K = call.K, blocks = call.blocks();
    std::vector<double> parts(slopes.dweights ? blocks * K : 0);
    // what flows to a block's rows is added up here, where the element type is too narrow for it
    std::vector<Distinct> named;
    if (IS_NARROW && slopes.dweight) named.emplace_back(B * K, [&](int64_t i) { return call.contexts[i]; });
    share_out<BackwardRoom>(call, blocks, [&](int64_t block, BackwardRoom& room) {
        Logits& logits = room.logits;
        Compute* const z = logits.z;
        const int64_t first = block * BLOCK;
        if (!named.empty()) room.rows.assign(named[0].keys.size() * BLOCK, 0);
        alignas(CACHE_LINE) Compute into_bias[BLOCK] = {};
        for (int64_t b = 0; b < B; ++b) {
            const int64_t count = logits.fill(b, block), target = call.targets[b] - first;
            const int64_t padded = logits.padded, columns = logits.count;
            become_shares(z, padded, slopes.tops[b], slopes.shares[b] * slopes.g[b]);
            if (target >= 0 && target < columns) z[target] -= slopes.g[b];
            if (slopes.dbias)
                for (int64_t j = 0; j < padded; j += WIDTH)
                    store(into_bias + j, load<Vector>(into_bias + j) + load<Vector>(z + j));
            for (int64_t n = 0; n < count; ++n) {
                const int64_t k = logits.places[n];
                if (slopes.dweights) {
                    const Element* row = logits.rows[n];
                    PartialSums<Compute> sums;
                    int64_t j = 0;
                    for (; j + LANES <= columns; j += LANES)
                        for (int i = 0; i < sums.VECTORS; ++i)
                            sums.parts[i] += product(load<Vector>(z + j + i * WIDTH), fetch(row + j + i * WIDTH));
                    Compute rest = 0;
                    for (; j < columns; ++j) rest += product(z[j], widen<Compute>(row[j]));
                    parts[block * K + k] += double(sums.total()) + rest;
                }
                if (slopes.dweight) {
                    const Compute w = call.weights[k];
                    const int64_t i = b * K + k;
                    Compute* const into =
                        IS_NARROW ? room.rows.data() + named[0].slots[i] * BLOCK
                                  : reinterpret_cast<Compute*>(slopes.dweight) + call.contexts[i] * call.V + first;
                    int64_t j = 0;
                    for (; j + WIDTH <= columns; j += WIDTH)
                        store(into + j, load<Vector>(into + j) + load<Vector>(z + j) * w);
                    for (; j < columns; ++j) into[j] += z[j] * w;
                }
            }
        }
        if (slopes.dbias) std::copy_n(into_bias, call.columns(block), slopes.dbias + first);
        if constexpr (IS_NARROW) {
            for (std::size_t i = 0; !named.empty() && i < named[0].keys.size(); ++i) {
                Element* to = slopes.dweight + named[0].keys[i] * call.V + first;
                for (int64_t j = 0; j < call.columns(block); ++j)
                    to[j] = narrow_exact<Element>(Rounding(false)(room.rows[i * BLOCK + j]));
            }
        }
    });
    for (int64_t k = 0; slopes.dweights && k < K; ++k) {
        double sum = 0;
        for (int64_t block = 0; block < blocks; ++block) sum += parts[block * K + k];
        slopes.dweights[k] = Compute(sum);
    }
}

}  // namespace

