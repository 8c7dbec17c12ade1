// Memory for gradients, kept when it is freed: two thirds of the time of a large loss are page faults of fresh memory.

#pragma once

#include <cstddef>

namespace labelsmooth {

// At least `size` bytes, aligned to 64; null where there are none.
struct Buffer {
    void* data;
    size_t capacity;
};

Buffer acquire(size_t size);

// Gives a buffer back, from any thread, with no lock of Python's held.
void release(Buffer buffer);

// Frees what is kept; how many bytes that was.
size_t drop();

}  // namespace labelsmooth
