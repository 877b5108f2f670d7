// Compares a path with the portable one on small problems with awkward sizes: odd K, N, dims and windows.
#include <cmath>
#include <vector>

#include "path.h"

namespace inferplane {
namespace {

// A fixed sequence (Park and Miller's), so that a failure repeats itself.
class Numbers {
  public:
    float next() {
        state_ = state_ * 48271 % 2147483647;
        return float(state_) / 1073741824.0f - 1.0f;
    }
    template <class T> std::vector<T> fill(int64_t count) {
        std::vector<T> values(count);
        for (T& value : values) value = from_float<T>(next());
        return values;
    }

  private:
    uint64_t state_ = 20170712;
};

// What a type can tell apart, with room for another order of roundings.
template <class T> float tolerance() { return dtype_of<T>() == DType::float32 ? 1e-4f : dtype_of<T>() == DType::bfloat16 ? 4e-2f : 5e-3f; }

template <class T> bool near(const std::vector<T>& a, const std::vector<T>& b) {
    for (size_t i = 0; i < a.size(); ++i) {
        const float x = to_float(a[i]), y = to_float(b[i]);
        if (!(std::fabs(x - y) <= tolerance<T>() * (1 + std::fabs(y)))) return false;
    }
    return true;
}

template <class T> bool linear_agrees(const Path& path, int64_t rows, int64_t inputs, int64_t outputs) {
    Numbers numbers;
    const std::vector<T> x = numbers.fill<T>(rows * inputs), weight = numbers.fill<T>(outputs * inputs);
    const int64_t bytes = packed_bytes(outputs, inputs, dtype_of<T>());
    void* packed = allocate_pages(bytes);
    pack_linear(packed, 0, weight.data(), outputs, inputs, dtype_of<T>());
    std::vector<T> outs[2];
    for (int side = 0; side < 2; ++side) {
        const UsePath use(side ? path : portable_path());
        outs[side].resize(rows * outputs);
        LinearJob job{};
        job.x = x.data();
        job.packed = packed;
        job.rows = rows;
        job.inputs = inputs;
        job.outputs = outputs;
        job.dtype = job.out_dtype = dtype_of<T>();
        job.outs = {{outs[side].data(), outputs, nullptr}};
        linear(job);
    }
    free_pages(packed, bytes);
    return near(outs[0], outs[1]);
}

template <class T> bool quantized_agrees(const Path& path, const QuantizedLayout& layout, bool quantizes, int64_t rows) {
    Numbers numbers;
    const int64_t outputs = 130, groups = layout.groups(), bytes = linear_panels(outputs) * layout.panel_bytes();
    const std::vector<T> x = numbers.fill<T>(rows * layout.inputs);
    std::vector<int8_t> codes(outputs * layout.inputs), zeros(outputs * groups);
    for (int8_t& code : codes) code = int8_t(numbers.next() * (layout.bits == 8 ? 128 : 8));
    for (int8_t& zero : zeros) zero = int8_t(numbers.next() * 8);
    const std::vector<f16> scales = numbers.fill<f16>(outputs * groups);
    void* packed = allocate_pages(bytes);
    pack_quantized(layout, packed, 0, codes.data(), scales.data(), layout.zeros ? zeros.data() : nullptr, outputs);
    std::vector<T> outs[2];
    for (int side = 0; side < 2; ++side) {
        const UsePath use(side ? path : portable_path());
        outs[side].resize(rows * outputs);
        QuantizedJob job{};
        job.x = x.data();
        job.packed = packed;
        job.rows = rows;
        job.inputs = layout.inputs;
        job.outputs = outputs;
        job.dtype = job.out_dtype = dtype_of<T>();
        job.outs = {{outs[side].data(), outputs, nullptr}};
        job.layout = layout;
        job.quantizes = quantizes;
        job.activation_group = 64;
        quantized_linear(job);
    }
    free_pages(packed, bytes);
    float largest = 0;
    for (const T value : outs[0]) largest = std::fmax(largest, std::fabs(to_float(value)));
    for (std::vector<T>& out : outs) {
        for (T& value : out) value = from_float<T>(to_float(value) / largest);
    }
    return near(outs[0], outs[1]);
}

template <class T> bool attention_agrees(const Path& path, int64_t key_dim, int64_t value_dim, int64_t window) {
    Numbers numbers;
    const CacheShape cache{8, 2, 16, key_dim, value_dim};
    const int64_t tokens = 9, heads = 6;
    const std::vector<T> q = numbers.fill<T>(tokens * heads * key_dim);
    const std::vector<T> k = numbers.fill<T>(8 * 2 * 16 * key_dim), v = numbers.fill<T>(8 * 2 * 16 * value_dim);
    const int32_t table[2][5] = {{3, 1, 7, 2, 5}, {4, 0, 0, 0, 0}}, starts[3] = {0, 8, 9}, lengths[2] = {71, 3};
    std::vector<T> outs[2];
    for (int side = 0; side < 2; ++side) {
        const UsePath use(side ? path : portable_path());
        outs[side].resize(tokens * heads * value_dim);
        attention({q.data(), k.data(), v.data(), outs[side].data(), cache, dtype_of<T>(), tokens, heads, 2, 5, table[0], starts, lengths,
                   0.25, 0.0f, window, nullptr, nullptr, nullptr, nullptr});
    }
    return near(outs[0], outs[1]);
}

template <class T> bool rows_agree(const Path& path) {
    Numbers numbers;
    const int64_t rows = 3, size = 45;
    const std::vector<T> x = numbers.fill<T>(rows * size), weight = numbers.fill<T>(size);
    bool same = true;
    for (const Activation kind : {Activation::silu, Activation::gelu, Activation::gelu_tanh, Activation::relu, Activation::tanh}) {
        std::vector<T> norms[2], means[2], active[2];
        for (int side = 0; side < 2; ++side) {
            const UsePath use(side ? path : portable_path());
            for (auto* outs : {&norms[side], &means[side], &active[side]}) outs->resize(rows * size);
            NormJob job{x.data(), nullptr, weight.data(), nullptr, nullptr, norms[side].data(), rows, size, 1e-5f, 0.0f, dtype_of<T>(), dtype_of<T>()};
            rms_norm(job);
            job.out = means[side].data();
            layer_norm(job);
            activation({x.data(), x.data(), active[side].data(), rows * size, kind, dtype_of<T>()});
        }
        same = same && near(norms[0], norms[1]) && near(means[0], means[1]) && near(active[0], active[1]);
    }
    return same;
}

bool sampling_agrees(const Path& path) {
    Numbers numbers;
    const int64_t samples = 4, vocab = 1003;
    const std::vector<float> logits = numbers.fill<float>(samples * vocab);
    const std::vector<float> temperature(samples, 0.7f), top_p(samples, 1.0f), min_p(samples, 0.0f);
    const std::vector<int32_t> top_k(samples, 0);
    const std::vector<uint32_t> words = {1, 2, 3, 4};
    std::vector<int32_t> tokens[2];
    for (int side = 0; side < 2; ++side) {
        const UsePath use(side ? path : portable_path());
        tokens[side].resize(samples);
        sample({logits.data(), samples, vocab, temperature.data(), top_p.data(), min_p.data(), top_k.data(), words.data(), words.data(),
                words.data(), words.data(), tokens[side].data()});
    }
    return tokens[0] == tokens[1];
}

template <class T> std::string check_type(const Path& path, const char* type) {
    const std::string of = std::string(" of ") + type;
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 13, 261}) {
        if (!linear_agrees<T>(path, rows, 67, 130)) return "linear" + of + ", " + std::to_string(rows) + " rows";
    }
    for (const int64_t rows : {1, 2, 3, 4, 5, 6, 13}) {
        for (const int bits : {8, 4}) {
            for (const bool quantizes : {true, false}) {
                const bool whole = quantized_agrees<T>(path, {131, 0, bits, DType::float16, false}, quantizes, rows);
                const bool grouped = quantized_agrees<T>(path, {131, 32, bits, DType::float16, true}, quantizes, rows);
                if (!whole || !grouped) return "linear over int" + std::to_string(bits) + of + ", " + std::to_string(rows) + " rows";
            }
        }
    }
    // Rows and groups that a matrix unit takes: one tile of rows and five, whole tiles of k and halves.
    for (const int64_t rows : {7, 70}) {
        for (const int bits : {8, 4}) {
            const bool whole = quantized_agrees<T>(path, {1216, 0, bits, DType::float16, false}, true, rows);
            const bool halves = quantized_agrees<T>(path, {352, 32, bits, DType::float16, true}, true, rows);
            if (!whole || !halves) return "linear over int" + std::to_string(bits) + of + ", " + std::to_string(rows) + " rows";
        }
    }
    // More k than a block of steps, and some left over.
    if (!linear_agrees<T>(path, 18, 577, 70)) return "linear" + of + ", long rows";
    if (!attention_agrees<T>(path, 64, 64, 0) || !attention_agrees<T>(path, 33, 21, 0)) return "attention" + of;
    if (!attention_agrees<T>(path, 96, 80, 19)) return "attention in a window" + of;
    if (!rows_agree<T>(path)) return "norms or activations" + of;
    return "";
}

}  // namespace

std::string self_check(const Path& path) {
    std::string found = check_type<float>(path, "float32");
    if (found.empty()) found = check_type<bf16>(path, "bfloat16");
    if (found.empty()) found = check_type<f16>(path, "float16");
    if (found.empty() && !sampling_agrees(path)) found = "sampling";
    return found;
}

}  // namespace inferplane
