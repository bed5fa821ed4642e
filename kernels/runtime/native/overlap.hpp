// Whether an operand of a step that is written lies in another.

#pragma once

#include "native.hpp"

namespace {

// Where an operand lies, and whether it is written.
struct Span {
    uintptr_t begin, end;
    bool is_written;
};

template <class T>
Span span(const T* first, int64_t count, bool is_written) {
    const auto begin = reinterpret_cast<uintptr_t>(first);
    return {begin, begin + count * sizeof(T), is_written};
}

bool any_written_lies_in_another(std::vector<Span>& operands) {
    std::sort(operands.begin(), operands.end(), [](const Span& x, const Span& y) { return x.begin < y.begin; });
    uintptr_t end = 0, end_written = 0;
    for (const Span& x : operands) {
        if (x.begin < (x.is_written ? end : end_written)) return true;
        end = std::max(end, x.end);
        if (x.is_written) end_written = std::max(end_written, x.end);
    }
    return false;
}

}  // namespace
