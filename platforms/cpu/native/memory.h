// Aligned memory: long-lived buffers on huge pages, results that take over each other's pages, and scratch of a thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace inferplane {

constexpr int64_t cache_line_bytes = 64;

constexpr int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// Zeroed, 64-byte aligned; 2 MiB aligned and advised for huge pages when it is large. Throws bad_alloc.
void* allocate_pages(int64_t bytes);
void free_pages(void* memory, int64_t bytes);

// Pages for a result: those of a result that nobody needs any more where some are large enough, so that a steady state
// meets no page fault. Not zeroed. `capacity` is what to give back with them.
void* take_pages(int64_t bytes, int64_t* capacity);
void give_back_pages(void* memory, int64_t capacity);

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
