// The first three of the leaves of one minimum or maximum, and what is known of the others.

#pragma once

#include <utility>

#include "problem.hpp"

namespace {

template <class X, int COUNT>
struct Lanes {
    typedef X Vector __attribute__((vector_size(COUNT * sizeof(X))));
};

template <bool MAXIMUM>
struct Order {
    template <class V>
    static auto beats(V x, V y) { return MAXIMUM ? x > y : x < y; }
};

// The best three of ±a_i + b_i over some i, in lanes.
template <bool MAXIMUM>
struct Podium {
    using Best = Order<MAXIMUM>;
    using Vector = typename Simd<T>::Vector;
    static constexpr T WORST = MAXIMUM ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::infinity();
    static constexpr int64_t WIDTH = Simd<T>::WIDTH, LANES = 2;
    T first = WORST, second = WORST, third = WORST;

    template <class V>
    static void enter(V x, V& first, V& second, V& third) {
        const V beaten = Best::beats(x, first) ? first : x;
        first = Best::beats(x, first) ? x : first;
        const V beaten_twice = Best::beats(beaten, second) ? second : beaten;
        second = Best::beats(beaten, second) ? beaten : second;
        third = Best::beats(beaten_twice, third) ? beaten_twice : third;
    }

    template <class Sum>
    void enter_all(const T* a, const T* b, int64_t count, const Sum& sum) {
        Vector firsts[LANES], seconds[LANES], thirds[LANES];
        for (int64_t r = 0; r < LANES; ++r) firsts[r] = seconds[r] = thirds[r] = Vector{} + WORST;
        int64_t i = 0;
        for (; i + LANES * WIDTH <= count; i += LANES * WIDTH)
            for (int64_t r = 0; r < LANES; ++r) {
                const int64_t at = i + r * WIDTH;
                enter(Vector(sum(load<Vector>(a + at), load<Vector>(b + at))), firsts[r], seconds[r], thirds[r]);
            }
        for (int64_t r = 1; r < LANES; ++r)
            for (const Vector& x : {firsts[r], seconds[r], thirds[r]}) enter(x, firsts[0], seconds[0], thirds[0]);
        for (const Vector& x : {firsts[0], seconds[0], thirds[0]})
            for (int64_t r = 0; r < WIDTH; ++r) enter(T(x[r]), first, second, third);
        for (; i < count; ++i) enter(T(sum(a[i], b[i])), first, second, third);
    }
};

constexpr auto PLUS = [](auto x, auto y) { return x + y; };
constexpr auto MINUS = [](auto x, auto y) { return y - x; };

// The first i but `without` at which the sum is `value`; −1 where there is none.
template <class Sum>
int64_t find(const T* a, const T* b, int64_t count, const Sum& sum, T value, int64_t without = -1) {
    constexpr int64_t STRIDE = 64;
    for (int64_t begin = 0; begin < count; begin += STRIDE) {
        const int64_t end = std::min(begin + STRIDE, count);
        int found = 0;
        for (int64_t i = begin; i < end; ++i) found |= sum(a[i], b[i]) == value;
        for (int64_t i = begin; found && i < end; ++i)
            if (sum(a[i], b[i]) == value && i != without) return i;
    }
    return -1;
}

// The winners of minima or maxima, and what is known of their rivals.
template <class Index>
struct Standings {
    T* value;
    Index* winner;
    T* bound;  // no leaf but the winner beats this
    Index* second;
    T* third;  // no leaf but these two beats this; most often attained

    Standings operator+(int64_t n) const { return {value + n, winner + n, bound + n, second + n, third + n}; }

    // Decides among all leaves, whatever was known; `find(value, without)` gives a leaf that attains a value.
    template <bool MAXIMUM, class Find>
    void decide(const Podium<MAXIMUM>& podium, const Find& find) const {
        const int64_t first = find(podium.first, int64_t(-1));
        const int64_t next = first < 0 ? -1 : find(podium.second, first);
        *value = podium.first, *bound = podium.second, *third = podium.third;
        *winner = Index(std::max<int64_t>(first, 0));  // NaN: the run has diverged, and ends
        *second = next < 0 ? *winner : Index(next);    // a single leaf
    }

    // The winner no longer beats the bound: whether winner and runner-up, at `leaf(i)`, decide it.
    template <bool MAXIMUM, class Leaf>
    bool settle(const Leaf& leaf) const {
        using Best = Order<MAXIMUM>;
        Index first = *winner, next = *second;
        T x = leaf(first), y = leaf(next);
        if (Best::beats(y, x) || (x == y && next < first)) std::swap(first, next), std::swap(x, y);
        if (!Best::beats(x, *third)) return false;
        *value = x, *winner = first, *second = next;
        *bound = Best::beats(y, *third) ? y : *third;
        return true;
    }

    // Neither of the two beats the others: whether one of these attains their bound. Features of few values, such as
    // pixels, tie so often that another leaf has mostly kept the value of the third.
    template <class Find>
    bool tie(const Find& find) const {
        const int64_t first = find(*third, int64_t(-1));
        if (first < 0) return false;
        *value = *bound = *third, *winner = Index(first);
        return true;
    }
};

}  // namespace
