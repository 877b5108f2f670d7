// Row kernels for one instruction set; a row's bits depend on that row alone.
#pragma once

#include "rows.h"
#include "vector_math.h"

namespace inferplane {

// Four partial sums hide the adder's latency; lanes beyond the row's end add zeros.
template <class Isa> struct RowSum {
    Floats<Isa> part[4];
    INFERPLANE_INLINE RowSum() { part[0] = part[1] = part[2] = part[3] = fill<Isa>(0.0f); }
    INFERPLANE_INLINE void add(int64_t i, Floats<Isa> v) { part[i / lanes % 4] = part[i / lanes % 4] + v; }
    INFERPLANE_INLINE float total() const { return sum(part[0] + part[1] + (part[2] + part[3])); }
};

template <class Isa, class T, class W> void rms_norm_rows(const NormJob& job, int64_t first, int64_t last) {
    const int64_t n = job.size;
    const W* weight = static_cast<const W*>(job.weight);
    for (int64_t row = first; row < last; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * n;
        T* out = static_cast<T*>(job.out) + row * n;
        if (job.residual) {
            const T* residual = static_cast<const T*>(job.residual) + row * n;
            T* total = static_cast<T*>(job.sum) + row * n;
            for (int64_t i = 0; i < n; i += lanes) {
                store_upto<Isa>(total + i, load_upto<Isa>(x + i, n - i) + load_upto<Isa>(residual + i, n - i), n - i);
            }
            x = total;
        }
        RowSum<Isa> squares;
        for (int64_t i = 0; i < n; i += lanes) {
            const Floats<Isa> v = load_upto<Isa>(x + i, n - i);
            squares.add(i, v * v);
        }
        const Floats<Isa> factor = fill<Isa>(1.0f / __builtin_sqrtf(squares.total() / float(n) + job.epsilon));
        const Floats<Isa> offset = fill<Isa>(job.offset);
        for (int64_t i = 0; i < n; i += lanes) {
            const Floats<Isa> w = load_upto<Isa>(weight + i, n - i) + offset;
            store_upto<Isa>(out + i, load_upto<Isa>(x + i, n - i) * factor * w, n - i);
        }
    }
}

template <class Isa, class T, class W> void layer_norm_rows(const NormJob& job, int64_t first, int64_t last) {
    const int64_t n = job.size;
    const W *weight = static_cast<const W*>(job.weight), *bias = static_cast<const W*>(job.bias);
    for (int64_t row = first; row < last; ++row) {
        const T* x = static_cast<const T*>(job.x) + row * n;
        T* out = static_cast<T*>(job.out) + row * n;
        RowSum<Isa> values, squares;
        for (int64_t i = 0; i < n; i += lanes) values.add(i, load_upto<Isa>(x + i, n - i));
        const Floats<Isa> mean = fill<Isa>(values.total() / float(n));
        for (int64_t i = 0; i < n; i += lanes) {
            Floats<Isa> v = load_upto<Isa>(x + i, n - i) - mean;
            if (n - i < lanes) {  // the mask guards the row's end, where 0 - mean is not 0
                v = where_less(from_integers(lane_index<Isa>()), fill<Isa>(float(n - i)), v, fill<Isa>(0.0f));
            }
            squares.add(i, v * v);
        }
        const Floats<Isa> factor = fill<Isa>(1.0f / __builtin_sqrtf(squares.total() / float(n) + job.epsilon));
        for (int64_t i = 0; i < n; i += lanes) {
            Floats<Isa> v = (load_upto<Isa>(x + i, n - i) - mean) * factor * load_upto<Isa>(weight + i, n - i);
            if (bias) v = v + load_upto<Isa>(bias + i, n - i);
            store_upto<Isa>(out + i, v, n - i);
        }
    }
}

// Halves apart: (j, j + half). Sixteen pairs at a time.
template <class Isa, class T>
INFERPLANE_INLINE void turn_halves(const T* x, const float* cos, const float* sin, int64_t half, T* out) {
    for (int64_t j = 0; j < half; j += lanes) {
        const Floats<Isa> a = load_upto<Isa>(x + j, half - j), b = load_upto<Isa>(x + half + j, half - j);
        const Floats<Isa> c = load_upto<Isa>(cos + j, half - j), s = load_upto<Isa>(sin + j, half - j);
        store_upto<Isa>(out + j, a * c - b * s, half - j);
        store_upto<Isa>(out + half + j, b * c + a * s, half - j);
    }
}

template <class Isa, class T> void turn_neighbours(const T* x, const float* cos, const float* sin, int64_t half, T* out) {
    for (int64_t j = 0; j < half; ++j) {
        const float a = to_float(x[2 * j]), b = to_float(x[2 * j + 1]);
        out[2 * j] = from_float<T>(a * cos[j] - b * sin[j]);
        out[2 * j + 1] = from_float<T>(b * cos[j] + a * sin[j]);
    }
}

template <class Isa, class T> void rope_tokens(const RopeJob& job, int64_t first, int64_t last) {
    for (int64_t token = first; token < last; ++token) {
        const float* cos = job.table + int64_t(job.positions[token]) * 2 * job.half;
        for (int64_t head = 0; head < job.heads; ++head) {
            const int64_t at = (token * job.heads + head) * job.head_dim, turned = 2 * job.half;
            const T* x = static_cast<const T*>(job.x) + at;
            T* out = static_cast<T*>(job.out) + at;
            if (job.interleaved) turn_neighbours<Isa>(x, cos, cos + job.half, job.half, out);
            else turn_halves<Isa>(x, cos, cos + job.half, job.half, out);
            if (out != x) __builtin_memcpy(out + turned, x + turned, (job.head_dim - turned) * sizeof(T));
        }
    }
}

// x / (1 + e^-exponent), with e^-|exponent| so that nothing overflows and the tail keeps its digits. rough: for results of
// 16 bits, to 1e-5, on processors whose powers of two keep subnormals.
template <class Isa, bool rough> INFERPLANE_INLINE Floats<Isa> sigmoid_times(Floats<Isa> x, Floats<Isa> exponent) {
    const Floats<Isa> zero = fill<Isa>(0.0f), one = fill<Isa>(1.0f), below = zero - absolute(exponent);
    Floats<Isa> small;
    if constexpr (rough && Isa::scales_by_powers) small = exp2_small<Isa, true, true>(below * fill<Isa>(1.44269504f));
    else small = exp(below);
    return x * where_less(exponent, zero, small, one) / (one + small);
}

template <class Isa, Activation kind, bool rough> INFERPLANE_INLINE Floats<Isa> activate(Floats<Isa> x) {
    if constexpr (kind == Activation::silu) return sigmoid_times<Isa, rough>(x, x);
    if constexpr (kind == Activation::gelu) return x * fill<Isa>(0.5f) * erfc(x * fill<Isa>(-0.70710678118f));
    // 0.5 (1 + tanh u) is the sigmoid of 2u, without cancellation; u = sqrt(2 / pi) (x + 0.044715 x^3).
    if constexpr (kind == Activation::gelu_tanh) {
        return sigmoid_times<Isa, rough>(x, x * multiply_add(x * x, fill<Isa>(0.0713548163f), fill<Isa>(1.59576912f)));
    }
    if constexpr (kind == Activation::relu) return where_less(x, fill<Isa>(0.0f), fill<Isa>(0.0f), x);
    if constexpr (kind == Activation::tanh) return tanh(x);
}

template <class Isa, class T, Activation kind> void activation_range(const ActivationJob& job, int64_t first, int64_t last) {
    const T *gate = static_cast<const T*>(job.gate), *up = static_cast<const T*>(job.up);
    T* out = static_cast<T*>(job.out);
    for (int64_t i = first; i < last; i += lanes) {
        Floats<Isa> v = activate<Isa, kind, sizeof(T) == 2>(load_upto<Isa>(gate + i, last - i));
        if (up) v = v * load_upto<Isa>(up + i, last - i);
        store_upto<Isa>(out + i, v, last - i);
    }
}

template <class Isa, class T> void activation_any(const ActivationJob& job, int64_t first, int64_t last) {
    switch (job.kind) {
        case Activation::silu: return activation_range<Isa, T, Activation::silu>(job, first, last);
        case Activation::gelu: return activation_range<Isa, T, Activation::gelu>(job, first, last);
        case Activation::gelu_tanh: return activation_range<Isa, T, Activation::gelu_tanh>(job, first, last);
        case Activation::relu: return activation_range<Isa, T, Activation::relu>(job, first, last);
        case Activation::tanh: return activation_range<Isa, T, Activation::tanh>(job, first, last);
    }
}

template <class Isa, class T> void arithmetic_range(const ArithmeticJob& job, int64_t first, int64_t last) {
    const T *a = static_cast<const T*>(job.a), *b = static_cast<const T*>(job.b);
    T* out = static_cast<T*>(job.out);
    for (int64_t i = first; i < last; i += lanes) {
        const Floats<Isa> x = load_upto<Isa>(a + i, last - i), y = load_upto<Isa>(b + i, last - i);
        store_upto<Isa>(out + i, job.kind == Arithmetic::add ? x + y : x * y, last - i);
    }
}

template <class Isa, class T> void scale_range(const ArithmeticJob& job, int64_t first, int64_t last) {
    const T* a = static_cast<const T*>(job.a);
    T* out = static_cast<T*>(job.out);
    const Floats<Isa> factor = fill<Isa>(job.factor);
    for (int64_t i = first; i < last; i += lanes) store_upto<Isa>(out + i, load_upto<Isa>(a + i, last - i) * factor, last - i);
}

}  // namespace inferplane
