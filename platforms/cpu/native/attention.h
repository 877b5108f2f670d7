// Paged, ragged, causal attention with grouped heads, and the write of keys and values into blocks.
//
//   k_cache [blocks, kv_heads, block_tokens, key_dim]      v_cache [blocks, kv_heads, block_tokens, value_dim]
//
// Row r holds the queries starts[r] .. starts[r + 1] - 1, at the last positions of its lengths[r] tokens.
#pragma once

#include "dtype.h"

namespace inferplane {

constexpr int key_tile = 64;    // keys per tile, aligned at absolute positions
constexpr int query_rows = 96;  // (token, head) pairs that share one packed tile of keys and values

struct CacheShape {
    int64_t blocks, kv_heads, block_tokens, key_dim, value_dim;
    int64_t token(int64_t block, int64_t head, int64_t offset) const { return (block * kv_heads + head) * block_tokens + offset; }
};

struct AttentionJob {
    const void *q, *k_cache, *v_cache;
    void* out;
    CacheShape cache;
    DType dtype;
    int64_t tokens, heads, rows, table_width;
    const int32_t *table, *starts, *lengths;
    float scale, softcap;  // softcap 0: none
    int64_t window;        // 0: none
    const float* sinks;    // [heads] or null
};

// One row's flattened (token, head of the group) pairs [first, last) of one key/value head.
struct AttentionTask {
    int64_t row, kv_head, first, last;
};

struct WriteJob {
    const void *k, *v;
    void *k_cache, *v_cache;
    CacheShape cache;
    DType dtype;
    int64_t tokens;
    const int32_t* slots;
};

void attention(const AttentionJob& job);
void write_kv(const WriteJob& job);
// Parts of it, on the caller's thread: of tokens first .. last - 1.
void write_tokens(const WriteJob& job, int64_t first, int64_t last);
void prefetch_slots(const WriteJob& job, int64_t first, int64_t last);

}  // namespace inferplane
