// Python entries of write_kv, qkv_rope_write and attention: shapes are checked here, ids whenever a call runs.
#include "arguments.h"
#include "rope_write.h"
#include "tape.h"

namespace inferplane {
namespace {

using Optional = std::optional<Array>;

// Keys and values of one cell; without v, values are the first value_dim entries of the keys.
CacheShape cache_shape(const Array& k_cache, const Optional& v_cache, int64_t value_dim) {
    k_cache.expect({-1, -1, -1, -1});
    if (v_cache) v_cache->expect(k_cache.element).expect({k_cache.shape[0], k_cache.shape[1], k_cache.shape[2], -1});
    const CacheShape shape{k_cache.shape[0], k_cache.shape[1], k_cache.shape[2], k_cache.shape[3], v_cache ? v_cache->shape[3] : value_dim};
    INFERPLANE_REQUIRE(shape.kv_heads > 0 && shape.block_tokens > 0 && shape.key_dim > 0 && shape.value_dim > 0,
                       k_cache.name() + " is " + k_cache.describe() + "; no size may be 0");
    INFERPLANE_REQUIRE(v_cache || value_dim <= shape.key_dim, k_cache.name() + " is " + k_cache.describe() + "; its keys hold no " +
            std::to_string(value_dim) + " values");
    return shape;
}

// The scales of a cache of codes, or null beside one of `element`.
float* scales_of(const Optional& scale, const Array& cache, Element element) {
    cache.expect(scale ? Element::int8 : element);
    if (!scale) return nullptr;
    return const_cast<float*>(scale->expect({cache.shape[0], cache.shape[1], cache.shape[2], 1}).float32());
}

// The job of writing `k` and `v`. Arguments from `cells` on: k_cache, v_cache, slots, k_scale, v_scale.
WriteJob write_job(const Arguments& a, const Array& k, const Optional& v, int cells) {
    const Array k_cache = a.output(cells, "k_cache"), slots = a.array(cells + 2, "slots");
    const Optional v_cache = a.optional_output(cells + 1, "v_cache");
    const Optional k_scale = a.optional_output(cells + 3, "k_scale"), v_scale = a.optional_output(cells + 4, "v_scale");
    INFERPLANE_REQUIRE(v.has_value() == v_cache.has_value(), k_cache.name() + " goes with v and v_cache, or with neither");
    WriteJob job{};
    job.cache = cache_shape(k_cache, v_cache, 1);
    job.dtype = k.dtype();
    job.tokens = slots.expect({-1}).last();
    job.slots = slots.int32();
    job.k = k.expect({job.tokens, job.cache.kv_heads, job.cache.key_dim}).data;
    job.k_cache = k_cache.data;
    job.k_scale = scales_of(k_scale, k_cache, k.element);
    if (v) {
        job.v = v->expect(k.element).expect({job.tokens, job.cache.kv_heads, job.cache.value_dim}).data;
        job.v_cache = v_cache->data;
        job.v_scale = scales_of(v_scale, *v_cache, k.element);
    }
    return job;
}

void check_slots(const WriteJob& job) {
    const int64_t limit = job.cache.blocks * job.cache.block_tokens;
    for (int64_t i = 0; i < job.tokens; ++i) {
        INFERPLANE_REQUIRE(job.slots[i] >= 0 && job.slots[i] < limit, "write_kv: slots[" + std::to_string(i) + "] is " + std::to_string(job.slots[i]) +
                "; the cache has " + std::to_string(limit) + " slots");
    }
}

PyObject* py_write_kv(const Arguments& a) {
    const WriteJob job = write_job(a, a.array(0, "k"), a.optional_array(1, "v"), 2);
    return launch([job] {
        check_slots(job);
        write_kv(job);
    });
}

PyObject* py_qkv_rope_write(const Arguments& a) {
    const Array q = a.array(0, "q"), k = a.array(1, "k"), v = a.array(2, "v"), out = a.output(6, "out");
    const Array positions = a.array(3, "positions"), table = a.array(4, "table");
    RopeWriteJob job{};
    job.write = write_job(a, k, v, 7);
    q.expect(k.element).expect({job.write.tokens, -1, job.write.cache.key_dim});
    out.expect_like(q);
    job.query = rope_job(q, positions, table, a.flag(5), out.data);
    job.key = rope_job(k, positions, table, a.flag(5), nullptr);
    return launch([job, positions, table] {
        check_slots(job.write);
        check_positions(job.query, positions, table);
        rope_write(job);
    });
}

// Every table entry that a kernel will read: from the first visible key of the row to its last.
void check_rows(const AttentionJob& job) {
    INFERPLANE_REQUIRE(job.starts[0] >= 0 && job.starts[job.rows] <= job.tokens, "attention: starts run from " + std::to_string(job.starts[0]) + " to " +
            std::to_string(job.starts[job.rows]) + "; q has " + std::to_string(job.tokens) + " tokens");
    for (int64_t row = 0; row < job.rows; ++row) {
        const int64_t count = int64_t(job.starts[row + 1]) - job.starts[row], length = job.lengths[row];
        const auto where = [row] { return "attention: row " + std::to_string(row) + " "; };
        INFERPLANE_REQUIRE(count >= 0, where() + "starts after it ends");
        if (count == 0) continue;
        INFERPLANE_REQUIRE(count <= length, where() + "has " + std::to_string(count) + " queries but the length " + std::to_string(length));
        const int64_t first = length - count, visible = job.window && first >= job.window ? first - job.window + 1 : 0;
        const int64_t blocks = (length + job.cache.block_tokens - 1) / job.cache.block_tokens;
        INFERPLANE_REQUIRE(blocks <= job.table_width, where() + "has the length " + std::to_string(length) + ", beyond its table of " +
                std::to_string(job.table_width) + " blocks");
        for (int64_t i = visible / job.cache.block_tokens; i < blocks; ++i) {
            const int32_t block = job.table[row * job.table_width + i];
            INFERPLANE_REQUIRE(block >= 0 && block < job.cache.blocks, where() + "names block " + std::to_string(block) + "; the cache has " +
                    std::to_string(job.cache.blocks));
        }
    }
}

PyObject* py_attention(const Arguments& a) {
    const Array q = a.array(0, "q"), k_cache = a.array(1, "k_cache"), out = a.output(3, "out");
    const Array table = a.array(4, "table"), starts = a.array(5, "starts"), lengths = a.array(6, "lengths");
    const Optional v_cache = a.optional_array(2, "v_cache"), sinks = a.optional_array(10, "sinks"), slopes = a.optional_array(11, "slopes");
    const Optional k_scale = a.optional_array(12, "k_scale"), v_scale = a.optional_array(13, "v_scale");
    AttentionJob job{};
    job.cache = cache_shape(k_cache, v_cache, out.last());
    job.q = q.expect({-1, -1, job.cache.key_dim}).data;
    job.k_cache = k_cache.data;
    job.k_scale = scales_of(k_scale, k_cache, q.element);
    if (v_cache) {
        job.v_cache = v_cache->data;
        job.v_scale = scales_of(v_scale, *v_cache, q.element);
    }
    job.out = out.data;
    job.dtype = q.dtype();
    job.tokens = q.shape[0];
    job.heads = q.shape[1];
    INFERPLANE_REQUIRE(job.heads > 0 && job.heads % job.cache.kv_heads == 0, "attention: " + std::to_string(job.heads) + " heads do not divide into " +
            std::to_string(job.cache.kv_heads) + " key/value heads");
    out.expect(q.element).expect({job.tokens, job.heads, job.cache.value_dim});
    job.rows = lengths.expect({-1}).last();
    job.table = table.expect({job.rows, -1}).int32();
    job.table_width = table.last();
    job.starts = starts.expect({job.rows + 1}).int32();
    job.lengths = lengths.int32();
    job.scale = a.number(7, "scale");
    job.window = a.integer(8, "window");
    job.softcap = float(a.number(9, "softcap"));
    INFERPLANE_REQUIRE(job.window >= 0, "attention: window is negative; 0 means none");
    INFERPLANE_REQUIRE(job.softcap >= 0, "attention: softcap is negative; 0 means none");
    if (sinks) job.sinks = sinks->expect({job.heads}).float32();
    if (slopes) job.slopes = slopes->expect({job.heads}).float32();
    return launch([job] {
        check_rows(job);
        attention(job);
    });
}

}  // namespace

PyMethodDef* attention_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(write_kv, 7, "write_kv(k [tokens, kv_heads, key_dim], v, k_cache [blocks, kv_heads, block_tokens, key_dim], v_cache, slots, k_scale, v_scale)."),
        INFERPLANE_METHOD(qkv_rope_write, 12, "qkv_rope_write(q, k, v, positions, table, interleaved, out, k_cache, v_cache, slots, k_scale, v_scale): out = q rotated; k rotated, v written."),
        INFERPLANE_METHOD(attention, 14, "attention(q [tokens, heads, key_dim], k_cache [blocks, kv_heads, block_tokens, key_dim], v_cache or None, out, table [rows, width], "
                                 "starts [rows + 1], lengths [rows], scale, window, softcap, sinks [heads] or None, slopes [heads] or None, "
                                 "k_scale and v_scale [blocks, kv_heads, block_tokens, 1] or None)."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane
