// The two passes over the weights of a layer: sums of w g for the node flows, then every weight once.
//
// A row holds the I · T edges into one node, side by side, so factors of the sources are laid out once as rows of a
// layer, and the inner loops run over contiguous memory.

#pragma once

#include <utility>

#include "../runtime/native/native.hpp"

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

static_assert(std::is_same_v<Element, float> || std::is_same_v<Element, double>);

struct Shape {
    int64_t groups, outputs, inputs, taps;

    int64_t sources() const { return groups * inputs; }
    int64_t targets() const { return groups * outputs; }
    int64_t row() const { return inputs * taps; }
};

struct Layer {
    Element* weight;
    const Element* grad;
    Element* bias;  // null where there is none, as its gradient and the momenta
    const Element* bias_grad;
    Element* momentum;
    Element* bias_momentum;
};

struct Step {
    double lr, momentum, weight_decay, least_ratio, floor, norms;
};

// False of NaN as well.
inline bool is_finite(Element x) { return x - x == 0; }

// Whether every lane is.
inline bool all_finite(Simd<Element>::Vector x) {
    const auto drift = bit_cast<Simd<int64_t>::Vector>(x - x);
#if defined(__AVX__) && !defined(__AVX512F__)
    return _mm256_testz_si256(__m256i(drift), __m256i(drift));
#else
    int64_t bits = 0;
    for (int at = 0; at < Simd<int64_t>::WIDTH; ++at) bits |= drift[at];
    return bits == 0;
#endif
}

// Σ w g over each row, and over each column of the rows of a group, taps beside each other: `columns`
// [G, I · T], 0 on entry.
void flows(const Shape& shape, const Layer& layer, Element* rows, Element* columns) {
    using V = typename Simd<Element>::Vector;
    using Sums = PartialSums<Element>;
    constexpr int WIDTH = Simd<Element>::WIDTH;
    const int64_t row = shape.row();
    for (int64_t target = 0; target < shape.targets(); ++target) {
        const Element *w = layer.weight + target * row, *g = layer.grad + target * row;
        Element* column = columns + target / shape.outputs * row;
        Sums sums;
        int64_t e = 0;
        for (; e + Sums::COUNT <= row; e += Sums::COUNT)
            for (int part = 0; part < Sums::VECTORS; ++part) {
                const int64_t at = e + part * WIDTH;
                const V through = load<V>(w + at) * load<V>(g + at);
                sums.parts[part] += through;
                store(column + at, load<V>(column + at) + through);
            }
        Element sum = sums.total();
        for (; e < row; ++e) {
            sum += w[e] * g[e];
            column[e] += w[e] * g[e];
        }
        rows[target] = sum;
    }
}

// The factors that the ends of a layer's edges multiply them by: across its rows [G, I · T], or down them.
struct Factors {
    Element *psi, *inverse, *ratio;  // P or S, its inverse, and 1 / p or 1 / q
};

// The bias of a target, with the factors at `at`. Returns 1 if it kept its value, as the new one would not have been finite.
int64_t update_bias(const Layer& layer, const Step& step, const Factors& factors, int64_t target, int64_t at) {
    const Element lr = step.lr, momentum = step.momentum, decay = step.weight_decay;
    const Element suffix = factors.psi[at], over = factors.inverse[at];
    Element slope = layer.bias_grad[target] * over + decay * suffix * layer.bias[target];
    if (layer.bias_momentum) slope += momentum * layer.bias_momentum[target];
    const Element moved = (layer.bias[target] - lr * slope * over) * factors.ratio[at];
    if (!is_finite(moved)) return 1;
    layer.bias[target] = moved;
    if (layer.bias_momentum) layer.bias_momentum[target] = slope;
    return 0;
}

// Rows [first, last) of a layer: u ← u − η m_u, then w = u / ψ over the ratios of its ends; with_bias: rows are targets,
// and their biases move with them. Returns how many weights kept their values, and momenta theirs, because the new ones
// would not have been finite.
template <bool MOVING>
int64_t update(const Shape& shape, const Layer& layer, const Step& step, const Factors& across, const Factors& down,
               bool with_bias, int64_t first, int64_t last) {
    using V = typename Simd<Element>::Vector;
    constexpr int WIDTH = Simd<Element>::WIDTH, BLOCK = 4;
    int64_t kept = 0;
    const int64_t row = shape.row();
    const Element lr = step.lr, momentum = step.momentum, decay = step.weight_decay, left = 1 - step.lr * decay;
    for (int64_t target = first; target < last; ++target) {
        Element* const w = layer.weight + target * row;
        Element* const m = MOVING ? layer.momentum + target * row : nullptr;
        const Element* const g = layer.grad + target * row;
        const int64_t at = target / shape.outputs * row;
        const Element *prefix = across.psi + at, *inverse = across.inverse + at;
        const Element *ratio = across.ratio + at;
        const Element suffix = down.psi[target], over = down.inverse[target], behind = down.ratio[target];
        const Element length = lr * over * over;
        // What w and m become at e; V: elements side by side, or one.
        const auto moved = [=](auto zero, int64_t e) {
            using V = decltype(zero);
            const V weight = load<V>(w + e), grad = load<V>(g + e), over_source = load<V>(inverse + e);
            const V ratios = behind * load<V>(ratio + e);
            if constexpr (MOVING) {
                const V once = over_source * over;
                const V slope = grad * once + decay * (load<V>(prefix + e) * suffix) * weight;
                const V velocity = momentum * load<V>(m + e) + slope;
                return std::pair<V, V>((weight - lr * velocity * once) * ratios, velocity);
            } else {
                const V found = (left * weight - length * (over_source * over_source) * grad) * ratios;
                return std::pair<V, V>(found, found);
            }
        };
        const auto one = [=, &kept](int64_t e) {
            const auto [weight, velocity] = moved(Element{}, e);
            if (!is_finite(weight)) {
                ++kept;
                return;
            }
            w[e] = weight;
            if (MOVING) m[e] = velocity;
        };
        int64_t e = 0;
        for (; e + BLOCK * WIDTH <= row; e += BLOCK * WIDTH) {
            std::pair<V, V> found[BLOCK];
            V sum{};  // finite only if all are; if all are it may overflow, and they are looked at one by one
            for (int b = 0; b < BLOCK; ++b) found[b] = moved(V{}, e + b * WIDTH), sum += found[b].first;
            if (__builtin_expect(!all_finite(sum), false)) {
                for (int64_t at = e; at < e + BLOCK * WIDTH; ++at) one(at);
                continue;
            }
            for (int b = 0; b < BLOCK; ++b) {
                store(w + e + b * WIDTH, found[b].first);
                if (MOVING) store(m + e + b * WIDTH, found[b].second);
            }
        }
        for (; e < row; ++e) one(e);
        if (with_bias && layer.bias) kept += update_bias(layer, step, down, target, target);
    }
    return kept;
}

// Σ w² A_i over each of the rows [first, last) of a layer, with A of the sources laid out as rows [G, I · T].
void norms(const Shape& shape, const Layer& layer, const Element* of_sources, double* found, int64_t first,
           int64_t last) {
    using V = typename Simd<Element>::Vector;
    using Sums = PartialSums<Element>;
    constexpr int WIDTH = Simd<Element>::WIDTH;
    const int64_t row = shape.row();
    for (int64_t target = first; target < last; ++target) {
        const Element *w = layer.weight + target * row, *A = of_sources + target / shape.outputs * row;
        Sums sums;
        int64_t e = 0;
        for (; e + Sums::COUNT <= row; e += Sums::COUNT)
            for (int part = 0; part < Sums::VECTORS; ++part) {
                const int64_t at = e + part * WIDTH;
                sums.parts[part] += load<V>(w + at) * load<V>(w + at) * load<V>(A + at);
            }
        Element sum = sums.total();
        for (; e < row; ++e) sum += w[e] * w[e] * A[e];
        found[target] = sum;
    }
}

// The same over the edges into each target, where rows hold those out of a source.
void norms_turned(const Shape& shape, const Layer& layer, const Element* of_sources, double* found) {
    const Element* w = layer.weight;
    for (int64_t j = 0; j < shape.targets(); ++j) found[j] = 0;
    for (int64_t source = 0; source < shape.sources(); ++source) {
        double* const its = found + source / shape.inputs * shape.outputs;
        for (int64_t j = 0; j < shape.outputs; ++j) {
            for (int64_t t = 0; t < shape.taps; ++t, ++w) {
                its[j] += double(*w) * *w * of_sources[source * shape.taps];
            }
        }
    }
}

}  // namespace
