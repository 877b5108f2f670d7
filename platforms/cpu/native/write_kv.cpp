// Writes keys and values into their slots, as they are or as int8 codes with a scale for each token and head.
#include <algorithm>
#include <cmath>
#include <limits>

#include "attention.h"
#include "pool.h"

// A product fused with what follows would be rounded once where the definition rounds twice.
#pragma GCC optimize("fp-contract=off")

namespace inferplane {
namespace {

constexpr int64_t small_write = 1 << 15;  // bytes that one thread copies sooner than two would
constexpr float largest_code = 127.0f;

// One head's row of a token: scale = largest magnitude / 127, code = x * (127 / largest magnitude), to the nearest even.
template <class T> void write_codes(const T* from, int64_t dim, int8_t* codes, float* scale) {
    float largest = 0;
    bool finite = true;
    for (int64_t d = 0; d < dim; ++d) {
        const float magnitude = std::fabs(to_float(from[d]));
        finite &= magnitude <= std::numeric_limits<float>::max();
        largest = magnitude > largest ? magnitude : largest;
    }
    *scale = finite ? largest / largest_code : std::numeric_limits<float>::quiet_NaN();
    float inverse = largest_code / largest;
    if (!finite || !(inverse <= std::numeric_limits<float>::max())) inverse = 0;
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits below one
    for (int64_t d = 0; d < dim; ++d) {
        const float product = to_float(from[d]) * inverse;
        codes[d] = finite ? int8_t((product + magic) - magic) : 0;
    }
}

// A row of keys or values [dim] into the cache's row `to`.
void write_row(const WriteJob& job, const void* from, int64_t row, int64_t dim, void* cells, float* scales, int64_t to) {
    const int64_t bytes = dim * item_bytes(job.dtype);
    const char* source = static_cast<const char*>(from) + row * bytes;
    if (!scales) {
        std::memcpy(static_cast<char*>(cells) + to * bytes, source, bytes);
        return;
    }
    int8_t* codes = static_cast<int8_t*>(cells) + to * dim;
    if (job.dtype == DType::float32) write_codes(reinterpret_cast<const float*>(source), dim, codes, scales + to);
    if (job.dtype == DType::bfloat16) write_codes(reinterpret_cast<const bf16*>(source), dim, codes, scales + to);
    if (job.dtype == DType::float16) write_codes(reinterpret_cast<const f16*>(source), dim, codes, scales + to);
}

}  // namespace

void prefetch_slots(const WriteJob& job, int64_t first, int64_t last) {
    const CacheShape& cache = job.cache;
    const int64_t item = job.k_scale ? 1 : item_bytes(job.dtype);
    const int64_t key_bytes = cache.key_dim * item, value_bytes = job.v ? cache.value_dim * item : 0;
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
    for (int64_t token = first; token < last; ++token) {
        const int64_t block = job.slots[token] / cache.block_tokens, offset = job.slots[token] % cache.block_tokens;
        if (block == 0) continue;  // padding: nobody reads the null block
        for (int64_t head = 0; head < cache.kv_heads; ++head) {
            const int64_t to = cache.token(block, head, offset), from = token * cache.kv_heads + head;
            write_row(job, job.k, from, cache.key_dim, job.k_cache, job.k_scale, to);
            if (job.v) write_row(job, job.v, from, cache.value_dim, job.v_cache, job.v_scale, to);
        }
    }
}

void write_kv(const WriteJob& job) {
    const int64_t token_bytes = job.cache.kv_heads * (job.cache.key_dim + job.cache.value_dim) * item_bytes(job.dtype);
    parallel_ranges(job.tokens, std::max<int64_t>(1, small_write / std::max<int64_t>(1, token_bytes)),
                    [&](int64_t first, int64_t last) { write_tokens(job, first, last); });
}

}  // namespace inferplane
