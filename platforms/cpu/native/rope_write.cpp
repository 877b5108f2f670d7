// Shares tokens out; the slots of the next few are fetched while their keys are turned.
#include "rope_write.h"

#include <algorithm>

#include "memory.h"
#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t together = 4;          // tokens whose slots are fetched at once
constexpr int64_t small_turn = 1 << 13;  // elements that one thread turns sooner than two would

RopeJob of_tokens(const RopeJob& job, int64_t first, int64_t count, void* out) {
    RopeJob part = job;
    part.x = static_cast<const char*>(job.x) + first * job.heads * job.head_dim * item_bytes(job.dtype);
    part.out = out;
    part.positions = job.positions + first;
    part.tokens = count;
    return part;
}

}  // namespace

void rope_write(const RopeWriteJob& job) {
    const auto turn = active_path().rope[int(job.query.dtype)];
    const int64_t item = item_bytes(job.query.dtype), width = job.query.heads * job.query.head_dim;
    const int64_t key_width = job.key.heads * job.key.head_dim, value_width = job.write.cache.kv_heads * job.write.cache.value_dim;
    const int64_t grain = std::max<int64_t>(1, small_turn / std::max<int64_t>(1, width + key_width));
    parallel_ranges(job.query.tokens, grain, [&](int64_t first, int64_t last) {
        static thread_local Scratch scratch;
        char* const keys = scratch.get<char>(together * key_width * item);
        for (int64_t start = first; start < last; start += together) {
            const int64_t count = std::min(together, last - start);
            prefetch_slots(job.write, start, start + count);
            turn(of_tokens(job.query, start, count, static_cast<char*>(job.query.out) + start * width * item), 0, count);
            turn(of_tokens(job.key, start, count, keys), 0, count);
            WriteJob write = job.write;
            write.k = keys;
            write.v = static_cast<const char*>(job.write.v) + start * value_width * item;
            write.slots = job.write.slots + start;
            write_tokens(write, 0, count);
        }
    });
}

}  // namespace inferplane
