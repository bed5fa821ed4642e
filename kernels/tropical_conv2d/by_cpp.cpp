// Tropical convolution on the CPU:  y[o, p, q] = max_{c, i, j} x[c, p·s − pad + i·d, q·s − pad + j·d] + w[o, c, i, j]
// (or min), and its backward.  min is max of negated operands: both pass through copies, so the signs cost nothing.
//
// forward.hpp and backward.hpp compute; here are the functions that by_cpp.py calls.

#include "forward.hpp"
#include "backward.hpp"

namespace {

Sizes sizes_of(const int64_t* n) {
    const Axis row{n[4], n[6], n[8], n[10], n[12], n[14]}, column{n[5], n[7], n[9], n[11], n[13], n[15]};
    return {n[0], n[1], n[2], n[3], row, column};
}

Strides strides_of(const int64_t* n) { return {n[0], n[1], n[2], n[3]}; }

}  // namespace

// sizes: batch, groups, channels and filters of a group, then for rows and columns: inputs, outputs, taps, stride,
// padding, dilation.  strides: four of x, four of w, in elements.  No size is 0.  saturates: whether sums of int32 may
// leave the plain form's range, of addends below 2^29.
extern "C" int tropical_conv_forward(int negate, int ignore_nan, int saturates, int short_winners, const int64_t* sizes,
                                     const void* x, const void* w, const int64_t* strides, void* y, void* winners,
                                     int64_t positions, int threads) {
    const Problem problem{sizes_of(sizes), x, w, strides_of(strides), strides_of(strides + 4), y, winners,
                          short_winners != 0, negate != 0, ignore_nan != 0, positions, threads};
    return guarded([&] {
        if constexpr (std::is_same_v<Element, int32_t>)
            // a double holds every sum of two int32 exactly
            saturates ? Dilation<double, Saturated<int32_t, double>>(problem).run() : Dilation<int32_t, Unrounded>(problem).run();
        else if constexpr (std::is_same_v<Element, int16_t>)
            Dilation<Sum, ToInt16>(problem).run();
        else if constexpr (std::is_same_v<Element, int8_t>)
            Dilation<Sum, Unrounded>(problem).run();
        else
            Dilation<Sum, Rounding>(problem).run();
        return true;
    });
}

// sizes: as above.  strides: four of dy, in elements.  dx, dw: null where not wanted.
extern "C" int tropical_conv_scatter(const int64_t* sizes, const void* dy, const int64_t* strides, const void* winners,
                                     int short_winners, void* dx, void* dw, int threads) {
    if constexpr (std::is_integral_v<Element>) return DONE;  // integers have no gradient
    else {
        const Scatter scatter{sizes_of(sizes), dy, strides_of(strides), winners, short_winners != 0, dx, dw, threads};
        return guarded([&] {
            return short_winners ? Backward<int16_t>(scatter).run() : Backward<int32_t>(scatter).run();
        });
    }
}
