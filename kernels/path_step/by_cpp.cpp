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

// For each hidden node: the skeleton edge into it and the one out of it, the nodes at their other ends (numbered within
// their layer), whether the edge out is the last of its run, and the run.
struct Bones {
    const int64_t *in, *out, *source, *target, *ends, *run;
};

}  // namespace

extern "C" {

// The part that is the same in every step, as by_cpp.py lays it out. runs: how many there are; weights: of one task of
// the second pass; moving: there are momenta; norms: as in Step. Behind it stand, for each layer, whether it has a bias,
// [count]; sizes [count, 4]; reduced [count]; and nodes [6, H], as in Bones.
struct Call {
    int64_t count, runs, special, weights, threads, moving, norms;
};

constexpr int OVERLAPS = 3, RATE_IS_NOT_FINITE = 4;  // statuses beside those of native.hpp

// addresses: of every layer the weight and, where it has one, the bias; their gradients, and their momenta, likewise; the
// runs' momentum; events [3], to which are added the R that were held, those of them not positive and the weights that
// kept their values; and the settings: lr, a rate that takes its place, momentum, weight decay, least ratio, floor.
// Nothing that is written may lie in anything else: OVERLAPS then, and nothing is written.
int path_step(const Call* call, void* const* addresses) noexcept {
    const auto [count, runs, special, weights, threads_, moving, with_norms] = *call;
    const auto* const biased = reinterpret_cast<const int64_t*>(call + 1);
    const int64_t *const sizes = biased + count, *const reduced = sizes + 4 * count, *const nodes = reduced + count;
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
        std::vector<Shape> shapes(count);
        std::vector<Layer> layers(count);
        std::vector<Span> operands;
        operands.reserve(3 * parameters + 2);
        const auto note = [&](const auto* first, int64_t count, bool is_written) {
            if (first && count > 0) operands.push_back(span(first, count, is_written));
        };
        note(run_momentum, runs, true), note(events, 3, true);
        int64_t parameter = 0;
        std::vector<int64_t> start(count + 1, 0);  // of hidden layer h in vectors over all hidden nodes
        for (int64_t l = 0; l < count; ++l) {
            shapes[l] = {sizes[4 * l], sizes[4 * l + 1], sizes[4 * l + 2], sizes[4 * l + 3]};
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
            start[l + 1] = start[l] + (l + 1 < count ? shapes[l].targets() : 0);
        }
        overlaps = any_written_lies_in_another(operands);
        if (overlaps) return false;
        const int64_t hidden = start[count];
        const auto row = [&](int which) { return nodes + which * hidden; };
        const Bones bones{row(0), row(1), row(2), row(3), row(4), row(5)};
        const int64_t* const run = bones.run;

        std::size_t size = 6 * hidden + 3 * runs;
        for (const Shape& shape : shapes) size += 4 * (shape.groups * shape.row() + shape.targets());
        Workspace workspace(size);
        const auto values = [&](int64_t count, Element value = 0) { return workspace.take(count, value); };

        const auto ones = [&](int64_t count) { return Factors{values(count, 1), values(count, 1), values(count, 1)}; };
        std::vector<Factors> sources(count), targets(count);
        int64_t kept = 0, edges = 0;  // edges: how many there are, biases too
        for (int64_t l = 0; l < count; ++l) edges += shapes[l].targets() * (shapes[l].row() + (layers[l].bias != nullptr));

        // all(l, first, last), with rows of every layer from `begin` to before `end`, in tasks of some `weights` each
        const auto by_tasks = [&](int64_t begin, int64_t end, const auto& all) {
            std::vector<int64_t> task(count + 1, 0);  // the first task of each layer
            for (int64_t l = 0; l < count; ++l) {
                const int64_t its = ceil_div(shapes[l].targets() * shapes[l].row(), weights);
                task[l + 1] = task[l] + (begin <= l && l < end ? its : 0);
            }
            std::atomic<int64_t> next{0};
            in_parallel(threads, [&](int) {
                int64_t l = 0;
                for (int64_t t = next++; t < task[count]; t = next++) {
                    while (t >= task[l + 1]) ++l;
                    const int64_t rows_of = shapes[l].targets(), tasks = task[l + 1] - task[l], part = t - task[l];
                    all(l, rows_of * part / tasks, rows_of * (part + 1) / tasks);
                }
            });
        };
        const auto move = [&] {
            std::atomic<int64_t> all_kept{0};
            by_tasks(0, count, [&](int64_t l, int64_t first, int64_t last) {
                const auto its = layers[l].momentum ? update<true> : update<false>;
                all_kept += its(shapes[l], layers[l], step, sources[l], targets[l], first, last);
            });
            return all_kept.load();
        };

        if (step.norms != 0) {
            std::vector<std::vector<double>> A(count);  // of the targets of each layer, at a mean of 1
            std::vector<double> logs(count + 1, 0.0);  // of what A was divided by
            for (int64_t l = 0; l < count; ++l) {
                const Shape& shape = shapes[l];
                sources[l] = ones(shape.groups * shape.row()), targets[l] = ones(shape.targets());
                Element* const of_sources = values(shape.groups * shape.row(), 1);
                for (int64_t i = 0; l > 0 && i < shape.sources(); ++i) {
                    std::fill_n(of_sources + i * shape.taps, shape.taps, Element(A[l - 1][i]));
                }
                A[l].resize(shape.targets());
                by_tasks(l, l + 1, [&](int64_t, int64_t first, int64_t last) {
                    norms(shape, layers[l], of_sources, A[l].data(), first, last);
                });
                double mean = 0;
                for (int64_t j = 0; j < shape.targets(); ++j) {
                    const double bias = layers[l].bias && l + 1 < count ? layers[l].bias[j] : 0;
                    mean += A[l][j] += bias * bias * std::exp(-logs[l]);
                }
                mean /= shape.targets();
                logs[l + 1] = logs[l] + std::log(mean);
                for (double& each : A[l]) each = each / mean == 0 ? 1 : each / mean;
            }
            for (int64_t h = 0; h + 1 < count; ++h) {
                const double profile = std::exp(logs[count] * (h + 1) / count - logs[h + 1]);
                for (int64_t j = 0; j < shapes[h].targets(); ++j) {
                    const Element c = std::sqrt(profile / A[h][j]), over = 1 / c;
                    targets[h].psi[j] = c, targets[h].inverse[j] = over;
                    const int64_t taps = shapes[h + 1].taps;
                    std::fill_n(sources[h + 1].psi + j * taps, taps, over);
                    std::fill_n(sources[h + 1].inverse + j * taps, taps, c);
                }
            }
            events[2] += move();
            return true;
        }

        Element *w_in = values(hidden), *w_out = values(hidden), *P = values(hidden), *S = values(hidden);
        Element *surplus = values(hidden), *through = values(hidden);
        for (int64_t h = 0; h + 1 < count; ++h) {
            for (int64_t node = start[h]; node < start[h + 1]; ++node) {
                w_in[node] = layers[h].weight[bones.in[node]];
                w_out[node] = layers[h + 1].weight[bones.out[node]];
                P[node] = w_in[node] * (h ? P[start[h - 1] + bones.source[node]] : Element(1));
                surplus[node] = w_in[node] * layers[h].grad[bones.in[node]];
                if (bones.ends[node]) surplus[node] += w_out[node] * layers[h + 1].grad[bones.out[node]];
            }
        }
        for (int64_t h = count - 2; h >= 0; --h) {
            for (int64_t node = start[h]; node < start[h + 1]; ++node) {
                S[node] = w_out[node] * (h + 2 < count ? S[start[h + 1] + bones.target[node]] : Element(1));
            }
        }

        std::vector<Element*> rows(count), columns(count);
        for (int64_t l = 0; l < count; ++l) {
            if (reduced[l]) rows[l] = values(shapes[l].targets()), columns[l] = values(shapes[l].groups * shapes[l].row());
        }
        std::atomic<int64_t> next{0};
        in_parallel(threads, [&](int) {
            for (int64_t l = next++; l < count; l = next++) {
                if (reduced[l]) flows(shapes[l], layers[l], rows[l], columns[l]);
            }
        });
        for (int64_t l = 0; l < count; ++l) {
            if (!reduced[l]) continue;
            if (l > 0 && !reduced[l - 1]) {
                for (int64_t i = 0; i < shapes[l].sources(); ++i) {
                    const Element* taps = columns[l] + i * shapes[l].taps;
                    for (int64_t t = 0; t < shapes[l].taps; ++t) through[start[l - 1] + i] += taps[t];
                }
            }
            for (int64_t j = 0; l + 1 < count && j < shapes[l].targets(); ++j) {
                through[start[l] + j] = rows[l][j] + (layers[l].bias ? layers[l].bias[j] * layers[l].bias_grad[j] : 0);
            }
        }

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

        for (int64_t l = 0; l < count; ++l) {
            const Shape& shape = shapes[l];
            sources[l] = ones(shape.groups * shape.row()), targets[l] = ones(shape.targets());
            for (int64_t i = 0; l > 0 && i < shape.sources(); ++i) {
                const int64_t node = start[l - 1] + i;
                const Element inverse = 1 / P[node], over = l > special ? 1 / ratio[run[node]] : Element(1);
                for (int64_t e = i * shape.taps; e < (i + 1) * shape.taps; ++e) {
                    sources[l].psi[e] = P[node], sources[l].inverse[e] = inverse, sources[l].ratio[e] = over;
                }
            }
            for (int64_t j = 0; l + 1 < count && j < shape.targets(); ++j) {
                const int64_t node = start[l] + j;
                targets[l].psi[j] = S[node], targets[l].inverse[j] = 1 / S[node];
                if (l < special) targets[l].ratio[j] = 1 / ratio[run[node]];
            }
        }
        kept = move();

        // by the ratios themselves, not their inverses: R / R is 1, and what is frozen keeps its bits
        const auto p = [&](int64_t l, int64_t i) { return l > special ? ratio[run[start[l - 1] + i]] : Element(1); };
        const auto q = [&](int64_t l, int64_t j) {
            return l < special && l + 1 < count ? ratio[run[start[l] + j]] : Element(1);
        };
        const auto place = [&](Element& edge, Element weight, Element scale) {
            const bool moves = is_finite(weight * scale);
            edge = moves ? weight * scale : weight;
            kept += !moves;
        };
        for (int64_t h = 0; h + 1 < count; ++h) {
            for (int64_t j = 0, node = start[h]; node < start[h + 1]; ++j, ++node) {
                const Element own = ratio[run[node]], into = own / (p(h, bones.source[node]) * q(h, j));
                place(layers[h].weight[bones.in[node]], w_in[node], into);
                if (!bones.ends[node]) continue;
                const Element out = own / (p(h + 1, j) * q(h + 1, bones.target[node]));
                place(layers[h + 1].weight[bones.out[node]], w_out[node], out);
            }
        }
        events[2] += kept;
        return true;
    });
    return overlaps ? OVERLAPS : status;
}

}  // extern "C"
