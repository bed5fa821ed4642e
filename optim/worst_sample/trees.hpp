// The memory of trees: a tournament tree over the leaves of each (n, j) and (n, k): O(log p) and O(log q), for two bytes a
// leaf. Nesterov's short computational trees, which hold winners here, not values.

#pragma once

#include "standings.hpp"
#include "samples.hpp"

namespace {

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
            for (int64_t j = 0; j < s.q; ++j) {
                const auto tree = of_unit(n, j);
                tree.build();
                I[j * s.N + n] = Index(tree.top()), s.u[n * s.q + j] = tree.value(tree.top());
            }
            for (int64_t k = 0; k < s.K; ++k) {
                const auto tree = of_score(n, k);
                tree.build();
                J[k * s.N + n] = Index(tree.top()), s.f[k * s.N + n] = tree.value(tree.top());
            }
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

}  // namespace
