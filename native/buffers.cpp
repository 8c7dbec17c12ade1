#include "buffers.h"

#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <vector>

#if !defined(_WIN32)
#include <pthread.h>
#endif

namespace labelsmooth {
namespace {

constexpr size_t most_kept = 4;       // buffers
constexpr uint64_t idle_calls = 64;   // what so many calls did not want is freed
constexpr size_t alignment = 64;

struct Kept {
    Buffer buffer;
    uint64_t since;
};

std::mutex mutex;
uint64_t calls = 0;

std::vector<Kept>& kept() {
    static auto* const list = [] {
#if !defined(_WIN32)
        // A child must not inherit the lock from a thread that it does not have.
        pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); }, [] { mutex.unlock(); });
#endif
        auto* const list = new std::vector<Kept>;  // never destroyed: tensors may outlive static objects
        list->reserve(most_kept);
        return list;
    }();
    return *list;
}

void drop_at(std::vector<Kept>& list, size_t i) {
    std::free(list[i].buffer.data);
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
}

}  // namespace

Buffer acquire(size_t size) {
    {
        std::lock_guard<std::mutex> lock(mutex);
        auto& list = kept();
        ++calls;
        size_t best = list.size();
        for (size_t i = 0; i < list.size(); ++i) {
            const size_t capacity = list[i].buffer.capacity;
            const bool fits = capacity >= size && capacity / 2 <= size;
            if (fits && (best == list.size() || capacity < list[best].buffer.capacity)) best = i;
        }
        if (best < list.size()) {
            const Buffer found = list[best].buffer;
            list.erase(list.begin() + static_cast<std::ptrdiff_t>(best));
            for (size_t i = list.size(); i-- > 0;)
                if (calls - list[i].since > idle_calls) drop_at(list, i);
            return found;
        }
        // Sizes have changed: what is kept would only add to what is taken now.
        while (!list.empty()) drop_at(list, list.size() - 1);
    }
    const size_t capacity = (size + alignment - 1) / alignment * alignment;
    return {std::aligned_alloc(alignment, capacity), capacity};
}

void release(Buffer buffer) {
    std::lock_guard<std::mutex> lock(mutex);
    auto& list = kept();
    if (list.size() == most_kept) drop_at(list, 0);
    list.push_back({buffer, calls});
}

size_t drop() {
    std::lock_guard<std::mutex> lock(mutex);
    auto& list = kept();
    size_t bytes = 0;
    while (!list.empty()) {
        bytes += list.back().buffer.capacity;
        drop_at(list, list.size() - 1);
    }
    return bytes;
}

}  // namespace labelsmooth
