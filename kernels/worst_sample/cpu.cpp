// The iterations of definition.py, many in one call, touching only what moved.
//
// A step moves a few weights, and with each of them one leaf of the minimum (n, j) or the maximum (n, k) of every
// sample n. Two memories find the new winner, and both stay equal to what a dense evaluation would find, bit for bit:
//
//   Winners   u, I, f, J, and a bound that none of the other leaves beats. A leaf that beats the winner takes its place,
//             and the old winner is the bound; the winner stays as long as it beats the bound, and all leaves are read
//             again where it does not. O(1) a sample, and O(p) for the few that are read.
//   Trees     a tournament tree over the leaves of each (n, j) and (n, k): O(log p) and O(log q), for two bytes
//             a leaf. Nesterov's short computational trees, which hold winners here, not values.
//
// n* comes from a tournament of two levels: the largest ℓ of each block of samples in which an ℓ changed, then of all blocks.
//
// A value is always computed from its leaf, never by adding the step to it. All weights change before the first leaf is
// looked at; a leaf that is read before its turn is then merely found unchanged. Samples do not depend on each other, so
// any number of threads, in any order, leave the same bits.

#include "../native.hpp"

#include <cmath>
#include <utility>

namespace {

using T = Element;

enum Ends : int64_t { GOING, MET, ROUNDED, DIVERGED };
enum Losses : int64_t { HINGE, CROSS_ENTROPY };
enum Steps : int64_t { POLYAK, SQRT, POWER };

struct Progress {  // definition.Progress
    int64_t iteration, status, worst, idle, raises, best_iteration, right, best_right, best_right_iteration;
    double loss, best_loss, best_right_loss, record, gap, path, longest_path, length;
};

struct Weights {
    T *a, *w1, *w2;  // [p, d], [q, p], [K, q]
};

struct Problem {  // cpu._Problem
    int64_t N, training, d, p, q, K;
    int64_t columns;  // of z that are stored: p, or p / 2 where the second half of A is the negative of the first
    int64_t loss, step, trains_a, has_trees, idle_limit, threads;
    double margin, target, patience;
    const T *x, *xt;  // [N, d]; [d, N], null where A is fixed
    const int32_t* y;
    Weights weights, best, best_right;  // best_right: null without validation samples
    T *z, *zt;    // [N, columns]; [columns, N], null with trees
    T *u, *ut;    // [N, q]; [q, N], null with trees
    T *unit_other, *score_other;  // [q, N], [K, N]: no leaf but the winner beats these; null with trees
    T *f, *losses;  // [K, N], [N]
    void *unit_winner, *score_winner;  // I [q, N], J [K, N]
    void *unit_trees, *score_trees;    // [N, q, ceil2(p)], [N, K, ceil2(q)]: trees alone
    uint8_t* is_right;                 // [N]
    int64_t* times_worst;              // [training]
    Progress* progress;
};

template <class X, int COUNT>
struct Lanes {
    typedef X Vector __attribute__((vector_size(COUNT * sizeof(X))));
};

template <bool MAXIMUM>
struct Order {
    template <class V>
    static auto beats(V x, V y) { return MAXIMUM ? x > y : x < y; }
};

template <class Index>
struct Won {
    T value;
    Index index;
    T other;  // no leaf but the winner beats this
};

// The best ±a_i + b_i, the first i that attains it, and the best of the others.
template <bool MAXIMUM, class Index, bool NEGATED = false>
Won<Index> best_sum(const T* a, const T* b, int64_t count) {
    using Vector = typename Simd<T>::Vector;
    constexpr int64_t WIDTH = Simd<T>::WIDTH, LANES = 4;
    using Best = Order<MAXIMUM>;
    const auto sum = [](auto x, auto y) { return NEGATED ? y - x : x + y; };
    constexpr T WORST = MAXIMUM ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
    const auto enter = [](auto x, auto& first, auto& second) {
        const auto beaten = Best::beats(x, first) ? first : x;
        second = Best::beats(beaten, second) ? beaten : second;
        first = Best::beats(x, first) ? x : first;
    };
    Vector first[LANES], second[LANES];
    for (int64_t r = 0; r < LANES; ++r) first[r] = second[r] = Vector{} + WORST;
    int64_t i = 0;
    for (; i + LANES * WIDTH <= count; i += LANES * WIDTH)
        for (int64_t r = 0; r < LANES; ++r)
            enter(Vector(sum(load<Vector>(a + i + r * WIDTH), load<Vector>(b + i + r * WIDTH))), first[r], second[r]);
    for (; i + WIDTH <= count; i += WIDTH) enter(Vector(sum(load<Vector>(a + i), load<Vector>(b + i))), first[0], second[0]);
    for (int64_t r = 1; r < LANES; ++r) {
        enter(first[r], first[0], second[0]);
        enter(second[r], first[0], second[0]);
    }
    T best = WORST, other = WORST;
    for (int64_t r = 0; r < WIDTH; ++r) {
        enter(T(first[0][r]), best, other);
        enter(T(second[0][r]), best, other);
    }
    for (; i < count; ++i) enter(T(sum(a[i], b[i])), best, other);
    constexpr int64_t STRIDE = 64;
    for (int64_t begin = 0; begin < count; begin += STRIDE) {
        const int64_t end = std::min(begin + STRIDE, count);
        int found = 0;
        for (i = begin; i < end; ++i) found |= sum(a[i], b[i]) == best;
        if (found)
            for (i = begin;; ++i)
                if (sum(a[i], b[i]) == best) return {best, Index(i), other};
    }
    return {best, 0, best};  // NaN: the run has diverged, and ends
}

struct Moves {
    std::vector<int64_t> rows;                           // i: z_·i, and with it a leaf of every unit
    std::vector<std::pair<int64_t, int64_t>> leaves;     // (j, i)
    std::vector<std::pair<int64_t, int64_t>> readouts;   // (k, j)
    std::vector<int64_t> whole;                          // units of which so many leaves moved that all are read
    // Leaves to look at, of each sample.
    int64_t work(int64_t p, int64_t q) const {
        return int64_t(rows.size() * q + leaves.size() + readouts.size() + whole.size() * p);
    }
};

// Calls `found(n)` for the samples whose flag is set; most are not.
template <class Found>
inline void each_set(const uint8_t* flags, int64_t count, const Found& found) {
    for (int64_t n = 0; n < count; n += 8) {
        uint64_t eight;
        std::memcpy(&eight, flags + n, 8);
        if (eight == 0) continue;
        for (int64_t m = n; m < std::min(n + 8, count); ++m)
            if (flags[m]) found(m);
    }
}

// ------------------------------------------------------------------------------------------------ samples

double log_sum_exp(const Problem& s, int64_t n, double* softmax) {
    double top = s.f[n];
    for (int64_t k = 1; k < s.K; ++k) top = std::max(top, double(s.f[k * s.N + n]));
    double total = 0;
    for (int64_t k = 0; k < s.K; ++k) {
        const double term = std::exp(double(s.f[k * s.N + n]) - top);
        total += term;
        if (softmax) softmax[k] = term;
    }
    if (softmax)
        for (int64_t k = 0; k < s.K; ++k) softmax[k] /= total;
    return top + std::log(total);
}

int64_t best_rival(const Problem& s, int64_t n) {
    int64_t rival = -1;
    for (int64_t k = 0; k < s.K; ++k)
        if (k != s.y[n] && (rival < 0 || s.f[k * s.N + n] + T(s.margin) > s.f[rival * s.N + n] + T(s.margin))) rival = k;
    return rival;
}

constexpr int64_t BLOCK = 512;  // samples that a task takes, and whose largest loss is kept

// ℓ_n of the training samples among some, and whether the first highest score is that of their class.
void judge(const Problem& s, int64_t begin, int64_t count, const uint8_t* touched) {
    T own[BLOCK], top[BLOCK], rival[BLOCK];
    int32_t predicted[BLOCK];
    const T margin = T(s.margin);
    const int32_t* y = s.y + begin;
    for (int64_t n = 0; n < count; ++n)
        own[n] = 0, top[n] = rival[n] = -std::numeric_limits<T>::infinity(), predicted[n] = 0;
    for (int64_t k = 0; k < s.K; ++k) {
        const T* f = s.f + k * s.N + begin;
        for (int64_t n = 0; n < count; ++n) {
            const T score = f[n], with_margin = score + margin;
            const bool is_own = y[n] == int32_t(k), is_top = score > top[n];
            own[n] = is_own ? score : own[n];
            rival[n] = !is_own & (with_margin > rival[n]) ? with_margin : rival[n];
            top[n] = is_top ? score : top[n];
            predicted[n] = is_top ? int32_t(k) : predicted[n];
        }
    }
    for (int64_t n = 0; n < count; ++n) s.is_right[begin + n] = predicted[n] == y[n];
    if (begin >= s.training) return;
    T* losses = s.losses + begin;
    if (s.loss == CROSS_ENTROPY)
        each_set(touched, count, [&](int64_t n) {
            losses[n] = T(log_sum_exp(s, begin + n, nullptr) - double(own[n]));
        });
    else
        for (int64_t n = 0; n < count; ++n) losses[n] = rival[n] - own[n] < 0 ? T(0) : rival[n] - own[n];
}

// z_·i of some samples: in the order of the features, without those that weigh nothing.
void project(const Problem& s, int64_t i, int64_t begin, int64_t end) {
    const T* weights = s.weights.a + i * s.d;
    T sum[512];
    for (int64_t from = begin; from < end; from += 512) {
        const int64_t count = std::min<int64_t>(512, end - from);
        std::fill(sum, sum + count, T(0));
        for (int64_t l = 0; l < s.d; ++l) {
            const T weight = weights[l];
            if (weight == 0) continue;
            if (s.xt) {
                const T* x = s.xt + l * s.N + from;
                for (int64_t n = 0; n < count; ++n) sum[n] += x[n] * weight;
            } else {
                const T* x = s.x + from * s.d + l;
                for (int64_t n = 0; n < count; ++n) sum[n] += x[n * s.d] * weight;
            }
        }
        for (int64_t n = 0; n < count; ++n) s.z[(from + n) * s.columns + i] = sum[n];
        if (s.zt) std::copy(sum, sum + count, s.zt + i * s.N + from);
    }
}

// ------------------------------------------------------------------------------------------------ winners

template <class Index>
struct Winners {
    const Problem& s;
    Index* const I = static_cast<Index*>(s.unit_winner);
    Index* const J = static_cast<Index*>(s.score_winner);

    struct Block {
        const int64_t begin, count;
        // flags: whose winner no longer beats the bound; whose unit at hand has changed; of which some score has changed
        alignas(CACHE_LINE) uint8_t unsure[BLOCK] = {}, changed[BLOCK] = {}, touched[BLOCK] = {};
    };

    // One leaf of some samples has moved: to sign · leaf + weight.
    template <bool MAXIMUM>
    static void enter(const T* leaf, T sign, T weight, Index index, int64_t count, T* best, Index* winner, T* other,
                      uint8_t* unsure, uint8_t* changed) {
        int64_t n = 0;
        for (; n + Simd<T>::WIDTH <= count; n += Simd<T>::WIDTH)
            enter_lanes<MAXIMUM, Simd<T>::WIDTH>(leaf + n, sign, weight, index, best + n, winner + n, other + n,
                                                 unsure + n, changed + n);
        for (; n < count; ++n)
            enter_lanes<MAXIMUM, 1>(leaf + n, sign, weight, index, best + n, winner + n, other + n, unsure + n, changed + n);
    }

    template <bool MAXIMUM, int LANES>
    static inline void enter_lanes(const T* leaf, T sign, T weight, Index index, T* best, Index* winner, T* other,
                                   uint8_t* unsure, uint8_t* changed) {
        using Best = Order<MAXIMUM>;
        using Wide = typename Simd<T>::Index;  // as wide as T, so that comparisons of both make masks of one kind
        using V = typename Lanes<T, LANES>::Vector;
        using W = typename Lanes<Wide, LANES>::Vector;
        using Narrow = typename Lanes<Index, LANES>::Vector;
        using Flags = typename Lanes<uint8_t, LANES>::Vector;
        const V v = load<V>(leaf) * sign + weight, before = load<V>(best), bound = load<V>(other);
        const W won = __builtin_convertvector(load<Narrow>(winner), W);
        const W is_winner = won == Wide(index), stays = Best::beats(v, bound);
        const W wins = ~is_winner & (Best::beats(v, before) | ((v == before) & (won > Wide(index))));
        const V now = (wins | (is_winner & stays)) ? v : before, runner_up = stays ? v : bound;
        const V not_winner = wins ? before : runner_up;
        store(other, V(is_winner ? bound : not_winner));
        store(winner, __builtin_convertvector(W(wins ? W{} + Wide(index) : won), Narrow));
        store(best, now);
        store(unsure, __builtin_convertvector(W(is_winner & ~stays), Flags));
        store(changed, __builtin_convertvector(W(now != before), Flags));
    }

    // The scores of class k, after the leaf j has moved.
    void readout(Block& block, int64_t k, int64_t j) {
        const int64_t at = k * s.N + block.begin;
        const T weight = s.weights.w2[k * s.q + j];
        uint8_t changed[BLOCK];
        enter<true>(s.ut + j * s.N + block.begin, T(1), weight, Index(j), block.count, s.f + at, J + at,
                    s.score_other + at, block.unsure, changed);
        for (int64_t m = 0; m < block.count; ++m) block.touched[m] |= changed[m];
        each_set(block.unsure, block.count, [&](int64_t m) {
            const auto won = best_sum<true, Index>(s.u + (block.begin + m) * s.q, s.weights.w2 + k * s.q, s.q);
            block.touched[m] |= won.value != s.f[at + m];
            s.f[at + m] = won.value, J[at + m] = won.index, s.score_other[at + m] = won.other;
        });
    }

    // To the rows of u and the scores, what changed in unit j.
    void spread(Block& block, int64_t j) {
        const T* u = s.ut + j * s.N + block.begin;
        bool any = false;
        each_set(block.changed, block.count, [&](int64_t m) {
            s.u[(block.begin + m) * s.q + j] = u[m];
            any = true;
        });
        for (int64_t k = 0; any && k < s.K; ++k) readout(block, k, j);
    }

    Won<Index> all_leaves(int64_t n, int64_t j) const {
        const T *z = s.z + n * s.columns, *w = s.weights.w1 + j * s.p;
        const auto first = best_sum<false, Index>(z, w, s.columns);
        if (s.columns == s.p) return first;
        auto second = best_sum<false, Index, true>(z, w + s.columns, s.columns);
        second.index = Index(second.index + s.columns);
        return second.value < first.value ? Won<Index>{second.value, second.index, std::min(second.other, first.value)}
                                          : Won<Index>{first.value, first.index, std::min(first.other, second.value)};
    }

    void reread(Block& block, int64_t m, int64_t j) {
        const int64_t n = block.begin + m, at = j * s.N + n;
        const auto won = all_leaves(n, j);
        block.changed[m] = won.value != s.ut[at];
        s.ut[at] = won.value, I[at] = won.index, s.unit_other[at] = won.other;
    }

    void leaf(Block& block, int64_t j, int64_t i) {
        const bool is_negated = i >= s.columns;
        const T* z = s.zt + (is_negated ? i - s.columns : i) * s.N + block.begin;
        const int64_t at = j * s.N + block.begin;
        enter<false>(z, T(is_negated ? -1 : 1), s.weights.w1[j * s.p + i], Index(i), block.count, s.ut + at, I + at,
                     s.unit_other + at, block.unsure, block.changed);
        int64_t waiting = -1;  // a row is read from memory while the one before is searched
        each_set(block.unsure, block.count, [&](int64_t m) {
            const char* row = reinterpret_cast<const char*>(s.z + (block.begin + m) * s.columns);
            for (size_t line = 0; line < s.columns * sizeof(T); line += CACHE_LINE) __builtin_prefetch(row + line);
            if (waiting >= 0) reread(block, waiting, j);
            waiting = m;
        });
        if (waiting >= 0) reread(block, waiting, j);
        spread(block, j);
    }

    // Whether a loss or a prediction changed.
    bool move(const Moves& moves, int64_t begin, int64_t end) {
        Block block{begin, end - begin};
        for (int64_t i : moves.rows) project(s, i, begin, end);
        for (int64_t j : moves.whole) {
            for (int64_t m = 0; m < block.count; ++m) reread(block, m, j);
            spread(block, j);
        }
        for (int64_t i : moves.rows)
            for (int64_t j = 0; j < s.q; ++j) leaf(block, j, i);
        for (auto [j, i] : moves.leaves) leaf(block, j, i);
        for (auto [k, j] : moves.readouts) readout(block, k, j);
        const bool any = std::any_of(block.touched, block.touched + block.count, [](uint8_t flag) { return flag; });
        if (any) judge(s, begin, block.count, block.touched);
        return any;
    }
};

// ------------------------------------------------------------------------------------------------ trees

int64_t power_of_two(int64_t count) {
    int64_t size = 1;
    while (size < count) size *= 2;
    return size;
}

// A tournament over leaves 0 … count − 1: node 1 is the root, and node m holds the winner of nodes 2m and 2m + 1.
template <bool MAXIMUM, class Index, class Value>
struct Tournament {
    Index* const nodes;  // [size], of which the first is not used
    const int64_t count, size;
    const Value value;  // of a leaf

    int64_t winner(int64_t node) const { return node >= size ? node - size : nodes[node]; }

    void play(int64_t node) const {
        const int64_t left = winner(2 * node), right = winner(2 * node + 1);
        const bool rightly = right < count && Order<MAXIMUM>::beats(value(right), value(left));
        nodes[node] = Index(left < count && !rightly ? left : right);  // ties to the left: the lower index
    }
    void build() const {
        for (int64_t node = size - 1; node >= 1; --node) play(node);
    }
    void update(int64_t leaf) const {
        for (int64_t node = (leaf + size) / 2; node >= 1; node /= 2) {
            const int64_t before = nodes[node];
            play(node);
            if (nodes[node] == before && before != leaf) return;  // beaten here, as before: nothing above knows it
        }
    }
    int64_t top() const { return winner(1); }
};
template <bool MAXIMUM, class Index, class Value>
Tournament<MAXIMUM, Index, Value> tournament(Index* nodes, int64_t count, Value value) {
    return {nodes, count, power_of_two(count), value};
}

template <class Index>
struct Trees {
    const Problem& s;
    Index* const I = static_cast<Index*>(s.unit_winner);
    Index* const J = static_cast<Index*>(s.score_winner);

    auto of_unit(int64_t n, int64_t j) const {
        const T *z = s.z + n * s.columns, *w = s.weights.w1 + j * s.p;
        const int64_t columns = s.columns;
        Index* nodes = static_cast<Index*>(s.unit_trees) + (n * s.q + j) * power_of_two(s.p);
        return tournament<false>(nodes, s.p, [=](int64_t i) { return i < columns ? z[i] + w[i] : w[i] - z[i - columns]; });
    }
    auto of_score(int64_t n, int64_t k) const {
        const T *u = s.u + n * s.q, *w = s.weights.w2 + k * s.q;
        Index* nodes = static_cast<Index*>(s.score_trees) + (n * s.K + k) * power_of_two(s.q);
        return tournament<true>(nodes, s.q, [=](int64_t j) { return u[j] + w[j]; });
    }
    void build() {
        for (int64_t n = 0; n < s.N; ++n) {
            for (int64_t j = 0; j < s.q; ++j) of_unit(n, j).build();
            for (int64_t k = 0; k < s.K; ++k) of_score(n, k).build();
        }
    }
    bool score(int64_t n, int64_t k, int64_t j) {
        const auto tree = of_score(n, k);
        tree.update(j);
        J[k * s.N + n] = Index(tree.top());
        T& f = s.f[k * s.N + n];
        const T before = std::exchange(f, tree.value(tree.top()));
        return f != before;
    }
    bool unit(int64_t n, int64_t j, int64_t i) {
        const auto tree = of_unit(n, j);
        tree.update(i);
        I[j * s.N + n] = Index(tree.top());
        T& u = s.u[n * s.q + j];
        const T before = std::exchange(u, tree.value(tree.top()));
        if (u == before) return false;
        bool any = false;
        for (int64_t k = 0; k < s.K; ++k) any |= score(n, k, j);
        return any;
    }
    bool move(const Moves& moves, int64_t begin, int64_t end) {
        for (int64_t i : moves.rows) project(s, i, begin, end);
        bool any = false;
        uint8_t flags[BLOCK] = {};
        for (int64_t n = begin; n < end; ++n) {
            bool touched = false;
            for (int64_t i : moves.rows)
                for (int64_t j = 0; j < s.q; ++j) touched |= unit(n, j, i);
            for (int64_t j : moves.whole)
                for (int64_t i = 0; i < s.p; ++i) touched |= unit(n, j, i);
            for (auto [j, i] : moves.leaves) touched |= unit(n, j, i);
            for (auto [k, j] : moves.readouts) touched |= score(n, k, j);
            flags[n - begin] = touched;
            any |= touched;
        }
        if (any) judge(s, begin, end - begin, flags);
        return any;
    }
};

// ------------------------------------------------------------------------------------------------ the loop

// The iterate that was best so far. To follow costs what has moved since, not the size of the weights.
struct Snapshot {
    const Problem& s;
    const Weights kept;
    bool unknown = true;  // what moved before this call
    Moves moved = {};

    void note(const Moves& moves) {
        if (unknown) return;
        moved.rows.insert(moved.rows.end(), moves.rows.begin(), moves.rows.end());
        moved.leaves.insert(moved.leaves.end(), moves.leaves.begin(), moves.leaves.end());
        moved.readouts.insert(moved.readouts.end(), moves.readouts.begin(), moves.readouts.end());
        unknown = moved.leaves.size() + moved.rows.size() > size_t(s.q * s.p);
    }
    void keep() {
        const Weights& now = s.weights;
        if (unknown) {
            std::copy(now.w1, now.w1 + s.q * s.p, kept.w1);
            std::copy(now.w2, now.w2 + s.K * s.q, kept.w2);
            if (s.trains_a) std::copy(now.a, now.a + s.p * s.d, kept.a);
        } else {
            for (auto [j, i] : moved.leaves) kept.w1[j * s.p + i] = now.w1[j * s.p + i];
            for (auto [k, j] : moved.readouts) kept.w2[k * s.q + j] = now.w2[k * s.q + j];
            for (int64_t i : moved.rows) std::copy(now.a + i * s.d, now.a + (i + 1) * s.d, kept.a + i * s.d);
        }
        unknown = false;
        moved = {};
    }
    // To the kept iterate, and what that moves.
    Moves restore() const {
        Moves moves;
        const Weights& now = s.weights;
        const auto differs = [](const T* x, const T* y, int64_t count) { return !std::equal(x, x + count, y); };
        for (int64_t j = 0; j < s.q; ++j) {
            const size_t before = moves.leaves.size();
            for (int64_t i = 0; i < s.p; ++i)
                if (std::exchange(now.w1[j * s.p + i], kept.w1[j * s.p + i]) != kept.w1[j * s.p + i])
                    moves.leaves.push_back({j, i});
            if (int64_t(moves.leaves.size() - before) * 16 > s.p) {
                moves.leaves.resize(before);
                moves.whole.push_back(j);
            }
        }
        for (int64_t k = 0; k < s.K; ++k)
            for (int64_t j = 0; j < s.q; ++j)
                if (std::exchange(now.w2[k * s.q + j], kept.w2[k * s.q + j]) != kept.w2[k * s.q + j])
                    moves.readouts.push_back({k, j});
        for (int64_t i = 0; s.trains_a && i < s.p; ++i)
            if (differs(now.a + i * s.d, kept.a + i * s.d, s.d)) {
                std::copy(kept.a + i * s.d, kept.a + (i + 1) * s.d, now.a + i * s.d);
                moves.rows.push_back(i);
            }
        return moves;
    }
};

// γ; negative where the iterates must go back to the best ones. definition.step_length.
double step_length(const Problem& s, double loss, double squared_norm) {
    Progress& now = *s.progress;
    const double norm = std::sqrt(squared_norm);
    if (std::isinf(now.record)) {
        now.record = loss, now.gap = loss - s.target;
        now.longest_path = s.patience * (loss - s.target) / norm;
        if (now.length == 0) now.length = (loss - s.target) / norm;
    }
    const double t = double(now.iteration + 1);
    if (s.step == SQRT) return now.length / (norm * std::sqrt(t));
    if (s.step == POWER) return now.length / (norm * std::pow(t, 0.6));
    if (loss <= now.record - now.gap / 2) {
        now.record = loss, now.path = 0;
    } else if (now.path > now.longest_path) {
        now.gap = std::min(now.gap, now.best_loss - s.target) / 2;
        now.longest_path *= std::sqrt(0.5);
        now.record = now.best_loss, now.path = 0;
        ++now.raises;
        return -1;
    }
    const double level = std::max(s.target, now.best_loss - now.gap);
    now.path += (loss - level) / norm;
    return (loss - level) / squared_norm;
}

template <class Key>
void accumulate(std::vector<std::pair<Key, double>>& sums, Key key, double c) {
    for (auto& [known, sum] : sums)
        if (known == key) {
            sum += c;
            return;
        }
    sums.push_back({key, c});
}

template <class Memory, class Index>
struct Loop {
    const Problem& s;
    Memory memory{s};
    Snapshot best{s, s.best}, best_right{s, s.best_right};
    const int64_t training_blocks = ceil_div(s.training, BLOCK);
    const int64_t blocks = training_blocks + ceil_div(s.N - s.training, BLOCK);
    std::vector<int64_t> worst = std::vector<int64_t>(training_blocks), right = std::vector<int64_t>(blocks);

    int64_t begin(int64_t block) const {
        return block < training_blocks ? block * BLOCK : s.training + (block - training_blocks) * BLOCK;
    }
    int64_t end(int64_t block) const {
        return std::min(begin(block) + BLOCK, block < training_blocks ? s.training : s.N);
    }
    void summarise(int64_t block) {
        if (block < training_blocks) {
            const T* losses = s.losses;
            int64_t top = begin(block);
            for (int64_t n = top; n < end(block); ++n) top = losses[n] > losses[top] || losses[n] != losses[n] ? n : top;
            worst[block] = top;
        } else {
            right[block] = 0;
            for (int64_t n = begin(block); n < end(block); ++n) right[block] += s.is_right[n];
        }
    }
    void apply(const Moves& moves) {
        const auto visit = [&](int64_t block) {
            if (memory.move(moves, begin(block), end(block))) summarise(block);
        };
        const int threads = s.N * moves.work(s.p, s.q) > (1 << 17) ? int(std::min(s.threads, blocks)) : 1;
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int) {
            for (int64_t block; (block = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) visit(block);
        });
        best.note(moves);
        best_right.note(moves);
    }
    void observe() {
        Progress& now = *s.progress;
        int64_t n = worst[0];
        for (int64_t sample : worst)
            if (s.losses[sample] > s.losses[n] || s.losses[sample] != s.losses[sample]) n = sample;
        now.worst = n, now.loss = s.losses[n];
        ++s.times_worst[n];
        const double previous = now.best_loss;
        if (now.loss < previous) {
            now.best_loss = now.loss, now.best_iteration = now.iteration;
            best.keep();
        }
        if (s.best_right.w1) {
            now.right = 0;
            for (int64_t block = training_blocks; block < blocks; ++block) now.right += right[block];
            if (now.right > now.best_right) {
                now.best_right = now.right, now.best_right_iteration = now.iteration;
                now.best_right_loss = now.loss;
                best_right.keep();
            }
        }
        double largest = 0;
        for (int64_t k = 0; k < s.K; ++k) largest = std::max(largest, std::abs(double(s.f[k * s.N + n])));
        const double rounding = double(std::numeric_limits<T>::epsilon()) * largest;
        now.idle = previous <= now.loss && now.loss <= s.target + rounding ? now.idle + 1 : 0;
        if (!std::isfinite(now.loss)) now.status = DIVERGED;
        else if (now.loss <= s.target) now.status = MET;
        else if (now.idle >= s.idle_limit) now.status = ROUNDED;
    }
    void advance() {
        Progress& now = *s.progress;
        const int64_t n = now.worst;
        const Index* const I = static_cast<Index*>(s.unit_winner);
        const Index* const J = static_cast<Index*>(s.score_winner);
        std::vector<double> coefficients(s.K);
        if (s.loss == CROSS_ENTROPY) log_sum_exp(s, n, coefficients.data());
        else coefficients[best_rival(s, n)] = 1;
        coefficients[s.y[n]] -= 1;

        using Leaf = std::pair<int64_t, int64_t>;
        std::vector<std::pair<Leaf, double>> g2, g1;
        std::vector<std::pair<int64_t, double>> ga;
        for (int64_t k = 0; k < s.K; ++k) {
            if (coefficients[k] == 0) continue;
            const int64_t j = J[k * s.N + n], i = I[j * s.N + n];
            g2.push_back({{k, j}, coefficients[k]});
            accumulate(g1, Leaf{j, i}, coefficients[k]);
            accumulate(ga, i, coefficients[k]);
        }
        double squares = 0;
        for (const auto& [leaf, c] : g2) squares += c * c;
        for (const auto& [leaf, c] : g1) squares += c * c;
        const T* x = s.x + n * s.d;
        if (s.trains_a) {
            double x_square = 0;
            for (int64_t l = 0; l < s.d; ++l) x_square += double(x[l]) * double(x[l]);
            for (const auto& [i, c] : ga) squares += c * c * x_square;
        }
        const double gamma = step_length(s, now.loss, squares);
        Moves moves;
        if (gamma < 0) {
            moves = best.restore();
        } else {
            const auto add = [](T& weight, double step) {
                const T before = weight;
                weight += T(step);
                return weight != before;
            };
            for (const auto& [leaf, c] : g2)
                if (add(s.weights.w2[leaf.first * s.q + leaf.second], -(gamma * c))) moves.readouts.push_back(leaf);
            for (const auto& [leaf, c] : g1)
                if (add(s.weights.w1[leaf.first * s.p + leaf.second], -(gamma * c))) moves.leaves.push_back(leaf);
            if (s.trains_a)
                for (const auto& [i, c] : ga) {
                    const T step = T(-(gamma * c));
                    bool any = false;
                    for (int64_t l = 0; l < s.d; ++l) {
                        const T change = x[l] * step;
                        any |= add(s.weights.a[i * s.d + l], double(change));
                    }
                    if (any) moves.rows.push_back(i);
                }
        }
        ++now.iteration;
        apply(moves);
    }
    int64_t run(int64_t iterations, double* trace) {
        for (int64_t block = 0; block < blocks; ++block) summarise(block);
        if (std::isinf(s.progress->loss)) observe();
        int64_t done = 0;
        for (; done < iterations && s.progress->status == GOING; ++done) {
            advance();
            observe();
            trace[done] = s.progress->loss;
        }
        return done;
    }
};

template <class Index>
int run(const Problem& s, int64_t iterations, double* trace, int64_t* done) {
    return guarded([&] {
        if (s.has_trees) *done = Loop<Trees<Index>, Index>{s}.run(iterations, trace);
        else *done = Loop<Winners<Index>, Index>{s}.run(iterations, trace);
        return true;
    });
}

}  // namespace

extern "C" {

void worst_sample_set_team(void* parallel) { torch_team = reinterpret_cast<Parallel>(parallel); }

// z, and its transpose where there is one.
int worst_sample_project(const Problem* s) {
    return guarded([&] {
        const int64_t blocks = ceil_div(s->N, BLOCK);
        std::atomic<int64_t> next{0};
        in_parallel(int(std::min(s->threads, blocks)), [&](int) {
            for (int64_t block; (block = next.fetch_add(1, std::memory_order_relaxed)) < blocks;)
                for (int64_t i = 0; i < s->columns; ++i) project(*s, i, block * BLOCK, std::min((block + 1) * BLOCK, s->N));
        });
        return true;
    });
}

// ℓ and the trees, of u, I, f and J.
int worst_sample_build(const Problem* s, int wide) {
    return guarded([&] {
        if (s->has_trees && wide) Trees<int32_t>{*s}.build();
        if (s->has_trees && !wide) Trees<int16_t>{*s}.build();
        uint8_t all[BLOCK];
        std::fill(all, all + BLOCK, uint8_t(1));
        for (int64_t n = 0; n < s->N;) {  // no block holds both training and validation samples
            const int64_t count = std::min(BLOCK, (n < s->training ? s->training : s->N) - n);
            judge(*s, n, count, all);
            n += count;
        }
        return true;
    });
}

int worst_sample_run(const Problem* s, int wide, int64_t iterations, double* trace, int64_t* done) {
    return wide ? run<int32_t>(*s, iterations, trace, done) : run<int16_t>(*s, iterations, trace, done);
}

}
