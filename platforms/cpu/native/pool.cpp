// Workers spin for a while after each loop, then park: 1 us to start a loop while warm, no CPU while idle.
#include "pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <thread>

namespace inferplane {
namespace {

constexpr auto spin_time = std::chrono::microseconds(300);  // longer than the host takes from one step of decoding to the next
constexpr int task_bits = 32;

inline void pause_core() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int allowed_cores() {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
#endif
    const int cores = int(std::thread::hardware_concurrency());
    return cores > 0 ? cores : 1;
}

// The job is three relaxed atomics guarded by `ticket` = generation << 32 | next task. A worker that
// claims a task by compare-and-swap has proof that the job it read is still the current one.
struct Pool {
    std::mutex one_loop;
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> tasks{0}, finished{0};
    std::atomic<TaskFunction> function{nullptr};
    std::atomic<void*> context{nullptr};

    std::mutex parking;
    std::condition_variable wake;
    std::atomic<int> parked{0}, wanted{1};
    int running = 1;  // threads that exist, the caller's among them; those beyond `wanted` stay parked

    void run(int64_t count, TaskFunction body, void* argument);
    void resize(int count);
    void work(int index);
    void claim_and_run();
    void rouse();
    bool called(int index, uint64_t generation) const {
        return index < wanted.load() && ticket.load(std::memory_order_acquire) >> task_bits != generation;
    }
};

std::atomic<Pool*> shared_pool{nullptr};
std::mutex creation;

// A forked child has none of the threads: it starts over, and the parent's pool is left alone.
void forget_pool() { shared_pool.store(nullptr); }

Pool& the_pool() {
    if (Pool* pool = shared_pool.load(std::memory_order_acquire)) return *pool;
    std::lock_guard<std::mutex> lock(creation);
    if (!shared_pool.load()) {
        static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
        (void)registered;
        Pool* pool = new Pool;  // never freed: detached workers may outlive static destructors
        pool->resize(allowed_cores());
        shared_pool.store(pool);
    }
    return *shared_pool.load();
}

void Pool::claim_and_run() {
    uint64_t seen = ticket.load(std::memory_order_acquire);
    const uint64_t generation = seen >> task_bits;
    const int64_t count = tasks.load(std::memory_order_relaxed);
    const TaskFunction body = function.load(std::memory_order_relaxed);
    void* argument = context.load(std::memory_order_relaxed);
    while (seen >> task_bits == generation && int64_t(seen & 0xffffffff) < count) {
        if (!ticket.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
        body(argument, int64_t(seen & 0xffffffff));
        finished.fetch_add(1, std::memory_order_acq_rel);
        seen = ticket.load(std::memory_order_acquire);
    }
}

void Pool::work(int index) {
    for (uint64_t generation = 0;;) {
        const auto deadline = std::chrono::steady_clock::now() + spin_time;
        for (int i = 1; !called(index, generation); ++i) {
            pause_core();
            if (i % 32 == 0 && std::chrono::steady_clock::now() > deadline) break;
        }
        if (!called(index, generation)) {
            std::unique_lock<std::mutex> lock(parking);
            parked.fetch_add(1);
            wake.wait(lock, [&] { return called(index, generation); });
            parked.fetch_sub(1);
        }
        generation = ticket.load(std::memory_order_acquire) >> task_bits;
        claim_and_run();
    }
}

void Pool::rouse() {
    if (parked.load() == 0) return;
    { std::lock_guard<std::mutex> lock(parking); }
    wake.notify_all();
}

void Pool::run(int64_t count, TaskFunction body, void* argument) {
    std::lock_guard<std::mutex> lock(one_loop);
    // An exhausted ticket first: no worker can claim while the job's fields change.
    const uint64_t generation = (ticket.load() >> task_bits) + 1;
    finished.store(0);
    ticket.store(generation << task_bits | 0xffffffff);
    tasks.store(count);
    function.store(body);
    context.store(argument);
    ticket.store((generation + 1) << task_bits);
    rouse();
    claim_and_run();
    // A worker may be descheduled on a busy machine: after a while give it our core.
    for (int i = 0; finished.load(std::memory_order_acquire) < count; ++i) {
        if (i < 4096) pause_core();
        else sched_yield();
    }
}

void Pool::resize(int count) {
    std::lock_guard<std::mutex> lock(one_loop);
    wanted.store(count);
    for (; running < count; ++running) std::thread(&Pool::work, this, running).detach();
}

}  // namespace

int thread_count() { return the_pool().wanted.load(std::memory_order_relaxed); }

void set_thread_count(int count) { the_pool().resize(count > 0 ? count : allowed_cores()); }

void run_tasks(int64_t tasks, TaskFunction function, void* context) {
    if (tasks == 1 || thread_count() == 1) {
        for (int64_t task = 0; task < tasks; ++task) function(context, task);
    } else if (tasks > 1) {
        the_pool().run(tasks, function, context);
    }
}

}  // namespace inferplane
