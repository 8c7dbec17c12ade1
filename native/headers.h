// What the kernels need from outside, before any `target`.
#include <cstdint>
#include <cstring>

#include "kernel.h"
#include "threads.h"
