// The values of one sample or of some: z, scores, losses; and the moves of weights that these follow.

#pragma once

#include <cmath>
#include <utility>

#include "problem.hpp"

namespace {

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

// Of some samples, all for training or none: ℓ_n, or whether the first highest score is that of their class.
void judge(const Problem& s, int64_t begin, int64_t count, const uint8_t* touched) {
    const int32_t* y = s.y + begin;
    T own[BLOCK], top[BLOCK];
    std::fill(top, top + count, -std::numeric_limits<T>::infinity());
    if (begin >= s.training) {
        int32_t predicted[BLOCK] = {};
        for (int64_t k = 0; k < s.K; ++k) {
            const T* f = s.f + k * s.N + begin;
            for (int64_t n = 0; n < count; ++n) {
                predicted[n] = f[n] > top[n] ? int32_t(k) : predicted[n];
                top[n] = f[n] > top[n] ? f[n] : top[n];
            }
        }
        for (int64_t n = 0; n < count; ++n) s.is_right[begin + n] = predicted[n] == y[n];
        return;
    }
    const T margin = T(s.margin);
    T* losses = s.losses + begin;
    if (s.loss == CROSS_ENTROPY)
        return each_set(touched, count, [&](int64_t n) {
            losses[n] = T(log_sum_exp(s, begin + n, nullptr) - double(s.f[y[n] * s.N + begin + n]));
        });
    for (int64_t k = 0; k < s.K; ++k) {
        const T* f = s.f + k * s.N + begin;
        for (int64_t n = 0; n < count; ++n) {
            const bool is_own = y[n] == int32_t(k);
            const T rival = is_own ? -std::numeric_limits<T>::infinity() : f[n] + margin;
            own[n] = is_own ? f[n] : own[n];
            top[n] = rival > top[n] ? rival : top[n];
        }
    }
    for (int64_t n = 0; n < count; ++n) losses[n] = top[n] - own[n] < 0 ? T(0) : top[n] - own[n];
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

}  // namespace
