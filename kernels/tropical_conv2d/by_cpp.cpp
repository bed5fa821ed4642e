// Tropical convolution on the CPU:  y[o, p, q] = max_{c, i, j} x[c, p·s − pad + i·d, q·s − pad + j·d] + w[o, c, i, j]
// (or min), and its backward.  min is max of negated operands: both pass through copies, so the signs cost nothing.
//
// forward.hpp and backward.hpp compute; here are the functions that by_cpp.py calls.

#include "forward.hpp"
#include "backward.hpp"

namespace {

// What by_cpp.py lays out. No size is 0; strides are in elements.

struct Geometry {  // of each pair the first is for rows, the second for columns
    int64_t batch, groups, channels, filters;  // channels and filters of one group
    int64_t inputs[2], outputs[2], taps[2], stride[2], padding[2], dilation[2];
};

Sizes sizes_of(const Geometry& g) {
    const auto axis = [&](int i) {
        return Axis{g.inputs[i], g.outputs[i], g.taps[i], g.stride[i], g.padding[i], g.dilation[i]};
    };
    return {g.batch, g.groups, g.channels, g.filters, axis(0), axis(1)};
}

struct ForwardCall {
    Geometry geometry;
    Strides x, w;
    int64_t negate, ignore_nan;
    int64_t saturates;  // whether sums of int32 may leave the plain form's range, of addends below 2^29
    int64_t short_winners, positions, threads;
};

struct ScatterCall {
    Geometry geometry;
    Strides dy;
    int64_t short_winners, threads;
};

}  // namespace

// winners: null where not wanted.
extern "C" int tropical_conv_forward(const ForwardCall* call, const void* x, const void* w, void* y, void* winners) {
    const Problem problem{sizes_of(call->geometry), x, w, call->x, call->w, y, winners,
                          call->short_winners != 0, call->negate != 0, call->ignore_nan != 0, call->positions,
                          static_cast<int>(call->threads)};
    return guarded([&] {
        if constexpr (std::is_same_v<Element, int32_t>) {
            if (call->saturates)  // a double holds every sum of two int32 exactly
                Dilation<double, Saturated<int32_t, double>>(problem).run();
            else
                Dilation<int32_t, Unrounded>(problem).run();
        } else if constexpr (std::is_same_v<Element, int16_t>)
            Dilation<Sum, Saturated<int16_t, Sum>>(problem).run();
        else if constexpr (std::is_same_v<Element, int8_t>)
            Dilation<Sum, Unrounded>(problem).run();
        else
            Dilation<Sum, Rounding>(problem).run();
        return true;
    });
}

// dx, dw: null where not wanted.
extern "C" int tropical_conv_scatter(const ScatterCall* call, const void* dy, const void* winners, void* dx, void* dw) {
    if constexpr (std::is_integral_v<Element>) return DONE;  // integers have no gradient
    else {
        const Scatter scatter{sizes_of(call->geometry), dy, call->dy, winners, call->short_winners != 0, dx, dw,
                              static_cast<int>(call->threads)};
        return guarded([&] {
            return call->short_winners ? Backward<int16_t>(scatter).run() : Backward<int32_t>(scatter).run();
        });
    }
}
