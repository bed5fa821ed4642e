// The readouts of definition.py, with a dense and with a sparse weight.

#include "dense.hpp"
#include "sparse.hpp"

extern "C" {

int gather_softmax_forward(const Call* call, Compute* losses, Compute* tops, Compute* shares) noexcept {
    return guarded([&] {
        forward(*call, losses, tops, shares);
        return true;
    });
}

int gather_softmax_backward(const Call* call, const Slopes* slopes) noexcept {
    return guarded([&] {
        backward(*call, *slopes);
        return true;
    });
}

// Of these INDEX_OUT_OF_RANGE means that some row's columns do not ascend in [0, V).

int gather_softmax_sparse_forward(const SparseCall* call, Compute* losses, Compute* tops, Compute* shares) noexcept {
    return guarded([&] {
        const SparseReadout readout(*call);
        if (readout.are_columns_right()) readout.forward(losses, tops, shares);
        return readout.are_columns_right();
    });
}

int gather_softmax_sparse_backward(const SparseCall* call, const Slopes* slopes) noexcept {
    return guarded([&] {
        const SparseReadout readout(*call);
        if (readout.are_columns_right()) readout.backward(*slopes);
        return readout.are_columns_right();
    });
}

}  // extern "C"
