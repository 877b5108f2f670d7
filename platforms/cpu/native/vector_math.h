// exp, log, erfc and tanh on sixteen lanes, to about one float32 rounding.
//
// Polynomials are minimax fits on the reduced range; each names its relative error before rounding.
#pragma once

#include "simd.h"

namespace inferplane {

// 2^n for whole n in [-127, 128]: 0 and infinity at the ends.
template <class Isa> INFERPLANE_INLINE Floats<Isa> power_of_two(Floats<Isa> n) {
    return as_floats(shift_left(to_integers(n) + fill_words<Isa>(127), 23));
}

// coefficients[0] + x * (coefficients[1] + x * (...))
template <class Isa, int count>
INFERPLANE_INLINE Floats<Isa> polynomial(Floats<Isa> x, const float (&coefficients)[count]) {
    Floats<Isa> y = fill<Isa>(coefficients[count - 1]);
    for (int i = count - 2; i >= 0; --i) y = multiply_add(y, x, fill<Isa>(coefficients[i]));
    return y;
}

// 2^x for x <= 127, as the softmax needs it: exactly 0 far down, exactly 1 at 0. Error 1.9e-9, or 2.8e-6 where `rough`. Results
// below 2^-126 are 0 but where subnormals are asked for: Intel's processors take a hundred cycles for one that underflows.
template <class Isa, bool rough = false, bool subnormals = false> INFERPLANE_INLINE Floats<Isa> exp2_small(Floats<Isa> x) {
    static constexpr float fine[] = {1.0f, 0.693147206f, 0.240226469f, 0.0555032878f, 0.00961848896f, 0.00133999312f, 0.00015345812f};
    static constexpr float few[] = {1.0f, 0.693124175f, 0.240240991f, 0.0559064262f, 0.00958285294f};
    if constexpr (Isa::scales_by_powers) {
        if constexpr (subnormals) x = larger(fill<Isa>(-200.0f), x);
        const Floats<Isa> n = round_even(x), mantissa = rough ? polynomial(x - n, few) : polynomial(x - n, fine);
        if constexpr (subnormals) return {{Isa::scale_by_power(mantissa.part[0], n.part[0])}};
        return {{Isa::scale_by_power_above(-126.0f, x.part[0], mantissa.part[0], n.part[0])}};
    } else {
        x = larger(fill<Isa>(-127.0f), x);
        const Floats<Isa> n = round_even(x);
        return (rough ? polynomial(x - n, few) : polynomial(x - n, fine)) * power_of_two(n);
    }
}

// e^x over the whole range, NaN preserved. Error 1.9e-9.
template <class Isa> INFERPLANE_INLINE Floats<Isa> exp(Floats<Isa> x) {
    static constexpr float c[] = {1.0f, 1.0f, 0.499999921f, 0.166664201f, 0.041668226f, 0.00837482209f, 0.00138368381f};
    x = smaller(fill<Isa>(90.0f), larger(fill<Isa>(-105.0f), x));
    const Floats<Isa> n = round_even(x * fill<Isa>(1.44269504f));
    // ln 2 in two parts: n * 0.693359375 is exact.
    Floats<Isa> rest = multiply_add(n, fill<Isa>(-0.693359375f), x);
    rest = multiply_add(n, fill<Isa>(2.12194440e-4f), rest);
    // Two factors, since 2^n alone leaves the range before e^x does.
    const Floats<Isa> half = round_even(n * fill<Isa>(0.5f));
    return polynomial(rest, c) * power_of_two(half) * power_of_two(n - half);
}

// ln x for normal x > 0. Error 2.6e-8.
template <class Isa> INFERPLANE_INLINE Floats<Isa> log(Floats<Isa> x) {
    static constexpr float c[] = {0.999999974f, -0.49999988f, 0.333341856f, -0.250020741f, 0.199568336f,
                                  -0.165623927f, 0.149522661f, -0.143668451f, 0.0872235972f};
    // x = m * 2^e with m in [sqrt 1/2, sqrt 2)
    const Words<Isa> offset = as_words(x) + fill_words<Isa>(0x3f800000 - 0x3f3504f3);
    const Floats<Isa> e = from_integers(shift_right(offset, 23) + fill_words<Isa>(uint32_t(-127)));
    const Words<Isa> m = (offset & fill_words<Isa>(0x007fffff)) + fill_words<Isa>(0x3f3504f3);
    const Floats<Isa> f = as_floats(m) - fill<Isa>(1.0f);
    return multiply_add(e, fill<Isa>(0.693147181f), f * polynomial(f, c));
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> absolute(Floats<Isa> x) {
    return as_floats(as_words(x) & fill_words<Isa>(0x7fffffff));
}

// erfc x = t exp(-x^2 + P(t)), t = 2 / (2 + |x|), and 2 - that for x < 0. Error 1.2e-7 (Numerical Recipes, erfcc).
template <class Isa> INFERPLANE_INLINE Floats<Isa> erfc(Floats<Isa> x) {
    static constexpr float c[] = {-1.26551223f, 1.00002368f, 0.37409196f, 0.09678418f, -0.18628806f,
                                  0.27886807f, -1.13520398f, 1.48851587f, -0.82215223f, 0.17087277f};
    const Floats<Isa> z = absolute(x), one = fill<Isa>(1.0f);
    const Floats<Isa> t = one / multiply_add(z, fill<Isa>(0.5f), one);
    // z^2 in two parts, the first exact: its rounding would show in the tail as a relative error.
    const Floats<Isa> high = as_floats(as_words(z) & fill_words<Isa>(0xfffff000));
    const Floats<Isa> square = fill<Isa>(0.0f) - high * high, remainder = (high - z) * (high + z);
    const Floats<Isa> tail = t * exp(square) * exp(remainder + polynomial(t, c));
    return where_less(x, fill<Isa>(0.0f), fill<Isa>(2.0f) - tail, tail);
}

// Taylor around 0, where 1 - 2 / (e^2x + 1) would cancel.
template <class Isa> INFERPLANE_INLINE Floats<Isa> tanh(Floats<Isa> x) {
    static constexpr float c[] = {1.0f, -0.333333333f, 0.133333333f, -0.0539682540f, 0.0218694885f};
    const Floats<Isa> one = fill<Isa>(1.0f), small = x * polynomial(x * x, c);
    const Floats<Isa> large = one - fill<Isa>(2.0f) / (exp(x + x) + one);
    return where_less(absolute(x), fill<Isa>(0.25f), small, large);
}

}  // namespace inferplane
