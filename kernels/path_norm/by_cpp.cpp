// The sum over all paths of definition.py, Linear layers: each layer's weights are read once forth and once back, and
// no power of them is written down.
//
// Forth, a row of weights is a dot product. Back, a task takes some columns of all rows, so that what flows back into
// its nodes is added up in the order of the rows, with the same bits on any number of threads.
//
// A layer's nodes share one power of two. Where that leaves a node's sum so small that its terms may have lost bits to
// underflow, or lets one overflow, neither function answers: definition.py gives each node a power of its own.

#include "../runtime/native/native.hpp"

#include <array>
#include <cmath>
#include <numeric>

namespace {

static_assert(std::is_same_v<Element, float> || std::is_same_v<Element, double>);
using Vector = typename Simd<Element>::Vector;
constexpr int WIDTH = Simd<Element>::WIDTH;
constexpr int64_t ROWS = 4;                    // that share x
constexpr int MOST = std::numeric_limits<Element>::max_exponent - 2;  // 2^±MOST are normal numbers

// What has lost nothing to underflow: a sum of up to 2^20 numbers, each with the error of a subnormal one.
const Element LEAST =
    std::ldexp(Element(1), std::numeric_limits<Element>::min_exponent + std::numeric_limits<Element>::digits + 8);

bool in_range(Element x) { return std::abs(x) >= LEAST && std::abs(x) <= 1 / LEAST; }

// |w|^p and its derivative, of scalars and of vectors.
template <int P>
struct Power {
    template <class X>
    static X of(X w) {
        if constexpr (P == 2) return w * w;
        return w < 0 ? -w : w;
    }
    template <class X>
    static X slope(X w) {
        if constexpr (P == 2) return w + w;
        const X one = X{} + 1;
        return (w > 0 ? one : X{}) - (w < 0 ? one : X{});
    }
};

struct Team {
    int64_t threads;
    int64_t weights;  // less is done before another thread would join
    int64_t columns;  // of a task of the backward: they lie in the first cache
};

struct Chain {
    int64_t count;
    const int64_t* widths;  // count + 1, from the input on
    Team team;

    int64_t inputs(int64_t l) const { return widths[l]; }
    int64_t outputs(int64_t l) const { return widths[l + 1]; }

    template <class X>
    X* last_of(X* passes) const { return std::accumulate(widths, widths + count, passes); }
    template <class X>
    X* scales_in(X* passes) const { return std::accumulate(widths, widths + count + 1, passes); }

    // The sum that the last pass, and the scales before it, stand for: sum · 2^exponent.
    Element sum(const Element* passes) const { return std::accumulate(last_of(passes), scales_in(passes), Element(0)); }
    int exponent(const Element* passes) const {
        const Element* scales = scales_in(passes);
        int found = 0;
        for (int64_t l = 0; l < count; ++l) found -= std::ilogb(scales[l]);
        return found;
    }

    // work(first, last) of [0, size) in pieces of `piece`, by as many threads as so many weights are worth.
    template <class Work>
    void share(int64_t size, int64_t piece, int64_t weights, const Work& work) const {
        const int64_t tasks = ceil_div(size, piece);
        std::atomic<int64_t> next{0};
        const int64_t threads = std::min({team.threads, tasks, std::max<int64_t>(1, weights / team.weights)});
        in_parallel(int(std::max<int64_t>(1, threads)), [&](int) {
            for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
                work(t * piece, std::min((t + 1) * piece, size));
        });
    }
};

// y[j] = Σ_i |w[j, i]|^P x[i] of N rows.
template <int P, int N>
void dot(const Element* w, const Element* x, int64_t inputs, Element* y) {
    using Sums = PartialSums<Element>;
    Sums sums[N];
    Element rest[N] = {};
    int64_t i = 0;
    for (; i + Sums::COUNT <= inputs; i += Sums::COUNT)
        for (int part = 0; part < Sums::VECTORS; ++part) {
            const Vector factor = load<Vector>(x + i + part * WIDTH);
            for (int row = 0; row < N; ++row)
                sums[row].parts[part] += Power<P>::of(load<Vector>(w + row * inputs + i + part * WIDTH)) * factor;
        }
    for (; i < inputs; ++i)
        for (int row = 0; row < N; ++row) rest[row] += Power<P>::of(w[row * inputs + i]) * x[i];
    for (int row = 0; row < N; ++row) y[row] = sums[row].total() + rest[row];
}

// Whether Σ_i |w[i · stride]|^P x[i] is 0 because every term is.
bool is_zero(const Element* w, int64_t stride, const Element* x, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (x[i] != 0 && w[i * stride] != 0) return false;
    return true;
}

// Whether the sums are in range, or right zeros.
template <int P>
bool forth(const Chain& chain, const Element* const* weights, Element* passes, Element* scales) {
    Element* x = passes;
    std::fill_n(x, chain.inputs(0), Element(1));
    for (int64_t l = 0; l < chain.count; ++l) {
        const int64_t I = chain.inputs(l), O = chain.outputs(l);
        Element* y = x + I;
        chain.share(O, 8 * ROWS, O * I, [&](int64_t first, int64_t last) {
            int64_t j = first;
            for (; j + ROWS <= last; j += ROWS) dot<P, ROWS>(weights[l] + j * I, x, I, y + j);
            for (; j < last; ++j) dot<P, 1>(weights[l] + j * I, x, I, y + j);
        });
        Element largest = 0;
        for (int64_t j = 0; j < O; ++j) {
            if (!in_range(y[j]) && !(y[j] == 0 && is_zero(weights[l] + j * I, 1, x, I))) return false;
            largest = y[j] > largest ? y[j] : largest;
        }
        int exponent = 0;
        std::frexp(largest, &exponent);
        scales[l] = std::ldexp(Element(1), -std::max(-MOST, std::min(MOST, exponent)));
        for (int64_t j = 0; j < O; ++j) {
            y[j] *= scales[l];
            if (y[j] != 0 && y[j] < LEAST) return false;
        }
        x = y;
    }
    return true;
}

// Of the elements that are not 0.
Element smallest(const Element* x, int64_t count) {
    Element found = 1 / LEAST;
    for (int64_t i = 0; i < count; ++i)
        if (x[i] != 0) found = std::min(found, std::abs(x[i]));
    return found;
}

// Columns [first, last) of a layer: dw, and dx where there is one; dy is what flows back into its outputs.
template <int P>
void columns(const Element* w, const Element* x, const Element* dy, int64_t inputs, int64_t outputs, int64_t first,
             int64_t last, Element* dw, Element* dx) {
    if (dx) std::fill(dx + first, dx + last, Element(0));
    for (int64_t j = 0; j < outputs; ++j) {
        const Element slope = dy[j];
        const Element* __restrict__ row = w + j * inputs;
        Element* __restrict__ drow = dw + j * inputs;
        for (int64_t i = first; i < last; ++i) drow[i] = Power<P>::slope(row[i]) * (x[i] * slope);
        if (dx)
            for (int64_t i = first; i < last; ++i) dx[i] += Power<P>::of(row[i]) * slope;
    }
}

// slope: what flows back into each output of the last layer. room: twice the widest layer. Returns as `forth` does.
template <int P>
bool back(const Chain& chain, Element slope, const Element* const* weights, const Element* passes,
          const Element* scales, Element* const* gradients, Element* room, int64_t widest) {
    Element *dy = room, *dx = room + widest;
    const Element* x = chain.last_of(passes);
    std::fill_n(dy, chain.outputs(chain.count - 1), slope);
    for (int64_t l = chain.count - 1; l >= 0; --l) {
        const int64_t I = chain.inputs(l), O = chain.outputs(l);
        x -= I;
        for (int64_t j = 0; j < O; ++j) {
            dy[j] *= scales[l];
            if (dy[j] != 0 && !in_range(dy[j])) return false;
        }
        if (smallest(dy, O) * smallest(x, I) < LEAST) return false;
        chain.share(I, chain.team.columns, O * I, [&](int64_t first, int64_t last) {
            columns<P>(weights[l], x, dy, I, O, first, last, gradients[l], l ? dx : nullptr);
        });
        for (int64_t i = 0; l && i < I; ++i)
            if (!in_range(dx[i]) && !(dx[i] == 0 && is_zero(weights[l] + i, I, dy, O))) return false;
        std::swap(dx, dy);
    }
    return true;
}

// What by_cpp.py lays out once for calls of the same widths, which follow it: count + 1, from the input on.
struct Call {
    int64_t count, p, log;
    Team team;

    Chain chain() const { return {count, reinterpret_cast<const int64_t*>(this + 1), team}; }
};

Element* numbers(void* address) { return static_cast<Element*>(address); }

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// passes: x of each layer's input, the last layer's output, and the power of two that each layer's output was multiplied
// by: as many elements as all widths together, and count more.
// INDEX_OUT_OF_RANGE means that something is not in range, and that what was written is nothing.

// addresses: each layer's weights, the result, the passes.
extern "C" int path_norm_forward(const Call* call, void* const* addresses) {
    return guarded([&] {
        const Chain chain = call->chain();
        const auto weights = reinterpret_cast<const Element* const*>(addresses);
        const auto [result, passes] = std::array{numbers(addresses[call->count]), numbers(addresses[call->count + 1])};
        if (!(call->p == 1 ? forth<1> : forth<2>)(chain, weights, passes, chain.scales_in(passes))) return false;
        const double sum = chain.sum(passes);
        const int exponent = chain.exponent(passes);
        *result = Element(call->log ? std::log(sum) + exponent * std::log(2.0) : std::ldexp(sum, exponent));
        return true;
    });
}

// addresses: what flows back into the result, each layer's weights, the passes, the gradient of each layer's weights.
extern "C" int path_norm_backward(const Call* call, void* const* addresses) {
    return guarded([&] {
        const Chain chain = call->chain();
        const auto weights = reinterpret_cast<const Element* const*>(addresses + 1);
        const Element* const passes = numbers(addresses[call->count + 1]);
        if (passes[0] != passes[0]) return false;  // the definition served the forward
        const auto gradients = reinterpret_cast<Element* const*>(addresses + call->count + 2);
        const int64_t widest = *std::max_element(chain.widths, chain.widths + call->count + 1);
        std::vector<Element> room(2 * widest);
        const double into = *numbers(addresses[0]);
        const Element start = Element(call->log ? into / chain.sum(passes) : std::ldexp(into, chain.exponent(passes)));
        if (into != 0 && !in_range(start)) return false;
        const auto pass = call->p == 1 ? back<1> : back<2>;
        return pass(chain, start, weights, passes, chain.scales_in(passes), gradients, room.data(), widest);
    });
}
