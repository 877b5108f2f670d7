// Aligned memory: long-lived buffers on huge pages, and scratch that each thread keeps and grows.
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

}  // namespace inferplane
