// The geometry of a convolution: which taps of which outputs lie inside the image.

#pragma once

#include "../runtime/native/native.hpp"

namespace {

constexpr int NOTHING = -1;  // stands for a tap where there is none

struct Axis {
    int64_t size, outputs, taps, stride, padding, dilation;

    int64_t position(int64_t output, int64_t tap) const { return output * stride - padding + tap * dilation; }
    bool holds(int64_t position) const { return uint64_t(position) < uint64_t(size); }
    int64_t reach() const { return (taps - 1) * dilation; }
    int64_t shift(int64_t tap) const { return tap * dilation / stride; }

    int64_t first_inside(int64_t output) const {
        for (int64_t tap = 0; tap < taps; ++tap)
            if (holds(position(output, tap))) return tap;
        return NOTHING;
    }

    std::vector<int64_t> firsts_inside() const {
        std::vector<int64_t> found(outputs);
        for (int64_t output = 0; output < outputs; ++output) found[output] = first_inside(output);
        return found;
    }

    // What remains of the taps' offsets after whole strides: one plane each.
    std::vector<int64_t> phases() const {
        std::vector<int64_t> found;
        for (int64_t tap = 0; tap < taps; ++tap) {
            const int64_t phase = tap * dilation % stride;
            if (std::find(found.begin(), found.end(), phase) == found.end()) found.push_back(phase);
        }
        return found;
    }
};

struct Sizes {
    int64_t batch, groups, channels, filters;  // channels and filters of one group
    Axis row, column;

    int64_t taps() const { return row.taps * column.taps; }
    int64_t K() const { return channels * taps(); }
    int64_t outputs() const { return row.outputs * column.outputs; }
};

struct Strides { int64_t batch, channel, row, column; };

}  // namespace
