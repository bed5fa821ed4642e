// Values of paths through a network, v(p) = prod_l w(e_l), and their gradient, a block of paths at a time.
//
// The edges e_l of a block are found path by path, then their weights layer by layer, so that one layer's weights are
// looked up while they are in a cache. Where a cache holds all weights, and there are not many layers, a path is walked
// in one go instead, in registers.
//
// The gradient of an edge is (prefix product) (suffix product) dv. A weight's gradient is added up in the order of the
// paths, on any number of threads: they share the blocks of a chunk of paths to find its terms, then the layers, or
// ranges of one layer's weights, to add them.

#include "../runtime/native/native.hpp"

#include <memory>

namespace {

constexpr int64_t NONE = -1;           // a convolution has no such edge
constexpr int64_t IN_CACHE = 1 << 21;  // bytes of weights, and of gradients beside them, that stay in the second cache
constexpr int MOST_WALKED = 8;         // layers

struct Layer {
    int64_t C, H, W, O, P, Q, KH, KW, SH, SW, PH, PW;
    int64_t first = 0;  // where its weights begin

    int64_t weights() const { return O * C * KH * KW; }
    bool is_linear() const { return H * W * P * Q * KH * KW == 1; }

    // Both nodes are in the layer.
    int64_t edge(uint32_t s, uint32_t t) const {
        const uint32_t area = H * W, width = W, out_area = P * Q, out_width = Q;
        const int64_t i = s % area / width + PH - t % out_area / out_width * SH;
        const int64_t j = s % width + PW - t % out_width * SW;
        if (i < 0 || i >= KH || j < 0 || j >= KW) return NONE;
        return ((t / out_area * C + s / area) * KH + i) * KW + j;
    }
};

// What a path needs of a layer, close together.
struct Step {
    uint64_t outputs, stride;  // nodes; an edge of a linear layer is target * stride + source
    const Layer* window;       // null for a linear layer
};

struct Problem {
    int64_t batch, paths;
    int64_t flat_batch, path_batch, path_row, path_column, dv_batch, dv_column;
    const Element* flat;
    const Element* dv;
    const void* nodes;
    int64_t block;  // paths
    int threads;
    std::vector<Layer> layers;

    int64_t L() const { return layers.size(); }
    int64_t weights() const { return layers.back().first + layers.back().weights(); }
    int64_t bytes() const { return weights() * int64_t(sizeof(Element)); }
};

// A lookup that is not to become a gather instruction: measured, those take longer.
inline int32_t alone(int32_t index) {
    asm("" : "+r"(index));
    return index;
}

template <class Node>
struct Network {
    const Problem& p;
    uint64_t inputs;
    std::vector<Step> steps;
    bool windows = false;

    explicit Network(const Problem& problem) : p(problem), inputs(p.layers[0].C * p.layers[0].H * p.layers[0].W) {
        for (const Layer& layer : p.layers) {
            const bool linear = layer.is_linear();
            steps.push_back({uint64_t(layer.O * layer.P * layer.Q), uint64_t(layer.C), linear ? nullptr : &layer});
            windows |= !linear;
        }
    }

    bool walks(int64_t bytes) const {
        return !windows && p.L() <= MOST_WALKED && p.path_column == 1 && bytes <= IN_CACHE;
    }

    // use(integral_constant<int, L>) of the L layers, at most MOST_WALKED.
    template <int L = 1, class Use>
    bool with_depth(const Use& use) const {
        if constexpr (L < MOST_WALKED)
            if (p.L() > L) return with_depth<L + 1>(use);
        return use(std::integral_constant<int, L>());
    }

    // use(i, edges, weights) for each path; false, and no further path, where a node is outside its layer.
    template <int L, class Use>
    bool walk(int64_t batch, int64_t start, int64_t count, const Use& use) const {
        const Node* row = static_cast<const Node*>(p.nodes) + batch * p.path_batch + start * p.path_row;
        const Element* first[L];
        uint64_t outputs[L], stride[L];
        for (int l = 0; l < L; ++l) {
            first[l] = p.flat + batch * p.flat_batch + p.layers[l].first;
            outputs[l] = steps[l].outputs, stride[l] = steps[l].stride;
        }
        for (int64_t i = 0; i < count; ++i, row += p.path_row) {
            uint32_t edge[L];
            Element weight[L];
            uint64_t source = row[0];
            if (source >= inputs) return false;
#pragma GCC unroll 8
            for (int l = 0; l < L; ++l) {
                const uint64_t target = row[l + 1];
                if (target >= outputs[l]) return false;
                edge[l] = target * stride[l] + source;
                weight[l] = first[l][edge[l]];
                source = target;
            }
            use(i, edge, weight);
        }
        return true;
    }

    // edge: [layer][path], layers `stride` apart; false where a node is outside its layer.
    bool find_edges(int64_t batch, int64_t start, int64_t count, int32_t* edge, int64_t stride) const {
        if (windows) return edges<true>(batch, start, count, edge, stride);
        return edges<false>(batch, start, count, edge, stride);
    }

    template <bool WINDOWS>
    bool edges(int64_t batch, int64_t start, int64_t count, int32_t* edge, int64_t stride) const {
        const Node* row = static_cast<const Node*>(p.nodes) + batch * p.path_batch + start * p.path_row;
        const Step* step = steps.data();
        const int64_t L = p.L(), column = p.path_column;
        for (int64_t i = 0; i < count; ++i, row += p.path_row) {
            uint64_t source = row[0];  // a negative number becomes a large one
            if (source >= inputs) return false;
            for (int64_t l = 0; l < L; ++l) {
                const uint64_t target = row[(l + 1) * column];
                if (target >= step[l].outputs) return false;
                if (WINDOWS && step[l].window)
                    edge[l * stride + i] = int32_t(step[l].window->edge(source, target));
                else
                    edge[l * stride + i] = int32_t(target * step[l].stride + source);
                source = target;
            }
        }
        return true;
    }

    // use(i, weight) for each path of a block.
    template <class Use>
    void look_up(int64_t batch, int64_t l, int64_t count, const int32_t* edge, const Use& use) const {
        const Element* weights = p.flat + batch * p.flat_batch + p.layers[l].first;
        if (steps[l].window)
            for (int64_t i = 0; i < count; ++i) use(i, edge[i] == NONE ? Element(0) : weights[edge[i]]);
        else
            for (int64_t i = 0; i < count; ++i) use(i, weights[alone(edge[i])]);
    }

    bool forward(Element* values) const {
        const int64_t L = p.L(), BLOCK = p.block, blocks = ceil_div(p.paths, BLOCK), tasks = p.batch * blocks;
        const int64_t room = L * std::min(BLOCK, p.paths);
        const std::unique_ptr<int32_t[]> edges(new int32_t[p.threads * room]);
        const bool walked = walks(p.bytes());
        std::atomic<int64_t> next{0};
        std::atomic<bool> in_range{true};
        in_parallel(p.threads, [&](int t) {
            int32_t* edge = &edges[t * room];
            for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < tasks;) {
                const int64_t batch = task / blocks, start = task % blocks * BLOCK;
                const int64_t count = std::min(BLOCK, p.paths - start);
                Element* value = values + batch * p.paths + start;
                const bool found = walked ? with_depth([&](auto depth) {
                    return multiply_walked<depth>(batch, start, count, value);
                }) : multiply_layers(batch, start, count, edge, value);
                if (!found) in_range.store(false, std::memory_order_relaxed);
            }
        });
        return in_range;
    }

    bool backward(Element* dflat) const {
        if (p.threads == 1 && walks(2 * p.bytes()))
            return with_depth([&](auto depth) { return add_walked<depth>(dflat); });
        // one thread adds a block's terms while they are in its cache; more meet after every chunk of several blocks
        const int64_t L = p.L(), BLOCK = p.block, most = p.threads == 1 ? 1 : 2 * p.threads;
        const int64_t chunk = std::min(most * BLOCK, p.paths), parts = ceil_div(p.threads, L);  // of a layer's weights
        const int64_t room = (L + 1) * std::min(BLOCK, p.paths);
        const std::unique_ptr<int32_t[]> edges(new int32_t[L * chunk]);  // [layer][path of the chunk]
        const std::unique_ptr<Element[]> terms(new Element[L * chunk]), factors(new Element[p.threads * room]);
        for (int64_t batch = 0; batch < p.batch; ++batch) {
            for (int64_t start = 0; start < p.paths; start += chunk) {
                const int64_t count = std::min(chunk, p.paths - start), blocks = ceil_div(count, BLOCK);
                std::atomic<int64_t> next_block{0}, next_sum{0};
                std::atomic<bool> in_range{true};
                in_parallel(p.threads, [&](int t) {
                    for (int64_t block; (block = next_block.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
                        const int64_t offset = block * BLOCK, size = std::min(BLOCK, count - offset);
                        Element* factor = &factors[t * room];
                        if (!find_terms(batch, start + offset, size, factor, &edges[offset], &terms[offset], chunk))
                            in_range.store(false, std::memory_order_relaxed);
                    }
                });
                if (!in_range) return false;
                in_parallel(p.threads, [&](int) {
                    for (int64_t task; (task = next_sum.fetch_add(1, std::memory_order_relaxed)) < L * parts;) {
                        const int64_t l = task / parts;
                        add(l, task % parts, parts, count, &edges[l * chunk], &terms[l * chunk],
                            dflat + batch * p.weights());
                    }
                });
            }
        }
        return true;
    }

  private:
    template <int L>
    bool multiply_walked(int64_t batch, int64_t start, int64_t count, Element* value) const {
        return walk<L>(batch, start, count, [&](int64_t i, const uint32_t*, const Element* weight) {
            Element product = weight[0];
#pragma GCC unroll 8
            for (int l = 1; l < L; ++l) product *= weight[l];
            value[i] = product;
        });
    }

    // edge: room for L count.
    bool multiply_layers(int64_t batch, int64_t start, int64_t count, int32_t* edge, Element* value) const {
        if (!find_edges(batch, start, count, edge, count)) return false;
        look_up(batch, 0, count, edge, [&](int64_t i, Element weight) { value[i] = weight; });
        for (int64_t l = 1; l < p.L(); ++l)
            look_up(batch, l, count, edge + l * count, [&](int64_t i, Element weight) { value[i] *= weight; });
        return true;
    }

    template <int L>
    bool add_walked(Element* dflat) const {
        bool in_range = true;
        for (int64_t batch = 0; batch < p.batch && in_range; ++batch) {
            const Element* dv = p.dv + batch * p.dv_batch;
            Element* target[L];
            for (int l = 0; l < L; ++l) target[l] = dflat + batch * p.weights() + p.layers[l].first;
            in_range = walk<L>(batch, 0, p.paths, [&](int64_t i, const uint32_t* edge, const Element* weight) {
                Element prefix[L], suffix = dv[i * p.dv_column];
                prefix[0] = 1;
#pragma GCC unroll 8
                for (int l = 1; l < L; ++l) prefix[l] = prefix[l - 1] * weight[l - 1];
#pragma GCC unroll 8
                for (int l = L - 1; l >= 0; --l) {
                    target[l][edge[l]] += prefix[l] * suffix;
                    suffix *= weight[l];
                }
            });
        }
        return in_range;
    }

    // factors: room for (L + 1) count.  edge, term: of layer 0, the next layer's `stride` further.
    bool find_terms(int64_t batch, int64_t start, int64_t count, Element* factors, int32_t* edge, Element* term,
                    int64_t stride) const {
        if (!find_edges(batch, start, count, edge, stride)) return false;
        const int64_t L = p.L();
        std::fill_n(term, count, Element(1));
        for (int64_t l = 0; l < L; ++l) {
            Element* factor = factors + l * count;
            look_up(batch, l, count, edge + l * stride, [&](int64_t i, Element weight) { factor[i] = weight; });
            const Element* prefix = term + l * stride;
            if (l + 1 < L)
                for (int64_t i = 0; i < count; ++i) term[(l + 1) * stride + i] = prefix[i] * factor[i];
        }
        Element* suffix = factors + L * count;  // times dv
        const Element* dv = p.dv + batch * p.dv_batch + start * p.dv_column;
        for (int64_t i = 0; i < count; ++i) suffix[i] = dv[i * p.dv_column];
        for (int64_t l = L - 1; l >= 0; --l)
            for (int64_t i = 0; i < count; ++i) {
                term[l * stride + i] *= suffix[i];
                suffix[i] *= factors[l * count + i];
            }
        return true;
    }

    void add(int64_t l, int64_t part, int64_t parts, int64_t count, const int32_t* edge, const Element* term,
             Element* dflat) const {
        const Layer& layer = p.layers[l];
        Element* target = dflat + layer.first;
        if (parts == 1 && !steps[l].window) {
            for (int64_t i = 0; i < count; ++i) target[edge[i]] += term[i];
            return;
        }
        const int64_t low = layer.weights() * part / parts, high = layer.weights() * (part + 1) / parts;
        for (int64_t i = 0; i < count; ++i)
            if (edge[i] >= low && edge[i] < high) target[edge[i]] += term[i];
    }
};

// What by_cpp.py lays out. No size is 0.
struct Call {
    int64_t batch, paths, layers;
    int64_t block;                             // paths
    int64_t flat_batch;                        // strides, in elements
    int64_t path_batch, path_row, path_column;
    int64_t dv_batch, dv_column;
    int64_t node_bytes;                        // 8, 4 or 2
    int64_t threads;
};

constexpr int FIELDS = 12;  // of a layer, in the order of Layer

Problem problem(const Call& call, const int64_t* fields, const void* dv, const void* flat, const void* nodes) {
    Problem made{call.batch, call.paths, call.flat_batch, call.path_batch, call.path_row, call.path_column,
                 call.dv_batch, call.dv_column, static_cast<const Element*>(flat), static_cast<const Element*>(dv),
                 nodes, call.block, static_cast<int>(call.threads), {}};
    int64_t first = 0;
    for (int64_t l = 0; l < call.layers; ++l, fields += FIELDS) {
        made.layers.push_back({fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], fields[6], fields[7],
                               fields[8], fields[9], fields[10], fields[11], first});
        first += made.layers.back().weights();
    }
    return made;
}

template <class Work>
int with_nodes(int64_t bytes, const Problem& p, const Work& work) {
    if (bytes == 8) return work(Network<int64_t>(p));
    return bytes == 4 ? work(Network<int32_t>(p)) : work(Network<int16_t>(p));
}

}  // namespace

// ------------------------------------------------------------------------------------------------ C interface
// layers: FIELDS of each.  values and dflat are contiguous; dflat is zero on entry.

extern "C" int path_values_forward(const Call* call, const int64_t* layers, const void* flat, const void* paths,
                                   void* values) {
    return guarded([&] {
        const Problem p = problem(*call, layers, nullptr, flat, paths);
        return with_nodes(call->node_bytes, p, [&](const auto& its) {
            return its.forward(static_cast<Element*>(values));
        });
    });
}

extern "C" int path_values_backward(const Call* call, const int64_t* layers, const void* dv, const void* flat,
                                    const void* paths, void* dflat) {
    return guarded([&] {
        const Problem p = problem(*call, layers, dv, flat, paths);
        return with_nodes(call->node_bytes, p, [&](const auto& its) {
            return its.backward(static_cast<Element*>(dflat));
        });
    });
}
