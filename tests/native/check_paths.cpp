// Every entry of the named paths' tables against float64 or the portable path, without Python: `check_paths neon neon_bf16`.
//
// Built with the kernels by tests/test_cpu_paths.py, for ARM under an emulator and for AMX with emulated tiles. Says what
// fails and answers 1. It runs a path although the processor lacks it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "path.h"
#include "pool.h"

namespace inferplane {
namespace {

int failures = 0, checks = 0;

void expect(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    if (++failures <= 20) std::printf("FAIL %s\n", what.c_str());
}

class Numbers {
  public:
    float next() {
        state_ = state_ * 6364136223846793005u + 1442695040888963407u;
        return float(int32_t(state_ >> 32)) / 1073741824.0f;
    }
    template <class T> std::vector<T> fill(int64_t count) {
        std::vector<T> values(count);
        for (T& value : values) value = from_float<T>(next());
        return values;
    }

  private:
    uint64_t state_ = 20170712;
};

template <class T> double half_ulp() {
    return dtype_of<T>() == DType::float32 ? 0x1p-24 : dtype_of<T>() == DType::bfloat16 ? 0x1p-8 : 0x1p-11;
}

template <class T> const char* type_name() {
    return dtype_of<T>() == DType::float32 ? "float32" : dtype_of<T>() == DType::bfloat16 ? "bfloat16" : "float16";
}

template <class T> std::string title(const char* op, std::vector<int64_t> sizes = {}) {
    std::string text = std::string(active_path().name) + ": " + op + " of " + type_name<T>();
    for (int64_t size : sizes) text += " " + std::to_string(size);
    return text;
}

template <class T> std::vector<T> run_linear(const T* x, int64_t rows, int64_t inputs, const void* packed, int64_t outputs, const T* bias) {
    std::vector<T> out(rows * outputs);
    LinearJob job{};
    job.x = x;
    job.packed = packed;
    job.rows = rows;
    job.inputs = inputs;
    job.outputs = outputs;
    job.dtype = job.out_dtype = dtype_of<T>();
    const int64_t cut = outputs / 3;  // two outputs, the second with a bias
    std::vector<T> parts[2] = {std::vector<T>(rows * cut), std::vector<T>(rows * (outputs - cut))};
    job.outs = {{parts[0].data(), cut, nullptr}, {parts[1].data(), outputs - cut, bias + cut}};
    linear(job);
    for (int64_t row = 0; row < rows; ++row) {
        std::memcpy(out.data() + row * outputs, parts[0].data() + row * cut, cut * sizeof(T));
        std::memcpy(out.data() + row * outputs + cut, parts[1].data() + row * (outputs - cut), (outputs - cut) * sizeof(T));
    }
    return out;
}

// Against float64, within half an ulp and four float32 roundings of the magnitude per k; and each row alone.
template <class T> void check_linear(int64_t rows, int64_t inputs, int64_t outputs) {
    Numbers numbers;
    std::vector<T> x = numbers.fill<T>(rows * inputs);
    const std::vector<T> weight = numbers.fill<T>(outputs * inputs), bias = numbers.fill<T>(outputs);
    const int64_t bytes = packed_bytes(outputs, inputs, dtype_of<T>());
    void* packed = allocate_pages(bytes);
    pack_linear(packed, 0, weight.data(), outputs, inputs, dtype_of<T>());
    const std::vector<T> out = run_linear(x.data(), rows, inputs, packed, outputs, bias.data());
    bool near = true, alone = true;
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < outputs; ++j) {
            const double added = j < outputs / 3 ? 0 : to_float(bias[j]);
            double sum = added, magnitude = std::fabs(added);
            for (int64_t k = 0; k < inputs; ++k) {
                const double product = double(to_float(x[row * inputs + k])) * to_float(weight[j * inputs + k]);
                sum += product;
                magnitude += std::fabs(product);
            }
            const double error = std::fabs(to_float(out[row * outputs + j]) - sum);
            near = near && error <= 1.001 * 2 * half_ulp<T>() * std::fabs(sum) + (inputs + 2) * 4 * 0x1p-24 * magnitude;
        }
        if (row % 7 == 0 || row + 3 > rows) {
            const std::vector<T> one = run_linear(x.data() + row * inputs, 1, inputs, packed, outputs, bias.data());
            alone = alone && std::memcmp(one.data(), out.data() + row * outputs, outputs * sizeof(T)) == 0;
        }
    }
    expect(near, title<T>("linear: wrong", {rows, inputs, outputs}));
    expect(alone, title<T>("linear: a row differs when alone", {rows, inputs, outputs}));
    x[(rows - 1) * inputs + inputs / 2] = from_float<T>(NAN);
    const std::vector<T> poisoned = run_linear(x.data(), rows, inputs, packed, outputs, bias.data());
    bool all_nan = true;
    for (int64_t j = 0; j < outputs; ++j) all_nan = all_nan && std::isnan(to_float(poisoned[(rows - 1) * outputs + j]));
    expect(all_nan, title<T>("linear: NaN is lost", {rows, inputs, outputs}));
    expect(std::memcmp(poisoned.data(), out.data(), (rows - 1) * outputs * sizeof(T)) == 0, title<T>("linear: NaN spreads", {rows, inputs}));
    free_pages(packed, bytes);
}

// `compute(out)` on the path at hand and on the portable one.
template <class T, class Compute> void compare(const std::string& what, int64_t count, double room, Compute compute) {
    std::vector<T> ours(count), portable(count);
    compute(ours.data());
    {
        const UsePath use(portable_path());
        compute(portable.data());
    }
    bool near = true;
    for (int64_t i = 0; i < count; ++i) {
        const double a = to_float(ours[i]), b = to_float(portable[i]);
        near = near && (a == b || std::fabs(a - b) <= 2.02 * half_ulp<T>() * std::fabs(b) + room || (std::isnan(a) && std::isnan(b)));
    }
    expect(near, what);
}

// Sums of codes are exact in int32 on every path; what is left are the roundings of the scales, and of sums of floats.
template <class T> void check_quantized(const QuantizedLayout& layout, int64_t rows, int64_t activation_group, bool quantizes) {
    Numbers numbers;
    const int64_t inputs = layout.inputs, outputs = 70, limit = layout.bits == 8 ? 127 : 7;
    const std::vector<T> x = numbers.fill<T>(rows * inputs);
    std::vector<int8_t> codes(outputs * inputs), zeros(outputs * layout.groups());
    for (int8_t& code : codes) code = int8_t(numbers.next() * limit / 2);
    for (int8_t& zero : zeros) zero = int8_t(numbers.next() * limit / 2);
    std::vector<float> scales(outputs * layout.groups());
    for (float& scale : scales) scale = 0.01f + std::fabs(numbers.next()) * 0.005f;
    const int64_t bytes = linear_panels(outputs) * layout.panel_bytes();
    void* packed = allocate_pages(bytes);
    pack_quantized(layout, packed, 0, codes.data(), scales.data(), layout.zeros ? zeros.data() : nullptr, outputs);
    const std::string what = title<T>(quantizes ? "codes" : "floats", {layout.bits, inputs, layout.group, layout.zeros, rows, activation_group});
    compare<T>(what, rows * outputs, 1e-3, [&](T* out) {
        QuantizedJob job{};
        job.x = x.data();
        job.packed = packed;
        job.rows = rows;
        job.inputs = inputs;
        job.outputs = outputs;
        job.dtype = job.out_dtype = dtype_of<T>();
        job.outs = {{out, outputs, nullptr}};
        job.layout = layout;
        job.quantizes = quantizes;
        job.activation_group = activation_group;
        quantized_linear(job);
    });
    free_pages(packed, bytes);
}

template <class S> std::vector<S> cached(Numbers& numbers, int64_t count) {
    if constexpr (sizeof(S) > 1) return numbers.fill<S>(count);
    std::vector<S> codes(count);
    for (S& code : codes) std::memset(&code, int(numbers.next() * 63), 1);
    return codes;
}

// Caches of T, or of int8 codes.
template <class T, class S = T>
void check_attention(int64_t key_dim, int64_t value_dim, int64_t window, float softcap, bool with_sinks) {
    Numbers numbers;
    const CacheShape cache{12, 2, 16, key_dim, value_dim};
    const int64_t tokens = 80, heads = 6;
    const std::vector<T> q = numbers.fill<T>(tokens * heads * key_dim);
    const std::vector<S> k = cached<S>(numbers, 12 * 2 * 16 * key_dim), v = cached<S>(numbers, 12 * 2 * 16 * value_dim);
    const std::vector<float> sinks = numbers.fill<float>(heads), scales(12 * 2 * 16, 0.01f);
    const float* scale_of = sizeof(S) == 1 ? scales.data() : nullptr;
    const int32_t table[3][6] = {{3, 1, 7, 2, 5, 11}, {4, 0, 0, 0, 0, 0}, {9, 6, 10, 8, 0, 0}};
    const int32_t starts[4] = {0, 70, 71, 76}, lengths[3] = {93, 16, 55};
    // The bfloat16 dot products round the softmax's weights to bfloat16.
    const double room = dtype_of<T>() == DType::bfloat16 ? 2e-2 : 1e-5;
    compare<T>(title<T>("attention", {key_dim, value_dim, window}), tokens * heads * value_dim, room, [&](T* out) {
        attention({q.data(), k.data(), v.data(), out, cache, dtype_of<T>(), tokens, heads, 3, 6, table[0], starts, lengths, 0.2f, softcap,
                   window, with_sinks ? sinks.data() : nullptr, nullptr, scale_of, scale_of});
    });
}

template <class T, class W> void check_norms(int64_t size) {
    Numbers numbers;
    const int64_t rows = 5;
    const std::vector<T> x = numbers.fill<T>(rows * size), residual = numbers.fill<T>(rows * size);
    const std::vector<W> weight = numbers.fill<W>(size), bias = numbers.fill<W>(size);
    std::vector<T> sum(rows * size);
    for (const void* added : {static_cast<const void*>(nullptr), static_cast<const void*>(residual.data())}) {
        compare<T>(title<T>("rms_norm", {size}), rows * size, 1e-5, [&](T* out) {
            rms_norm({x.data(), added, weight.data(), nullptr, sum.data(), out, rows, size, 1e-5f, 1.0f, dtype_of<T>(), dtype_of<W>()});
        });
    }
    for (const void* added : {static_cast<const void*>(nullptr), static_cast<const void*>(bias.data())}) {
        compare<T>(title<T>("layer_norm", {size}), rows * size, 1e-4, [&](T* out) {
            layer_norm({x.data(), nullptr, weight.data(), added, nullptr, out, rows, size, 1e-2f, 0.0f, dtype_of<T>(), dtype_of<W>()});
        });
    }
}

template <class T> void check_elements(int64_t count) {
    Numbers numbers;
    std::vector<T> a = numbers.fill<T>(count), b = numbers.fill<T>(count);
    for (int64_t i = 0; i < count; i += 3) a[i] = from_float<T>(to_float(a[i]) * 20);
    const Activation kinds[] = {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::tanh};
    for (int kind = 0; kind < 5; ++kind) {
        for (const T* up : {static_cast<const T*>(nullptr), static_cast<const T*>(b.data())}) {
            compare<T>(title<T>("activation", {kind, count}), count, 1e-5,
                       [&](T* out) { activation({a.data(), up, out, count, kinds[kind], dtype_of<T>()}); });
        }
    }
    for (const Arithmetic kind : {Arithmetic::add, Arithmetic::multiply}) {
        compare<T>(title<T>("arithmetic", {count}), count, 0,
                   [&](T* out) { arithmetic({a.data(), b.data(), out, count, 0.0f, kind, dtype_of<T>()}); });
    }
    compare<T>(title<T>("scale", {count}), count, 0,
               [&](T* out) { scale({a.data(), nullptr, out, count, 0.37f, Arithmetic::multiply, dtype_of<T>()}); });
}

template <class T> void check_rope(int64_t head_dim, int64_t half) {
    Numbers numbers;
    const int64_t tokens = 5, heads = 3;
    const std::vector<T> x = numbers.fill<T>(tokens * heads * head_dim);
    const std::vector<float> table = numbers.fill<float>(9 * 2 * half);
    const int32_t positions[tokens] = {8, 0, 3, 7, 1};
    for (const bool interleaved : {false, true}) {
        compare<T>(title<T>("rope", {head_dim, half}), tokens * heads * head_dim, 1e-6, [&](T* out) {
            rope({x.data(), out, positions, table.data(), tokens, heads, head_dim, half, interleaved, dtype_of<T>()});
        });
    }
}

// Every 16-bit pattern through load and store: scaling by 1 is the identity, but for NaN.
template <class T> void check_conversions() {
    std::vector<T> all(1 << 16), out(1 << 16);
    for (int i = 0; i < 1 << 16; ++i) all[i].bits = uint16_t(i);
    scale({all.data(), nullptr, out.data(), 1 << 16, 1.0f, Arithmetic::multiply, dtype_of<T>()});
    bool same = true;
    for (int i = 0; i < 1 << 16; ++i) {
        same = same && (std::isnan(to_float(all[i])) ? std::isnan(to_float(out[i])) : all[i].bits == out[i].bits);
    }
    expect(same, title<T>("conversion of every value"));
    compare<T>(title<T>("rounding"), 1 << 16, 0, [&](T* to) {
        scale({all.data(), nullptr, to, 1 << 16, 0.7f, Arithmetic::multiply, dtype_of<T>()});
    });
}

void check_sampling(int64_t vocab) {
    Numbers numbers;
    std::vector<float> logits = numbers.fill<float>(vocab);
    for (float& logit : logits) logit *= 8;
    if (vocab > 3) logits[vocab / 3] = NAN;
    const Path &path = active_path(), &portable = portable_path();
    const std::string sizes = " of " + std::to_string(vocab);
    const float peak = portable.largest(logits.data(), vocab);
    expect(path.largest(logits.data(), vocab) == peak, path.name + std::string(": largest") + sizes);
    if (vocab > 3) logits[vocab / 3] = -INFINITY;
    const auto near = [](double a, double b) { return a == b || std::fabs(a - b) <= 1e-5 * (1 + std::fabs(b)); };
    std::vector<float> ours(vocab), theirs(vocab);
    const double sum = path.exponentials(logits.data(), vocab, peak, 1.3f, ours.data());
    expect(near(sum, portable.exponentials(logits.data(), vocab, peak, 1.3f, theirs.data())), path.name + std::string(": sums") + sizes);
    bool same = true;
    for (int64_t i = 0; i < vocab; ++i) same = same && near(ours[i], theirs[i]);
    expect(same, path.name + std::string(": exponentials") + sizes);
    path.gumbel_scores(logits.data(), 64, vocab, 0.7f, 12345, 678, ours.data());
    portable.gumbel_scores(logits.data(), 64, vocab, 0.7f, 12345, 678, theirs.data());
    same = true;
    for (int64_t i = 0; i < vocab; ++i) same = same && near(ours[i], theirs[i]);
    expect(same, path.name + std::string(": Gumbel scores") + sizes);
}

template <class T> void check_type() {
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 16, 17, 31, 32, 33, 49, 64}) check_linear<T>(rows, 67, 70);
    for (const int64_t inputs : {1, 2, 15, 31, 32, 33, 63, 64, 65, 130, 255, 256, 257, 289, 577}) check_linear<T>(19, inputs, 37);
    for (const int64_t outputs : {3, 15, 16, 17, 63, 64, 65, 130}) check_linear<T>(5, 40, outputs);
    check_linear<T>(261, 35, 66);
    check_linear<T>(1035, 5, 3);
    for (const int bits : {8, 4}) {
        for (const int64_t rows : {1, 2, 3, 5, 6, 13, 33, 70}) {
            for (const bool quantizes : {true, false}) {
                check_quantized<T>({132, 0, bits, DType::float32, false}, rows, 0, quantizes);
                check_quantized<T>({67, 0, bits, DType::float32, true}, rows, 0, quantizes);
                check_quantized<T>({96, 32, bits, DType::float32, true}, rows, 32, quantizes);
                check_quantized<T>({320, 128, bits, DType::float32, false}, rows, 64, quantizes);
            }
        }
    }
    for (const int64_t window : {0, 1, 19, 64}) check_attention<T>(64, 64, window, 0, false);
    check_attention<T>(33, 21, 0, 5, true);
    check_attention<T>(1, 1, 0, 0, true);
    check_attention<T>(96, 130, 20, 0, false);
    check_attention<T, int8_t>(64, 64, 0, 0, false);
    check_attention<T, int8_t>(33, 21, 19, 0, true);
    for (const int64_t size : {1, 15, 16, 17, 45, 64, 131}) {
        check_norms<T, T>(size);
        check_norms<T, float>(size);
        check_elements<T>(size);
    }
    for (const int64_t half : {1, 8, 16, 21, 32}) check_rope<T>(66, half);
}

void check_path(const Path& path) {
    const UsePath use(path);
    const std::string found = self_check(path);
    expect(found.empty(), std::string(path.name) + ": the self-check found " + found);
    check_type<float>();
    check_type<bf16>();
    check_type<f16>();
    check_conversions<bf16>();
    check_conversions<f16>();
    for (const int64_t vocab : {1, 2, 15, 16, 17, 33, 257, 1003}) check_sampling(vocab);
    float sink = 0;
    const std::vector<float> ones(256, 1.0f);
    expect(path.read(ones.data(), 256) == 256, std::string(path.name) + ": read");
    for (const auto peak : {path.peak_f32, path.peak_bf16, path.peak_int8}) {
        expect(peak(16, &sink) > 0 && std::isfinite(sink), std::string(path.name) + ": peak");
    }
}

}  // namespace
}  // namespace inferplane

int main(int count, char** names) {
    using namespace inferplane;
    set_thread_count(2);
    for (int i = 1; i < count; ++i) {
        const int before = checks;
        for (const PathEntry& entry : paths) {
            if (std::strcmp(entry.table().name, names[i]) == 0) check_path(entry.table());
        }
        expect(checks > before, std::string("no such path: ") + names[i]);
    }
    std::printf("%d checks, %d failures; this machine would choose %s\n", checks, failures, active_path().name);
    return failures > 0 || checks == 0;
}
