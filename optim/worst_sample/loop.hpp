// The iterations: a subgradient at the worst sample or samples, a step, and the memory that follows what moved.
//
// n* comes from a tournament of two levels: the largest ℓ of each block of samples in which an ℓ changed, then of all
// blocks. The tail, where F is the mean of more than one sample, comes from a selection among all ℓ. All weights change before the first leaf is looked at; a leaf that is read before its turn is then merely found
// unchanged.

#pragma once

#include <functional>

#include "samples.hpp"

namespace {

// The iterate that was best so far. To follow costs what has moved since, not the size of the weights.
struct Snapshot {
    const Problem& s;
    const Weights kept;
    bool unknown = true;  // nothing tells what moved before this call
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
            if (int64_t(moves.leaves.size() - before) * 4 > s.p) {
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

struct Lost {};  // thrown where the ranks could not exchange

using Leaf = std::pair<int64_t, int64_t>;

// Entries of a matrix as sums of terms, in the order of their first terms.
struct Sums {
    const int64_t columns;
    std::vector<std::pair<Leaf, double>> entries;
    std::vector<int32_t> places;  // [rows, columns]: where an entry is, from 1 on; empty where there are a few

    Sums(int64_t rows, int64_t columns, bool many) : columns(columns), places(many ? rows * columns : 0) {}

    void clear() {
        if (!places.empty())
            for (const auto& [leaf, sum] : entries) places[leaf.first * columns + leaf.second] = 0;
        entries.clear();
    }
    void add(Leaf leaf, double c) {
        if (places.empty()) {
            for (auto& [other, sum] : entries)
                if (other == leaf) {
                    sum += c;
                    return;
                }
        } else {
            int32_t& place = places[leaf.first * columns + leaf.second];
            if (place) {
                entries[place - 1].second += c;
                return;
            }
            place = int32_t(entries.size()) + 1;
        }
        entries.push_back({leaf, c});
    }
    void divide(double mass) {
        for (auto& [leaf, sum] : entries) sum /= mass;
    }
};

template <class Memory, class Index>
struct Loop {
    const Problem& s;
    Memory memory{s};
    Snapshot best{s, s.best}, best_right{s, s.best_right};
    const int64_t training_blocks = ceil_div(s.training, BLOCK);
    const int64_t blocks = training_blocks + ceil_div(s.N - s.training, BLOCK);
    std::vector<int64_t> worst = std::vector<int64_t>(training_blocks), right = std::vector<int64_t>(blocks);
    std::vector<int64_t> tail;       // the s.tail worst samples, ascending
    std::vector<double> weights;     // ω of these
    std::vector<T> values;           // ℓ, for the selection
    std::vector<double> coefficients = std::vector<double>(s.K);
    Sums g1{s.q, s.p, s.tail > 1}, g2{s.K, s.q, s.tail > 1};

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
    // A leaf that is NaN, of a row of A that overflows, beats none here, but is the minimum: ℓ is NaN as well.
    bool spoil(const Moves& moves, int64_t block) {
        bool any = false;
        for (int64_t i : moves.rows)
            for (int64_t n = begin(block); block < training_blocks && n < end(block); ++n)
                if (std::isnan(s.z[n * s.columns + i])) s.losses[n] = std::numeric_limits<T>::quiet_NaN(), any = true;
        return any;
    }
    void apply(Moves moves) {
        std::sort(moves.leaves.begin(), moves.leaves.end());  // those of a unit together
        const auto visit = [&](int64_t block) {
            const bool moved = memory.move(moves, begin(block), end(block));
            if (spoil(moves, block) || moved) summarise(block);
        };
        const int threads = s.N * moves.work(s.p, s.q) > s.small ? int(std::min(s.threads, blocks)) : 1;
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int) {
            for (int64_t block; (block = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) visit(block);
        });
        best.note(moves);
        best_right.note(moves);
    }
    int64_t find_worst() const {
        int64_t n = worst[0];
        for (int64_t sample : worst)
            if (s.losses[sample] > s.losses[n] || s.losses[sample] != s.losses[sample]) n = sample;
        return n;
    }
    // The tail and its weights; `n` is the worst sample.
    void select(int64_t n) {
        if (s.tail == 1 || std::isnan(s.losses[n])) {
            tail = {n}, weights = {1};
            return;
        }
        values.assign(s.losses, s.losses + s.training);
        std::nth_element(values.begin(), values.begin() + (s.tail - 1), values.end(), std::greater<T>());
        const T least = values[s.tail - 1];
        int64_t ties = s.tail - std::count_if(values.begin(), values.begin() + s.tail, [&](T x) { return x > least; });
        tail.clear();
        weights.assign(s.tail, 1.0);
        for (int64_t m = 0; m < s.training; ++m) {
            if (s.losses[m] < least || (s.losses[m] == least && ties == 0)) continue;
            if (s.losses[m] == least && --ties == 0) weights[tail.size()] = s.mass - double(s.tail - 1);
            tail.push_back(m);
        }
    }
    double largest_score(int64_t n) const {
        double largest = 0;
        for (int64_t k = 0; k < s.K; ++k) largest = std::max(largest, std::abs(double(s.f[k * s.N + n])));
        return largest;
    }
    int64_t count_right() const {
        int64_t all = 0;
        for (int64_t block = training_blocks; block < blocks; ++block) all += right[block];
        return all;
    }
    // Calls `take(k, j, i, c)` for the routes of sample n whose coefficient is not 0, by ascending k.
    template <class Take>
    void each_route(int64_t n, const Take& take) {
        const Index* const I = static_cast<Index*>(s.unit_winner);
        const Index* const J = static_cast<Index*>(s.score_winner);
        if (s.loss == HINGE && !(s.losses[n] > 0)) return;
        std::fill(coefficients.begin(), coefficients.end(), 0.0);
        if (s.loss == CROSS_ENTROPY) log_sum_exp(s, n, coefficients.data());
        else coefficients[best_rival(s, n)] = 1;
        coefficients[s.y[n]] -= 1;
        for (int64_t k = 0; k < s.K; ++k) {
            if (coefficients[k] == 0) continue;
            const int64_t j = J[k * s.N + n];
            take(k, j, int64_t(I[j * s.N + n]), coefficients[k]);
        }
    }
    Seen& seen() const { return *reinterpret_cast<Seen*>(s.seen); }
    const Route* routes() const { return reinterpret_cast<const Route*>(s.seen + sizeof(Seen) / sizeof(double)); }
    // The worst sample of all ranks, instead of this rank's.
    void meet() {
        const int64_t n = find_worst();
        int64_t count = 0;
        Route* const route = const_cast<Route*>(routes());
        each_route(n, [&](int64_t k, int64_t j, int64_t i, double c) {
            route[count++] = {double(k), double(j), double(i), c};
        });
        seen() = {double(s.losses[n]), double(s.first + n), largest_score(n), double(count_right()), double(count)};
        if (s.trains_a) std::copy(s.x + n * s.d, s.x + (n + 1) * s.d, s.seen_x);
        if (s.exchange()) throw Lost{};
        weights = {1};
    }
    void observe() {
        Progress& now = *s.progress;
        double total = 0, largest = 0;
        if (s.exchange) {
            meet();
            total = seen().loss, largest = seen().largest, now.worst = int64_t(seen().n);
        } else {
            now.worst = find_worst();
            select(now.worst);
            for (size_t r = 0; r < tail.size(); ++r) {
                total += weights[r] * double(s.losses[tail[r]]);
                largest = std::max(largest, largest_score(tail[r]));
            }
        }
        now.loss = total / s.mass;
        ++s.times_worst[now.worst];
        const double previous = now.best_loss;
        if (now.loss < previous) {
            now.best_loss = now.loss, now.best_iteration = now.iteration;
            best.keep();
        }
        if (s.best_right.w1) {
            now.right = s.exchange ? int64_t(seen().right) : count_right();
            if (now.right > now.best_right) {
                now.best_right = now.right, now.best_right_iteration = now.iteration;
                now.best_right_loss = now.loss;
                best_right.keep();
            }
        }
        const double rounding = double(std::numeric_limits<T>::epsilon()) * largest;
        now.idle = previous <= now.loss && now.loss <= s.target + rounding ? now.idle + 1 : 0;
        if (!std::isfinite(now.loss)) now.status = DIVERGED;
        else if (now.loss <= s.target) now.status = MET;
        else if (now.idle >= s.idle_limit) now.status = ROUNDED;
    }
    // Whether there is a next iterate: none where a weight of it would not be finite, or where none would move; then
    // nothing is written.
    bool advance() {
        Progress& now = *s.progress;
        std::vector<std::pair<int64_t, double>> ga;  // where A is trained: of a single sample
        g1.clear(), g2.clear();
        const auto take = [&](int64_t k, int64_t j, int64_t i, double c) {
            g2.add({k, j}, c);
            g1.add({j, i}, c);
            if (!s.trains_a) return;
            const auto row = std::find_if(ga.begin(), ga.end(), [&](const auto& row) { return row.first == i; });
            if (row == ga.end()) ga.push_back({i, c});
            else row->second += c;
        };
        if (s.exchange)
            for (const Route* route = routes(); route < routes() + int64_t(seen().routes); ++route)
                take(int64_t(route->k), int64_t(route->j), int64_t(route->i), route->c);
        else
            for (size_t r = 0; r < tail.size(); ++r)
                each_route(tail[r], [&](int64_t k, int64_t j, int64_t i, double c) { take(k, j, i, weights[r] * c); });
        g1.divide(s.mass), g2.divide(s.mass);
        double squares = 0;
        for (const auto& [leaf, c] : g2.entries) squares += c * c;
        for (const auto& [leaf, c] : g1.entries) squares += c * c;
        const T* x = s.exchange ? s.seen_x : s.x + now.worst * s.d;
        if (s.trains_a) {
            double x_square = 0;
            for (int64_t l = 0; l < s.d; ++l) x_square += double(x[l]) * double(x[l]);
            for (const auto& [i, c] : ga) squares += c * c * x_square;
        }
        if (squares == 0) {
            now.status = STATIONARY;
            return false;
        }
        const double gamma = step_length(s, now.loss, squares);
        Moves moves;
        if (gamma < 0) {
            moves = best.restore();
        } else {
            const auto stays_finite = [](T weight, double step) { return std::isfinite(T(weight + T(step))); };
            bool finite = true;
            for (const auto& [leaf, c] : g2.entries)
                finite &= stays_finite(s.weights.w2[leaf.first * s.q + leaf.second], -(gamma * c));
            for (const auto& [leaf, c] : g1.entries)
                finite &= stays_finite(s.weights.w1[leaf.first * s.p + leaf.second], -(gamma * c));
            if (s.trains_a)
                for (const auto& [i, c] : ga)
                    for (int64_t l = 0; l < s.d; ++l)
                        finite &= stays_finite(s.weights.a[i * s.d + l], double(T(x[l] * T(-(gamma * c)))));
            if (!finite) {
                now.status = DIVERGED;
                return false;
            }
            const auto add = [](T& weight, double step) {
                const T before = weight;
                weight += T(step);
                return weight != before;
            };
            for (const auto& [leaf, c] : g2.entries)
                if (add(s.weights.w2[leaf.first * s.q + leaf.second], -(gamma * c))) moves.readouts.push_back(leaf);
            for (const auto& [leaf, c] : g1.entries)
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
        return true;
    }
    int64_t run(int64_t iterations, double* trace) {
        for (int64_t block = 0; block < blocks; ++block) summarise(block);
        if (std::isinf(s.progress->loss)) observe();
        else if (!s.exchange) select(find_worst());
        else if (seen().routes < 0) meet();
        int64_t done = 0;
        for (; done < iterations && s.progress->status == GOING && advance(); ++done) {
            observe();
            trace[done] = s.progress->loss;
        }
        return done;
    }
};

}  // namespace
