// A small pool of threads: no OpenMP, which hangs after fork.

#pragma once

#include <cstdint>

namespace labelsmooth {

// Calls task(context, 0) ... task(context, count - 1), each once, on at most `threads` threads, the caller's among them. Serial where
// the pool is busy with another caller, where threads cannot be had, and in a process that was forked.
void parallel(int threads, int64_t count, void (*task)(const void*, int64_t), const void* context);

// Wakes the pool's threads, which takes as long as a small job: for a caller who has something to do before its job.
void rouse();

}  // namespace labelsmooth
