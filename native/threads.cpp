#include "threads.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#if !defined(_WIN32)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#include <unistd.h>
#endif

namespace labelsmooth {
namespace {

std::atomic<bool> forked{false};  // the pool's threads stayed in the parent

// Waking a thread takes as long as a small job. In a loop the next job is there soon: wait for it awake, but for no longer
// than waking takes, and without yielding: PyTorch's threads wait awake too, and one that is let through keeps the core for
// milliseconds, whereas a thread that is woken takes it from them.
constexpr auto awake = std::chrono::microseconds(60);

template <class Condition>
bool comes_soon(const Condition& condition) {
    const auto end = std::chrono::steady_clock::now() + awake;
    do {
        for (int i = 0; i < 64; ++i) {
            if (condition()) return true;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

#if defined(__linux__)
int processor() { return sched_getcpu(); }

// Where PyTorch's threads wait awake on every other core, Linux puts a thread that wakes on the core of the one that woke
// it, and lets it take that one's place: two threads, and the work of one. The thread goes elsewhere, and stays away.
void leave(int theirs) {
    cpu_set_t others;  // of those that the process may use, as its main thread has them
    if (theirs < 0 || processor() != theirs || sched_getaffinity(getpid(), sizeof others, &others) != 0) return;
    CPU_CLR(theirs, &others);
    if (CPU_COUNT(&others) > 0) sched_setaffinity(0, sizeof others, &others);
}
#else
int processor() { return -1; }
void leave(int) {}
#endif

struct Job {
    void (*task)(const void*, int64_t);
    const void* context;
    int64_t count;
    int caller;  // its processor
};

class Pool {
public:
    // False where another caller has it.
    bool run(int threads, const Job& job) {
        std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
        if (!mine.owns_lock()) return false;
        hire(threads - 1);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            job_ = job;
            next_.store(0, std::memory_order_relaxed);
            wanted_ = threads - 1;
            ++number_;
        }
        work_.notify_all();
        take(job);
        // Nobody else may join; those who did are waited for.
        {
            std::lock_guard<std::mutex> lock(mutex_);
            wanted_ = 0;
        }
        if (comes_soon([this] { return active_ == 0; })) return true;
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return active_ == 0; });
        return true;
    }

    // Wakes the threads that there are, for a job that is about to come.
    void rouse() {
        if (hired_.load(std::memory_order_relaxed) == 0) return;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ++roused_;
            rouser_ = processor();
        }
        work_.notify_all();
    }

private:
    void hire(int threads) {
        while (static_cast<int>(hired_) < threads) {
            try {
                std::thread([this] { serve(); }).detach();
            } catch (const std::system_error&) {
                return;  // with fewer, then
            }
            ++hired_;
        }
    }

    void take(const Job& job) {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.task(job.context, i);
    }

    [[noreturn]] void serve() {
        std::unique_lock<std::mutex> lock(mutex_);
        uint64_t seen = 0, roused = roused_;  // jobs count from 1
        for (;;) {
            const auto is_wanted = [&] { return number_ != seen && wanted_ > 0; };
            work_.wait(lock, [&] { return is_wanted() || roused_ != roused; });
            roused = roused_;
            if (!is_wanted()) {
                const int rouser = rouser_;
                lock.unlock();
                leave(rouser);
                comes_soon([&] { return number_ != seen; });
                lock.lock();
                continue;
            }
            seen = number_;
            --wanted_;
            ++active_;
            const Job job = job_;
            lock.unlock();
            leave(job.caller);
            take(job);
            if (--active_ == 0) {
                lock.lock();  // or the caller could miss it between looking and waiting
                done_.notify_one();
                lock.unlock();
            }
            comes_soon([&] { return number_ != seen; });
            lock.lock();
        }
    }

    std::mutex busy_;   // held by the caller whose tasks run
    std::mutex mutex_;  // guards what follows
    std::condition_variable work_, done_;
    Job job_{};
    std::atomic<int64_t> next_{0};
    int wanted_ = 0;
    std::atomic<int> active_{0};
    std::atomic<uint64_t> number_{0};  // of the job
    std::atomic<int> hired_{0};
    uint64_t roused_ = 0;  // how often
    int rouser_ = -1;      // the processor of who did it last
};

Pool& pool() {
    static Pool* const pool = [] {
#if !defined(_WIN32)
        pthread_atfork(nullptr, nullptr, [] { forked.store(true); });
#endif
        return new Pool;  // never destroyed: its threads may outlive static objects
    }();
    return *pool;
}

}  // namespace

void parallel(int threads, int64_t count, void (*task)(const void*, int64_t), const void* context) {
    if (threads > count) threads = static_cast<int>(count);
    if (threads > 1 && !forked.load(std::memory_order_relaxed) && pool().run(threads, {task, context, count, processor()})) return;
    for (int64_t i = 0; i < count; ++i) task(context, i);
}

void rouse() {
    if (!forked.load(std::memory_order_relaxed)) pool().rouse();
}

}  // namespace labelsmooth
