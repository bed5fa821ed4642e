// The step of definition.py in two passes over a chain: sums of w g for the node flows, then every weight once.
//
// The passes over a layer are in passes.hpp; here the ratios of the runs are made of the first pass, and the factors of
// the second of the ratios. Sums over a layer are one task each: their order, and so every bit, is the same on any number
// of threads.

#include <cmath>

#include "workspace.hpp"
#include "passes.hpp"
#include "../runtime/native/overlap.hpp"

namespace {

// For each hidden node: the skeleton edge into it and the one out of it, the nodes at their other ends (H where paths
// end), whether the edge out is the last of its run, and the run.
struct Bones {
    const int64_t *in, *out, *source, *target, *ends, *run;
};

// `count` of a layer's sources are the nodes of the layer `made`, or ends of paths where that is -1.
struct Part {
    int64_t layer, made, count;
};

}  // namespace

extern "C" {

// The part that is the same in every step, as by_cpp.py lays it out. runs: how many there are; weights: of one task of
// the second pass; moving: there are momenta; norms: as in Step; hidden: H. Behind it stand, for each layer, whether it has
// a bias, [count]; sizes [count, 4]; reduced [count]; turned, first and taken [count]: whether its weight lies as [G, I, O,
// T], the first of the nodes that it makes and the layer with the edges out of them, both -1 where paths end; how many
// parts there are, and Part of each, layer after layer; and nodes [6, H], as in Bones.
struct Call {
    int64_t count, runs, special, weights, threads, moving, norms, hidden;
};

constexpr int OVERLAPS = 3, RATE_IS_NOT_FINITE = 4;  // statuses beside those of native.hpp

// addresses: of every layer the weight and, where it has one, the bias; their gradients, and their momenta, likewise; the
// runs' momentum; events [3], to which are added the R that were held, those of them not positive and the weights that
// kept their values; and the settings: lr, a rate that takes its place, momentum, weight decay, least ratio, floor.
// Nothing that is written may lie in anything else: OVERLAPS then, and nothing is written.
int path_step(const Call* call, void* const* addresses) noexcept {
    const auto [count, runs, special, weights, threads_, moving, with_norms, hidden] = *call;
    const auto* const biased = reinterpret_cast<const int64_t*>(call + 1);
    const int64_t *const sizes = biased + count, *const reduced = sizes + 4 * count, *const turned = reduced + count;
    const int64_t *const start = turned + count, *const taken = start + count, *const counted = taken + count;
    const auto* const parts = reinterpret_cast<const Part*>(counted + 1);
    const int64_t* const nodes = counted + 1 + 3 * *counted;
    int64_t parameters = count;
    for (int64_t l = 0; l < count; ++l) parameters += biased[l];
    void* const* const rest = addresses + (moving ? 3 : 2) * parameters;  // what stands behind the layers
    const auto setting = [&](int which) { return *static_cast<const double*>(rest[2 + which]); };
    const double lr = setting(rest[3] ? 1 : 0);
    if (!std::isfinite(lr)) return RATE_IS_NOT_FINITE;
    const Step step{lr, setting(2), setting(3), setting(4), setting(5), double(with_norms)};
    Element* const run_momentum = static_cast<Element*>(rest[0]);
    int64_t* const events = static_cast<int64_t*>(rest[1]);
    bool overlaps = false;
    const int status = guarded([&] {
        const int threads = int(threads_);
        std::vector<Shape> shapes(count), lying(count);  // lying: as the weight lies, of a turned one with sources for targets
        std::vector<Layer> layers(count);
        std::vector<Span> operands;
        operands.reserve(3 * parameters + 2);
        const auto note = [&](const auto* first, int64_t count, bool is_written) {
            if (first && count > 0) operands.push_back(span(first, count, is_written));
        };
        note(run_momentum, runs, true), note(events, 3, true);
        int64_t parameter = 0;
        for (int64_t l = 0; l < count; ++l) {
            const Shape& shape = shapes[l] = {sizes[4 * l], sizes[4 * l + 1], sizes[4 * l + 2], sizes[4 * l + 3]};
            lying[l] = turned[l] ? Shape{shape.groups, shape.inputs, shape.outputs, shape.taps} : shape;
            const auto at = [&](int64_t which, bool is_there) {
                return is_there ? static_cast<Element*>(addresses[which * parameters + parameter]) : nullptr;
            };
            Element *const weight = at(0, true), *const grad = at(1, true), *const momentum = at(2, moving);
            note(weight, shapes[l].targets() * shapes[l].row(), true);
            note(grad, shapes[l].targets() * shapes[l].row(), false);
            note(momentum, shapes[l].targets() * shapes[l].row(), true);
            ++parameter;
            const bool has_bias = biased[l];
            layers[l] = {weight, grad, at(0, has_bias), at(1, has_bias), momentum, at(2, moving && has_bias)};
            note(layers[l].bias, shapes[l].targets(), true);
            note(layers[l].bias_grad, shapes[l].targets(), false);
            note(layers[l].bias_momentum, shapes[l].targets(), true);
            parameter += has_bias;
        }
        overlaps = any_written_lies_in_another(operands);
        if (overlaps) return false;
        const auto row = [&](int which) { return nodes + which * hidden; };
        const Bones bones{row(0), row(1), row(2), row(3), row(4), row(5)};
        const int64_t* const run = bones.run;

        // all(part, source), of every part of every layer: source, the first of the layer's that it is
        const auto by_parts = [&](const auto& all) {
            int64_t source = 0;
            for (const Part* part = parts; part < parts + *counted; ++part) {
                source = part > parts && part[-1].layer == part->layer ? source : 0;
                all(*part, source);
                source += part->count;
            }
        };

        std::size_t size = 8 * (hidden + 1) + 3 * runs;
        for (const Shape& shape : lying) size += 4 * (shape.groups * shape.row() + shape.targets());
        Workspace workspace(size);
        const auto values = [&](int64_t count, Element value = 0) { return workspace.take(count, value); };

        const auto ones = [&](int64_t count) { return Factors{values(count, 1), values(count, 1), values(count, 1)}; };
        // Of the weights as they lie: factors across a row, one for each of its elements, and down the rows. Of a layer that
        // is not turned those are its sources and its targets.
        std::vector<Factors> across(count), down(count);
        const auto set = [&](int64_t l, bool is_source, int64_t at, Element psi, Element inverse, Element ratio) {
            if (is_source == bool(turned[l])) {
                down[l].psi[at] = psi, down[l].inverse[at] = inverse, down[l].ratio[at] = ratio;
                return;
            }
            for (int64_t taps = shapes[l].taps, e = at * taps; e < (at + 1) * taps; ++e) {
                across[l].psi[e] = psi, across[l].inverse[e] = inverse, across[l].ratio[e] = ratio;
            }
        };
        const auto all_ones = [&] {
            for (int64_t l = 0; l < count; ++l) {
                across[l] = ones(lying[l].groups * lying[l].row()), down[l] = ones(lying[l].targets());
            }
        };
        int64_t kept = 0, edges = 0;  // edges: how many there are, biases too
        for (int64_t l = 0; l < count; ++l) edges += shapes[l].targets() * (shapes[l].row() + (layers[l].bias != nullptr));

        // all(l, first, last), with rows of every layer from `begin` to before `end`, in tasks of some `weights` each
        const auto by_tasks = [&](int64_t begin, int64_t end, const auto& all) {
            std::vector<int64_t> task(count + 1, 0);  // the first task of each layer
            for (int64_t l = 0; l < count; ++l) {
                const int64_t its = ceil_div(lying[l].targets() * lying[l].row(), weights);
                task[l + 1] = task[l] + (begin <= l && l < end ? its : 0);
            }
            std::atomic<int64_t> next{0};
            in_parallel(threads, [&](int) {
                int64_t l = 0;
                for (int64_t t = next++; t < task[count]; t = next++) {
                    while (t >= task[l + 1]) ++l;
                    const int64_t rows_of = lying[l].targets(), tasks = task[l + 1] - task[l], part = t - task[l];
                    all(l, rows_of * part / tasks, rows_of * (part + 1) / tasks);
                }
            });
        };
        const auto move = [&] {
            std::atomic<int64_t> all_kept{0};
            by_tasks(0, count, [&](int64_t l, int64_t first, int64_t last) {
                const auto its = layers[l].momentum ? update<true> : update<false>;
                all_kept += its(lying[l], layers[l], step, across[l], down[l], !turned[l], first, last);
            });
            int64_t kept = all_kept;
            for (int64_t l = 0; l < count; ++l) {
                for (int64_t j = 0; turned[l] && layers[l].bias && j < shapes[l].targets(); ++j) {
                    kept += update_bias(layers[l], step, across[l], j, j * shapes[l].taps);
                }
            }
            return kept;
        };

        if (step.norms != 0) {
            std::vector<std::vector<double>> A(count);  // of the targets of each layer, at a mean of 1
            std::vector<double> logs(count, 0.0), depth(count, 1.0);  // logs: of what A was divided by
            double last = 0, way = 0;  // logs and depths of the layers that end paths
            all_ones();
            for (int64_t l = 0, part = 0; l < count; ++l) {
                const Shape& shape = shapes[l];
                const int64_t begin = part;
                double most = -HUGE_VAL, deep = 0;
                for (; part < *counted && parts[part].layer == l; ++part) {
                    const auto [_, made, its] = parts[part];
                    most = std::max(most, made < 0 ? 0 : logs[made]);
                    deep += made < 0 ? 0 : its * depth[made];
                }
                depth[l] = 1 + deep / shape.sources();
                Element* const of_sources = values(shape.groups * shape.row(), 1);
                for (int64_t at = begin, e = 0; at < part; ++at) {
                    const auto [_, made, its] = parts[at];
                    const double scale = std::exp((made < 0 ? 0 : logs[made]) - most);
                    for (int64_t i = 0; i < its; ++i, e += shape.taps) {
                        std::fill_n(of_sources + e, shape.taps, Element(scale * (made < 0 ? 1 : A[made][i])));
                    }
                }
                A[l].resize(shape.targets());
                if (turned[l]) {
                    norms_turned(shape, layers[l], of_sources, A[l].data());
                } else {
                    by_tasks(l, l + 1, [&](int64_t, int64_t first, int64_t last) {
                        norms(shape, layers[l], of_sources, A[l].data(), first, last);
                    });
                }
                double mean = 0;
                for (int64_t j = 0; j < shape.targets(); ++j) {
                    const double bias = layers[l].bias && start[l] >= 0 ? layers[l].bias[j] : 0;
                    mean += A[l][j] += bias * bias * std::exp(-most);
                }
                mean /= shape.targets();
                logs[l] = most + std::log(mean);
                for (double& each : A[l]) each = each / mean == 0 ? 1 : each / mean;
                if (start[l] < 0) last += logs[l], way += depth[l];
            }
            Element *const c = values(hidden), *const over = values(hidden);
            for (int64_t l = 0; l < count; ++l) {
                const double profile = std::exp(last * depth[l] / way - logs[l]);
                for (int64_t j = 0; start[l] >= 0 && j < shapes[l].targets(); ++j) {
                    const int64_t node = start[l] + j;
                    c[node] = std::sqrt(profile / A[l][j]), over[node] = 1 / c[node];
                    set(l, false, j, c[node], over[node], 1);
                }
            }
            by_parts([&](const Part& part, int64_t source) {
                for (int64_t i = 0; part.made >= 0 && i < part.count; ++i) {
                    const int64_t node = start[part.made] + i;
                    set(part.layer, true, source + i, over[node], c[node], 1);
                }
            });
            events[2] += move();
            return true;
        }

        // of hidden nodes, and at H the value where paths end
        Element *w_in = values(hidden), *w_out = values(hidden), *P = values(hidden + 1, 1), *S = values(hidden + 1, 1);
        Element *surplus = values(hidden), *through = values(hidden), *p = values(hidden + 1, 1), *q = values(hidden + 1, 1);
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t j = 0; start[l] >= 0 && j < shapes[l].targets(); ++j) {
                const int64_t node = start[l] + j;
                w_in[node] = layers[l].weight[bones.in[node]];
                w_out[node] = layers[taken[l]].weight[bones.out[node]];
                P[node] = w_in[node] * P[bones.source[node]];
                surplus[node] = w_in[node] * layers[l].grad[bones.in[node]];
                if (bones.ends[node]) surplus[node] += w_out[node] * layers[taken[l]].grad[bones.out[node]];
            }
        }
        for (int64_t node = hidden - 1; node >= 0; --node) S[node] = w_out[node] * S[bones.target[node]];

        std::vector<Element*> rows(count), columns(count);
        for (int64_t l = 0; l < count; ++l) {
            if (reduced[l]) rows[l] = values(lying[l].targets()), columns[l] = values(lying[l].groups * lying[l].row());
        }
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int) {
            for (int64_t l = next++; l < count; l = next++) {
                if (reduced[l]) flows(lying[l], layers[l], rows[l], columns[l]);
            }
        });
        const auto flow_at = [&](int64_t l, bool is_source, int64_t at) {
            if (is_source == bool(turned[l])) return rows[l][at];
            Element sum = 0;
            for (int64_t t = 0; t < shapes[l].taps; ++t) sum += columns[l][at * shapes[l].taps + t];
            return sum;
        };
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t j = 0; reduced[l] && start[l] >= 0 && j < shapes[l].targets(); ++j) {
                through[start[l] + j] =
                    flow_at(l, false, j) + (layers[l].bias ? layers[l].bias[j] * layers[l].bias_grad[j] : 0);
            }
        }
        by_parts([&](const Part& part, int64_t source) {
            if (part.made < 0 || reduced[part.made]) return;
            for (int64_t i = 0; i < part.count; ++i) through[start[part.made] + i] += flow_at(part.layer, true, source + i);
        });

        Element *flow = values(runs), *value = values(runs), *ratio = values(runs);
        std::vector<char> met(runs, 0);
        for (int64_t node = 0; node < hidden; ++node) {
            flow[run[node]] += surplus[node] - through[node];
            if (!met[run[node]]) value[run[node]] = P[node] * S[node], met[run[node]] = 1;
        }
        const auto slope_of = [&](int64_t k) {
            const Element slope = flow[k] / value[k] + Element(step.weight_decay) * value[k];
            return run_momentum ? Element(step.momentum) * run_momentum[k] + slope : slope;
        };
        bool is_sound = true;
        for (int64_t k = 0; k < runs; ++k) {
            ratio[k] = 1 - Element(step.lr) * slope_of(k) / value[k];
            is_sound = is_sound && value[k] != 0 && is_finite(value[k]) && is_finite(ratio[k]);
        }
        if (!is_sound) {
            events[2] += edges;
            return true;
        }
        for (int64_t k = 0; k < runs; ++k) {
            const Element wanted = ratio[k], size = value[k] < 0 ? -value[k] : value[k];
            const Element least = std::min(Element(1), std::max(Element(step.least_ratio), Element(step.floor) / size));
            const bool held = wanted < least;
            events[0] += held;
            events[1] += held && wanted <= 0;
            if (run_momentum) run_momentum[k] = held ? 0 : slope_of(k);
            ratio[k] = held ? least : wanted;
        }

        // p of the layers from `special` on, q of those before it: by the ratios themselves, not their inverses, for R / R
        // is 1, and what is frozen keeps its bits
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t j = 0; start[l] >= 0 && j < shapes[l].targets(); ++j) {
                (l >= special ? p : q)[start[l] + j] = ratio[run[start[l] + j]];
            }
        }
        all_ones();
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t j = 0; start[l] >= 0 && j < shapes[l].targets(); ++j) {
                const int64_t node = start[l] + j;
                set(l, false, j, S[node], 1 / S[node], 1 / q[node]);
            }
        }
        by_parts([&](const Part& part, int64_t source) {
            for (int64_t i = 0; part.made >= 0 && i < part.count; ++i) {
                const int64_t node = start[part.made] + i;
                set(part.layer, true, source + i, P[node], 1 / P[node], 1 / p[node]);
            }
        });
        kept = move();

        const auto place = [&](Element& edge, Element weight, Element scale) {
            const bool moves = is_finite(weight * scale);
            edge = moves ? weight * scale : weight;
            kept += !moves;
        };
        for (int64_t l = 0; l < count; ++l) {
            for (int64_t j = 0; start[l] >= 0 && j < shapes[l].targets(); ++j) {
                const int64_t node = start[l] + j;
                const Element own = ratio[run[node]];
                place(layers[l].weight[bones.in[node]], w_in[node], own / (p[bones.source[node]] * q[node]));
                if (!bones.ends[node]) continue;
                const Element out = own / (p[node] * q[bones.target[node]]);
                place(layers[taken[l]].weight[bones.out[node]], w_out[node], out);
            }
        }
        events[2] += kept;
        return true;
    });
    return overlaps ? OVERLAPS : status;
}

}  // extern "C"
