// Python entries of results, norms, rotary embedding, activations, arithmetic, gathers and sampling.
#include "arguments.h"
#include "rows.h"
#include "sample.h"
#include "tape.h"

namespace inferplane {
namespace {

// A weight of the rows' own type, or in float32.
const Array& expect_weight(const Array& weight, const Array& x) {
    weight.expect({x.last()});
    return weight.element == Element::float32 ? weight : weight.expect(x.element);
}

NormJob norm_job(const Array& x, const Array& weight, double epsilon, const Array& out) {
    INFERPLANE_REQUIRE(x.last() > 0, x.name() + " is " + x.describe() + "; expected [..., size]");
    out.expect_like(x);
    NormJob job{};
    job.x = x.data;
    job.weight = expect_weight(weight, x).data;
    job.weight_dtype = weight.dtype();
    job.dtype = x.dtype();
    job.size = x.last();
    job.rows = x.size() / job.size;
    job.epsilon = float(epsilon);
    job.out = out.data;
    return job;
}

PyObject* py_empty(const Arguments& a) { return new_result(a.object(0), a.object(1)); }

PyObject* py_rms_norm(const Arguments& a) {
    const Array x = a.array(0, "x"), weight = a.array(1, "weight"), out = a.output(4, "out");
    NormJob job = norm_job(x, weight, a.number(2, "epsilon"), out);
    job.offset = float(a.number(3, "offset"));
    return launch([job] { rms_norm(job); });
}

PyObject* py_add_rms_norm(const Arguments& a) {
    const Array x = a.array(0, "x"), residual = a.array(1, "residual"), weight = a.array(2, "weight");
    const Array out = a.output(5, "out"), sum = a.output(6, "sum");
    NormJob job = norm_job(x, weight, a.number(3, "epsilon"), out);
    job.offset = float(a.number(4, "offset"));
    job.residual = residual.expect_like(x).data;
    job.sum = sum.expect_like(x).data;
    INFERPLANE_REQUIRE(job.sum != job.out, "add_rms_norm: out and sum are the same array");
    return launch([job] { rms_norm(job); });
}

PyObject* py_layer_norm(const Arguments& a) {
    const Array x = a.array(0, "x"), weight = a.array(1, "weight"), out = a.output(4, "out");
    const std::optional<Array> bias = a.optional_array(2, "bias");
    NormJob job = norm_job(x, weight, a.number(3, "epsilon"), out);
    if (bias) job.bias = bias->expect_like(weight).data;
    return launch([job] { layer_norm(job); });
}

PyObject* py_rope(const Arguments& a) {
    const Array x = a.array(0, "x"), out = a.output(4, "out");
    const Array positions = a.array(1, "positions"), table = a.array(2, "table");
    const RopeJob job = rope_job(x, positions, table, a.flag(3), out.expect_like(x).data);
    return launch([job, positions, table] {
        check_positions(job, positions, table);
        rope(job);
    });
}

PyObject* activate(const Array& gate, const Array* up, const std::string& kind, const Array& out) {
    out.expect_like(gate);
    if (up) up->expect_like(gate);
    const ActivationJob job{gate.data, up ? up->data : nullptr, out.data, gate.size(), named_activation(kind), gate.dtype()};
    return launch([job] { activation(job); });
}

PyObject* py_activation(const Arguments& a) { return activate(a.array(0, "x"), nullptr, a.text(1, "kind"), a.output(2, "out")); }

PyObject* py_gated_activation(const Arguments& a) {
    const Array up = a.array(1, "up");
    return activate(a.array(0, "gate"), &up, a.text(2, "kind"), a.output(3, "out"));
}

PyObject* combine(const Arguments& arguments, Arithmetic kind) {
    const Array a = arguments.array(0, "a"), b = arguments.array(1, "b"), out = arguments.output(2, "out");
    b.expect_like(a);
    out.expect_like(a);
    const ArithmeticJob job{a.data, b.data, out.data, a.size(), 0.0f, kind, a.dtype()};
    return launch([job] { arithmetic(job); });
}

PyObject* py_add(const Arguments& a) { return combine(a, Arithmetic::add); }
PyObject* py_multiply(const Arguments& a) { return combine(a, Arithmetic::multiply); }

PyObject* py_scale(const Arguments& arguments) {
    const Array a = arguments.array(0, "x"), out = arguments.output(2, "out");
    out.expect_like(a);
    const ArithmeticJob job{a.data, nullptr, out.data, a.size(), float(arguments.number(1, "factor")), Arithmetic::multiply, a.dtype()};
    return launch([job] { scale(job); });
}

PyObject* py_take_rows(const Arguments& a) {
    const Array from = a.array(0, "table"), rows = a.array(1, "rows"), out = a.output(2, "out");
    from.expect({-1, -1});
    const GatherJob job{from.data, out.data, rows.expect({-1}).int32(), rows.last(), from.last() * item_bytes(from.dtype())};
    out.expect(from.element).expect({job.count, from.last()});
    return launch([job, there = from.shape[0]] {
        for (int64_t i = 0; i < job.count; ++i) {
            INFERPLANE_REQUIRE(job.rows[i] >= 0 && job.rows[i] < there, "take_rows: rows[" + std::to_string(i) + "] is " + std::to_string(job.rows[i]) +
                    "; there are " + std::to_string(there));
        }
        gather_rows(job);
    });
}

const Array& expect_logits(const Array& logits) {
    logits.expect(Element::float32).expect({-1, -1});
    INFERPLANE_REQUIRE(logits.last() > 0 && logits.last() <= INT32_MAX, logits.name() + " is " + logits.describe() + "; expected at least one token");
    return logits;
}

// Ids of slots, each below `count`; `least` is 0, or -1 where that means none.
void check_slots(const Array& slots, int64_t least, int64_t count) {
    for (int64_t i = 0; i < slots.last(); ++i) {
        const int32_t slot = slots.int32()[i];
        INFERPLANE_REQUIRE(slot >= least && slot < count, slots.name() + "[" + std::to_string(i) + "] is " + std::to_string(slot) + "; there are " +
                std::to_string(count) + " slots");
    }
}

PyObject* py_derive(const Arguments& a) {
    const Array tokens = a.array(0, "tokens"), source = a.array(1, "source"), last = a.array(2, "last_token"), out = a.output(3, "out");
    const int32_t *literal = tokens.expect({-1}).int32(), *slots = source.expect_like(tokens).int32(), *kept = last.expect({-1}).int32();
    int32_t* const to = const_cast<int32_t*>(out.expect_like(tokens).int32());
    return launch([=] {
        check_slots(source, -1, last.last());
        for (int64_t i = 0; i < tokens.last(); ++i) to[i] = slots[i] < 0 ? literal[i] : kept[slots[i]];
    });
}

PyObject* py_keep(const Arguments& a) {
    const Array tokens = a.array(0, "tokens"), slots = a.array(1, "slots"), last = a.output(2, "last_token");
    const int32_t *drawn = tokens.expect({-1}).int32(), *places = slots.expect_like(tokens).int32();
    int32_t* const kept = const_cast<int32_t*>(last.expect({-1}).int32());
    return launch([=] {
        check_slots(slots, 0, last.last());
        for (int64_t i = 0; i < tokens.last(); ++i) kept[places[i]] = drawn[i];
    });
}

void check_draws(const SampleJob& job) {
    for (int64_t i = 0; i < job.samples; ++i) {
        const bool sound = job.temperature[i] >= 0 && job.top_p[i] >= 0 && job.min_p[i] <= 1;
        INFERPLANE_REQUIRE(sound, "sample: row " + std::to_string(i) + " has temperature " + std::to_string(job.temperature[i]) + ", top_p " +
                std::to_string(job.top_p[i]) + ", min_p " + std::to_string(job.min_p[i]) + "; expected temperature >= 0, top_p >= 0, min_p <= 1");
    }
}

PyObject* py_sample(const Arguments& a) {
    const Array logits = a.array(0, "logits"), tokens = a.output(9, "tokens");
    const int64_t samples = expect_logits(logits).shape[0];
    const auto floats = [&](int i, const char* name) { return a.array(i, name).expect({samples}).float32(); };
    const auto words = [&](int i, const char* name) { return reinterpret_cast<const uint32_t*>(a.array(i, name).expect({samples}).int32()); };
    SampleJob job{};
    job.logits = logits.float32();
    job.samples = samples;
    job.vocab = logits.last();
    job.temperature = floats(1, "temperature");
    job.top_k = a.array(2, "top_k").expect({samples}).int32();
    job.top_p = floats(3, "top_p");
    job.min_p = floats(4, "min_p");
    job.seed_low = words(5, "seed_low");
    job.seed_high = words(6, "seed_high");
    job.index = words(7, "index");
    job.position = words(8, "position");
    job.tokens = const_cast<int32_t*>(tokens.expect({samples}).int32());
    return launch([job] {
        check_draws(job);
        sample(job);
    });
}

PyObject* score(const Array& logits, const Array* tokens, const Array& out) {
    ScoreJob job{expect_logits(logits).float32(), logits.shape[0], logits.last(), nullptr, nullptr};
    if (tokens) job.tokens = tokens->expect({job.samples}).int32();
    job.out = const_cast<float*>(out.expect({job.samples}).float32());
    return launch([job] {
        for (int64_t i = 0; job.tokens && i < job.samples; ++i) {
            INFERPLANE_REQUIRE(job.tokens[i] >= 0 && job.tokens[i] < job.vocab, "logprobs: tokens[" + std::to_string(i) + "] is " +
                    std::to_string(job.tokens[i]) + "; the vocabulary has " + std::to_string(job.vocab));
        }
        logprobs(job);
    });
}

PyObject* py_logprobs(const Arguments& a) {
    const Array tokens = a.array(1, "tokens");
    return score(a.array(0, "logits"), &tokens, a.output(2, "out"));
}

PyObject* py_logsumexp(const Arguments& a) { return score(a.array(0, "logits"), nullptr, a.output(1, "out")); }

PyObject* py_top_logprobs(const Arguments& a) {
    const Array logits = a.array(0, "logits"), tokens = a.output(1, "tokens"), out = a.output(2, "out");
    TopJob job{expect_logits(logits).float32(), logits.shape[0], logits.last(), tokens.expect({logits.shape[0], -1}).last(), nullptr, nullptr};
    INFERPLANE_REQUIRE(job.count > 0 && job.count <= job.vocab, tokens.name() + " is " + tokens.describe() + "; expected 1 to " +
            std::to_string(job.vocab) + " a row");
    job.tokens = const_cast<int32_t*>(tokens.int32());
    job.logprobs = const_cast<float*>(out.expect({job.samples, job.count}).float32());
    return launch([job] { top_logprobs(job); });
}

}  // namespace

Activation named_activation(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "gelu") return Activation::gelu;
    if (name == "gelu_tanh") return Activation::gelu_tanh;
    if (name == "relu") return Activation::relu;
    if (name == "tanh") return Activation::tanh;
    throw Invalid("activation '" + name + "' is unknown; known: silu, gelu, gelu_tanh, relu, tanh");
}

RopeJob rope_job(const Array& x, const Array& positions, const Array& table, bool interleaved, void* out) {
    x.expect({-1, -1, -1});
    table.expect({-1, -1});
    const RopeJob job{x.data, out, positions.expect({x.shape[0]}).int32(), table.float32(), x.shape[0], x.shape[1], x.shape[2],
                      table.last() / 2, interleaved, x.dtype()};
    INFERPLANE_REQUIRE(table.last() % 2 == 0 && table.last() <= job.head_dim, table.name() + " is " + table.describe() + "; expected [positions, 2 * pairs], pairs of the " +
            std::to_string(job.head_dim) + " dims");
    return job;
}

void check_positions(const RopeJob& job, const Array& positions, const Array& table) {
    for (int64_t i = 0; i < job.tokens; ++i) {
        INFERPLANE_REQUIRE(job.positions[i] >= 0 && job.positions[i] < table.shape[0], positions.name() + "[" + std::to_string(i) + "] is " +
                std::to_string(job.positions[i]) + "; the table has " + std::to_string(table.shape[0]));
    }
}

PyMethodDef* row_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(empty, 2, "empty(shape, dtype) -> array, not zeroed; a large one takes over the pages of one that is gone."),
        INFERPLANE_METHOD(rms_norm, 5, "rms_norm(x [..., size], weight [size], epsilon, offset, out): x / rms(x) * (weight + offset)."),
        INFERPLANE_METHOD(add_rms_norm, 7, "add_rms_norm(x, residual, weight, epsilon, offset, out, sum): sum = x + residual, out = rms_norm(sum)."),
        INFERPLANE_METHOD(layer_norm, 5, "layer_norm(x [..., size], weight, bias or None, epsilon, out)."),
        INFERPLANE_METHOD(rope, 5, "rope(x [tokens, heads, head_dim], positions, table [positions, cos | sin], interleaved, out)."),
        INFERPLANE_METHOD(activation, 3, "activation(x, kind, out): silu, gelu, gelu_tanh, relu or tanh."),
        INFERPLANE_METHOD(gated_activation, 4, "gated_activation(gate, up, kind, out): activation(gate) * up."),
        INFERPLANE_METHOD(add, 3, "add(a, b, out)."),
        INFERPLANE_METHOD(multiply, 3, "multiply(a, b, out)."),
        INFERPLANE_METHOD(scale, 3, "scale(x, factor, out)."),
        INFERPLANE_METHOD(take_rows, 3, "take_rows(table [rows, size], rows [n] int32, out [n, size])."),
        INFERPLANE_METHOD(derive, 4, "derive(tokens [n], source [n], last_token [slots], out [n]): last_token[source], or tokens where source is -1."),
        INFERPLANE_METHOD(keep, 3, "keep(tokens [n], slots [n], last_token): last_token[slots] = tokens."),
        INFERPLANE_METHOD(sample, 10, "sample(logits, temperature, top_k, top_p, min_p, seed_low, seed_high, index, position, tokens)."),
        INFERPLANE_METHOD(logprobs, 3, "logprobs(logits [samples, vocab], tokens [samples], out [samples])."),
        INFERPLANE_METHOD(top_logprobs, 3, "top_logprobs(logits [samples, vocab], tokens [samples, count], out [samples, count]): the likeliest, best first."),
        INFERPLANE_METHOD(logsumexp, 2, "logsumexp(logits [samples, vocab], out [samples])."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane
