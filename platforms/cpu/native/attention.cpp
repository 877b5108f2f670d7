// Shares attention out over rows, key/value heads and blocks of queries; writes keys and values into their slots.
#include "attention.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

constexpr int64_t small_write = 1 << 15;  // bytes that one thread copies sooner than two would

// The last block of a row's queries sees most keys: the longest tasks come first.
std::vector<AttentionTask> list_tasks(const AttentionJob& job) {
    const int64_t group = job.heads / job.cache.kv_heads;
    std::vector<AttentionTask> tasks;
    for (int64_t row = 0; row < job.rows; ++row) {
        const int64_t pairs = (job.starts[row + 1] - job.starts[row]) * group;
        for (int64_t block = (pairs + query_rows - 1) / query_rows - 1; block >= 0; --block) {
            for (int64_t head = 0; head < job.cache.kv_heads; ++head) {
                tasks.push_back({row, head, block * query_rows, std::min(pairs, (block + 1) * query_rows)});
            }
        }
    }
    return tasks;
}

void clear_tokens(const AttentionJob& job, int64_t first, int64_t last) {
    const int64_t token_bytes = job.heads * job.cache.value_dim * item_bytes(job.dtype);
    if (first < last) std::memset(static_cast<char*>(job.out) + first * token_bytes, 0, (last - first) * token_bytes);
}

}  // namespace

void attention(const AttentionJob& job) {
    const auto attend = active_path().attend[int(job.dtype)];
    const std::vector<AttentionTask> tasks = list_tasks(job);
    // Padding tokens belong to no row: zeros, so that nothing downstream meets old memory.
    clear_tokens(job, 0, job.starts[0]);
    clear_tokens(job, job.starts[job.rows], job.tokens);
    parallel(int64_t(tasks.size()), [&](int64_t i) { attend(job, tasks[i]); });
}

void prefetch_slots(const WriteJob& job, int64_t first, int64_t last) {
    const CacheShape& cache = job.cache;
    const int64_t key_bytes = cache.key_dim * item_bytes(job.dtype), value_bytes = cache.value_dim * item_bytes(job.dtype);
    const auto fetch = [](const void* cells, int64_t start, int64_t bytes) {
        for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(cells) + start + at, 1);
    };
    for (int64_t token = first; token < last; ++token) {
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
            const int64_t to = cache.token(job.slots[token] / cache.block_tokens, head, job.slots[token] % cache.block_tokens);
            fetch(job.k_cache, to * key_bytes, key_bytes);
            fetch(job.v_cache, to * value_bytes, value_bytes);
        }
    }
}

void write_tokens(const WriteJob& job, int64_t first, int64_t last) {
    const CacheShape& cache = job.cache;
    const int64_t key_bytes = cache.key_dim * item_bytes(job.dtype), value_bytes = cache.value_dim * item_bytes(job.dtype);
    for (int64_t token = first; token < last; ++token) {
        const int64_t block = job.slots[token] / cache.block_tokens, offset = job.slots[token] % cache.block_tokens;
        if (block == 0) continue;  // padding: nobody reads the null block
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
            const int64_t to = cache.token(block, head, offset), from = token * cache.kv_heads + head;
            std::memcpy(static_cast<char*>(job.k_cache) + to * key_bytes, static_cast<const char*>(job.k) + from * key_bytes, key_bytes);
            std::memcpy(static_cast<char*>(job.v_cache) + to * value_bytes, static_cast<const char*>(job.v) + from * value_bytes,
                        value_bytes);
        }
    }
}

void write_kv(const WriteJob& job) {
    const int64_t token_bytes = job.cache.kv_heads * (job.cache.key_dim + job.cache.value_dim) * item_bytes(job.dtype);
    parallel_ranges(job.tokens, std::max<int64_t>(1, small_write / std::max<int64_t>(1, token_bytes)),
                    [&](int64_t first, int64_t last) { write_tokens(job, first, last); });
}

}  // namespace inferplane
