// Python entries of linear, write_kv, qkv_rope_write and attention: shapes and ids are checked here, and never again.
#include "arguments.h"
#include "linear.h"
#include "rope_write.h"

namespace inferplane {
namespace {

DType named_dtype(const std::string& name) {
    if (name == "float32") return DType::float32;
    if (name == "bfloat16") return DType::bfloat16;
    if (name == "float16") return DType::float16;
    throw Invalid("dtype '" + name + "' is unknown; known: float32, bfloat16, float16");
}

void expect_packed(const Array& packed, int64_t outputs, int64_t inputs, DType type) {
    const int64_t wanted = packed_bytes(outputs, inputs, type);
    packed.expect(Element::uint8).expect({-1});
    INFERPLANE_REQUIRE(packed.size() == wanted, packed.name() + " holds " + std::to_string(packed.size()) + " bytes; [" + std::to_string(outputs) +
            ", " + std::to_string(inputs) + "] of " + name_of(element_of(type)) + " packs into " + std::to_string(wanted));
    INFERPLANE_REQUIRE(reinterpret_cast<uintptr_t>(packed.data) % cache_line_bytes == 0, packed.name() + " is not aligned to 64 bytes; use allocate()");
}

PyObject* py_allocate(const Arguments& a) { return new_bytes_array(a.integer(0, "bytes")); }

PyObject* py_packed_bytes(const Arguments& a) {
    const int64_t outputs = a.integer(0, "outputs"), inputs = a.integer(1, "inputs");
    INFERPLANE_REQUIRE(outputs > 0 && inputs > 0, "packed_bytes: outputs and inputs must be at least 1");
    return PyLong_FromLongLong(packed_bytes(outputs, inputs, named_dtype(a.text(2, "dtype"))));
}

PyObject* py_pack_part(const Arguments& a) {
    const Array packed = a.output(0, "packed"), weight = a.array(3, "weight");
    const int64_t outputs = a.integer(1, "outputs"), first = a.integer(2, "first");
    weight.expect({-1, -1});
    const int64_t rows = weight.shape[0], inputs = weight.shape[1];
    INFERPLANE_REQUIRE(outputs > 0 && inputs > 0, "pack_part: outputs and inputs must be at least 1");
    INFERPLANE_REQUIRE(first >= 0 && rows <= outputs - first, "pack_part: rows " + std::to_string(first) + " .. " + std::to_string(first + rows) +
            " do not fit into " + std::to_string(outputs) + " outputs");
    expect_packed(packed, outputs, inputs, weight.dtype());
    {
        WithoutGil free;
        pack_linear(packed.data, first, weight.data, rows, inputs, weight.dtype());
    }
    Py_RETURN_NONE;
}

PyObject* py_pack_linear(const Arguments& a) {
    const std::vector<Array> parts = a.arrays(0, "parts");
    INFERPLANE_REQUIRE(!parts.empty(), "pack_linear: no parts");
    const DType type = parts[0].dtype();
    const int64_t inputs = parts[0].expect({-1, -1}).last();
    int64_t outputs = 0;
    for (const Array& part : parts) outputs += part.expect(element_of(type)).expect({-1, inputs}).shape[0];
    INFERPLANE_REQUIRE(outputs > 0 && inputs > 0, "pack_linear: outputs and inputs must be at least 1");
    void* memory = nullptr;
    PyObject* packed = new_bytes_array(packed_bytes(outputs, inputs, type), &memory);
    {
        WithoutGil free;
        int64_t first = 0;
        for (const Array& part : parts) {
            pack_linear(memory, first, part.data, part.shape[0], inputs, type);
            first += part.shape[0];
        }
    }
    return packed;
}

PyObject* py_linear(const Arguments& a) {
    const Array x = a.array(0, "x"), packed = a.array(1, "packed");
    const std::vector<Array> outs = a.outputs(2, "outs");
    const std::vector<std::optional<Array>> biases = a.optional_arrays(3, "biases", outs.size());
    x.expect({-1, -1});
    INFERPLANE_REQUIRE(!outs.empty(), "linear: no outputs");
    LinearJob job{};
    job.x = x.data;
    job.packed = packed.data;
    job.rows = x.shape[0];
    job.inputs = x.shape[1];
    job.dtype = x.dtype();
    job.out_dtype = outs[0].dtype();
    INFERPLANE_REQUIRE(job.out_dtype == job.dtype || job.out_dtype == DType::float32, outs[0].name() + " is " + outs[0].describe() + "; expected " +
            name_of(x.element) + " or float32");
    for (size_t i = 0; i < outs.size(); ++i) {
        outs[i].expect(outs[0].element).expect({job.rows, -1});
        const int64_t width = outs[i].last();
        if (biases[i]) biases[i]->expect(x.element).expect({width});
        job.outs.push_back({outs[i].data, width, biases[i] ? biases[i]->data : nullptr});
        job.outputs += width;
    }
    INFERPLANE_REQUIRE(job.inputs > 0 && job.outputs > 0, "linear: inputs and outputs must be at least 1");
    expect_packed(packed, job.outputs, job.inputs, job.dtype);
    {
        WithoutGil free;
        linear(job);
    }
    Py_RETURN_NONE;
}

CacheShape cache_shape(const Array& k_cache, const Array& v_cache) {
    k_cache.dtype();
    k_cache.expect({-1, -1, -1, -1});
    v_cache.expect(k_cache.element).expect({k_cache.shape[0], k_cache.shape[1], k_cache.shape[2], -1});
    const CacheShape shape{k_cache.shape[0], k_cache.shape[1], k_cache.shape[2], k_cache.shape[3], v_cache.shape[3]};
    INFERPLANE_REQUIRE(shape.kv_heads > 0 && shape.block_tokens > 0 && shape.key_dim > 0 && shape.value_dim > 0, k_cache.name() + " is " + k_cache.describe() + "; no size may be 0");
    return shape;
}

// The job of writing `k` and `v`, with every slot checked.
WriteJob write_job(const Array& k, const Array& v, const Array& k_cache, const Array& v_cache, const Array& slots) {
    WriteJob job{k.data, v.data, k_cache.data, v_cache.data, cache_shape(k_cache, v_cache), k_cache.dtype(), slots.expect({-1}).last(), slots.int32(), nullptr, nullptr};
    k.expect(k_cache.element).expect({job.tokens, job.cache.kv_heads, job.cache.key_dim});
    v.expect(k_cache.element).expect({job.tokens, job.cache.kv_heads, job.cache.value_dim});
    const int64_t limit = job.cache.blocks * job.cache.block_tokens;
    for (int64_t i = 0; i < job.tokens; ++i) {
        INFERPLANE_REQUIRE(job.slots[i] >= 0 && job.slots[i] < limit, slots.name() + "[" + std::to_string(i) + "] is " + std::to_string(job.slots[i]) +
                "; the cache has " + std::to_string(limit) + " slots");
    }
    return job;
}

PyObject* py_write_kv(const Arguments& a) {
    const Array k = a.array(0, "k"), v = a.array(1, "v"), k_cache = a.output(2, "k_cache"), v_cache = a.output(3, "v_cache");
    const WriteJob job = write_job(k, v, k_cache, v_cache, a.array(4, "slots"));
    {
        WithoutGil free;
        write_kv(job);
    }
    Py_RETURN_NONE;
}

PyObject* py_qkv_rope_write(const Arguments& a) {
    const Array q = a.array(0, "q"), k = a.array(1, "k"), v = a.array(2, "v"), out = a.output(6, "out");
    const Array positions = a.array(3, "positions"), table = a.array(4, "table");
    const Array k_cache = a.output(7, "k_cache"), v_cache = a.output(8, "v_cache");
    RopeWriteJob job{};
    job.write = write_job(k, v, k_cache, v_cache, a.array(9, "slots"));
    q.expect(k_cache.element).expect({job.write.tokens, -1, job.write.cache.key_dim});
    out.expect_like(q);
    job.query = rope_job(q, positions, table, a.flag(5), out.data);
    job.key = rope_job(k, positions, table, a.flag(5), nullptr);
    {
        WithoutGil free;
        rope_write(job);
    }
    Py_RETURN_NONE;
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
    const Array q = a.array(0, "q"), k_cache = a.array(1, "k_cache"), v_cache = a.array(2, "v_cache"), out = a.output(3, "out");
    const Array table = a.array(4, "table"), starts = a.array(5, "starts"), lengths = a.array(6, "lengths");
    const std::optional<Array> sinks = a.optional_array(10, "sinks");
    AttentionJob job{};
    job.cache = cache_shape(k_cache, v_cache);
    q.expect(k_cache.element).expect({-1, -1, job.cache.key_dim});
    job.q = q.data;
    job.k_cache = k_cache.data;
    job.v_cache = v_cache.data;
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
    job.scale = float(a.number(7, "scale"));
    job.window = a.integer(8, "window");
    job.softcap = float(a.number(9, "softcap"));
    INFERPLANE_REQUIRE(job.window >= 0, "attention: window is negative; 0 means none");
    INFERPLANE_REQUIRE(job.softcap >= 0, "attention: softcap is negative; 0 means none");
    if (sinks) job.sinks = sinks->expect({job.heads}).float32();
    check_rows(job);
    {
        WithoutGil free;
        attention(job);
    }
    Py_RETURN_NONE;
}

}  // namespace

PyMethodDef* matrix_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(allocate, 1, "allocate(bytes) -> uint8 [bytes], zeroed, 64-byte aligned, on huge pages."),
        INFERPLANE_METHOD(packed_bytes, 3, "packed_bytes(outputs, inputs, dtype) -> bytes of the packed weight."),
        INFERPLANE_METHOD(pack_part, 4, "pack_part(packed, outputs, first, weight [rows, inputs]): rows first .. of the packed weight."),
        INFERPLANE_METHOD(pack_linear, 1, "pack_linear(parts of [rows, inputs]) -> packed uint8; parts follow each other as outputs."),
        INFERPLANE_METHOD(linear, 4, "linear(x [tokens, inputs], packed, outs, biases): outs[i] [tokens, width] = columns of x W^T + bias."),
        INFERPLANE_METHOD(write_kv, 5, "write_kv(k [tokens, kv_heads, key_dim], v, k_cache [blocks, kv_heads, block_tokens, key_dim], v_cache, slots)."),
        INFERPLANE_METHOD(qkv_rope_write, 10, "qkv_rope_write(q, k, v, positions, table, interleaved, out, k_cache, v_cache, slots): out = q rotated; k rotated, v written."),
        INFERPLANE_METHOD(attention, 11, "attention(q, k_cache, v_cache, out, table, starts, lengths, scale, window, softcap, sinks)."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane
