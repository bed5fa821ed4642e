// The memory of a step's own numbers.

#pragma once

#include "../runtime/native/native.hpp"

namespace {

// Numbers of one step, in memory that the next step finds again: asking the system for it took as long as half a step.
class Workspace {
    static thread_local std::vector<Element> memory;
    std::size_t used = 0;

public:
    explicit Workspace(std::size_t size) {
        if (memory.size() < size) memory.resize(size);
    }
    Element* take(int64_t count, Element value) {
        Element* found = memory.data() + used;
        used += count;
        std::fill(found, found + count, value);
        return found;
    }
};
thread_local std::vector<Element> Workspace::memory;

}  // namespace
