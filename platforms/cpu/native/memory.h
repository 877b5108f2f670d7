// Aligned memory: long-lived buffers on huge pages, results that take over each other's pages, and scratch of a thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace inferplane {

constexpr int64_t cache_line_bytes = 64;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Whether lines that are read once are best fetched past the caches. AMD's processors do so at the full bandwidth, and spare the
// caches; Intel's keep such lines in the few buffers of the L1 cache, at a third of it.
extern const bool fetches_past_caches;

// Zeroed, 64-byte aligned; 2 MiB aligned and advised for huge pages when it is large. Throws bad_alloc.
void* allocate_pages(int64_t bytes);
void free_pages(void* memory, int64_t bytes);

struct Pages {
    void* memory;
    int64_t capacity;
};

// Pages of results that nobody needs any more, for results to come, so that a steady state meets no page fault.
// Beyond most_bytes the oldest go back to the system.
class IdlePages {
  public:
    explicit IdlePages(int64_t most_bytes) : most_bytes_(most_bytes) {}
    ~IdlePages();
    Pages take(int64_t bytes);  // not zeroed
    void give_back(Pages pages);

  private:
    Pages remove(size_t i);

    const int64_t most_bytes_;
    std::mutex lock_;
    std::vector<Pages> pages_;  // the oldest first
    int64_t bytes_ = 0;
};

// Those of steps that are not recorded.
const std::shared_ptr<IdlePages>& result_pages();

// A buffer that only grows, so that a steady state allocates nothing.
class Scratch {
  public:
    ~Scratch();
    template <class T> T* get(int64_t count) { return static_cast<T*>(reserve(count * sizeof(T))); }

  private:
    void* reserve(int64_t bytes);

    void* memory_ = nullptr;
    int64_t bytes_ = 0;
};

// Lays arrays out one after another, each on its own cache line; without a base, only counts the bytes.
class Carver {
  public:
    explicit Carver(char* base) : base_(base) {}
    template <class Item> void take(Item*& array, int64_t count) {
        array = base_ ? reinterpret_cast<Item*>(base_ + used_) : nullptr;
        used_ += round_up(count * int64_t(sizeof(Item)), cache_line_bytes);
    }
    int64_t used() const { return used_; }

  private:
    char* base_;
    int64_t used_ = 0;
};

}  // namespace inferplane
