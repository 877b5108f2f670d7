// Paged, ragged, causal attention with grouped heads, and the write of keys and values into blocks.
//
//   k_cache [blocks, kv_heads, block_tokens, key_dim]      v_cache [blocks, kv_heads, block_tokens, value_dim]
//
// Row r holds the queries starts[r] .. starts[r + 1] - 1, at the last positions of its lengths[r] tokens.
#pragma once

#include "dtype.h"

namespace inferplane {

constexpr int key_tile = 64;     // keys per tile, aligned at absolute positions
constexpr int key_chunk = 1024;  // keys whose sums are made apart and folded in order: what a task may take of a long row
constexpr int query_rows = 96;   // (token, head) pairs that share one packed tile of keys and values, at least
constexpr int query_bytes = 1 << 18;  // what the sums and queries of a task take at most, where that leaves query_rows: a part of L2
constexpr int direct_rows = 8;   // heads of one token that do without packing, but on a matrix unit; no fewer than a tile of linear has rows

struct CacheShape {
    int64_t blocks, kv_heads, block_tokens, key_dim, value_dim;
    int64_t token(int64_t block, int64_t head, int64_t offset) const { return (block * kv_heads + head) * block_tokens + offset; }
};

// k_scale, v_scale [blocks, kv_heads, block_tokens]: given where the caches hold int8 codes, else null.
// v_cache null: values are the first value_dim entries of their keys, and v_scale is null too.
struct AttentionJob {
    const void *q, *k_cache, *v_cache;
    void* out;
    CacheShape cache;
    DType dtype;
    int64_t tokens, heads, rows, table_width;
    const int32_t *table, *starts, *lengths;
    double scale;
    float softcap;         // 0: none
    int64_t window;        // 0: none
    const float *sinks, *slopes;  // [heads] or null
    const float *k_scale, *v_scale;

    int64_t group() const { return heads / cache.kv_heads; }
    int64_t first_position(int64_t row) const { return lengths[row] - (starts[row + 1] - starts[row]); }
    int64_t first_visible(int64_t at) const { return window && at >= window ? at - window + 1 : 0; }
};

// One row's flattened (token, head of the group) pairs [first, last) of `heads` key/value heads: over all chunks of keys;
// or, where `parts` is given, over one of them, whose sums stay there; or (chunk -1) the folding of such sums.
struct AttentionTask {
    int64_t row, kv_head, heads, first, last, chunk;
    float* parts;  // per head, per chunk: SoftmaxSums
};

struct WriteJob {
    const void *k, *v;  // v null: keys only
    void *k_cache, *v_cache;
    CacheShape cache;
    DType dtype;
    int64_t tokens;
    const int32_t* slots;
    float *k_scale, *v_scale;  // as in AttentionJob
};

// The keys that a task walks over, in absolute positions.
struct KeySpan {
    int64_t begin, end;  // begin is the start of a tile
    int64_t first_chunk() const { return begin / key_chunk; }
    int64_t chunks() const { return (end - 1) / key_chunk - first_chunk() + 1; }
};

inline KeySpan key_span(const AttentionJob& job, const AttentionTask& task) {
    const int64_t base = job.first_position(task.row), group = job.group();
    return {job.first_visible(base + task.first / group) / key_tile * key_tile, base + (task.last - 1) / group + 1};
}

// What a block of queries has summed up over some keys. Here, and not beside the kernels: compiled for any processor.
struct SoftmaxSums {
    static constexpr int64_t width = 64, lanes = 16;
    float *out, *total, *peak;  // [panels of 64 dims, rows, 64], [rows, lanes], [rows]
    int64_t rows, panels;

    SoftmaxSums(float* base, int64_t rows, int64_t panels)
        : out(base), total(out + panels * rows * width), peak(total + rows * lanes), rows(rows), panels(panels) {}
    float* row_out(int64_t panel, int64_t row) const { return out + (panel * rows + row) * width; }
    static int64_t floats(int64_t rows, int64_t panels) { return panels * rows * width + rows * lanes + (rows + lanes - 1) / lanes * lanes; }
};

void attention(const AttentionJob& job);
void write_kv(const WriteJob& job);
// Parts of it, on the caller's thread: of tokens first .. last - 1.
void write_tokens(const WriteJob& job, int64_t first, int64_t last);
void prefetch_slots(const WriteJob& job, int64_t first, int64_t last);

}  // namespace inferplane
