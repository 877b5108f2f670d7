// Sixteen float lanes on any instruction set, so that each kernel is written once.
//
//   Floats<Isa>  16 float32, in Isa::parts registers:  1 zmm | 2 ymm | 4 xmm or NEON
//   Words<Isa>   16 uint32, the same registers seen as bits
//
// An Isa gives registers and what C++ cannot say: fused multiply-add, maximum, half conversions.
// Everything here is a template over the Isa: no two translation units share a symbol compiled twice.
#pragma once

#include "dtype.h"

#define INFERPLANE_INLINE inline __attribute__((always_inline))

namespace inferplane {

constexpr int lanes = 16;

template <class Isa> struct Floats { typename Isa::f32 part[Isa::parts]; };
template <class Isa> struct Words { typename Isa::u32 part[Isa::parts]; };

#define INFERPLANE_LANEWISE(Type, name, expression)                                  \
    template <class Isa> INFERPLANE_INLINE Type<Isa> name(Type<Isa> a, Type<Isa> b) { \
        for (int i = 0; i < Isa::parts; ++i) a.part[i] = expression;                 \
        return a;                                                                    \
    }
INFERPLANE_LANEWISE(Floats, operator+, a.part[i] + b.part[i])
INFERPLANE_LANEWISE(Floats, operator-, a.part[i] - b.part[i])
INFERPLANE_LANEWISE(Floats, operator*, a.part[i] * b.part[i])
INFERPLANE_LANEWISE(Floats, operator/, a.part[i] / b.part[i])
INFERPLANE_LANEWISE(Floats, larger, Isa::max(a.part[i], b.part[i]))   // b where either is NaN
INFERPLANE_LANEWISE(Floats, smaller, Isa::min(a.part[i], b.part[i]))  // b where either is NaN
INFERPLANE_LANEWISE(Words, operator+, a.part[i] + b.part[i])
INFERPLANE_LANEWISE(Words, operator-, a.part[i] - b.part[i])
INFERPLANE_LANEWISE(Words, operator*, a.part[i] * b.part[i])
INFERPLANE_LANEWISE(Words, operator^, a.part[i] ^ b.part[i])
INFERPLANE_LANEWISE(Words, operator|, a.part[i] | b.part[i])
INFERPLANE_LANEWISE(Words, operator&, a.part[i] & b.part[i])
#undef INFERPLANE_LANEWISE

template <class Isa> INFERPLANE_INLINE Floats<Isa> fill(float value) {
    Floats<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) v.part[i] = value - typename Isa::f32{};
    return v;
}

template <class Isa> INFERPLANE_INLINE Words<Isa> fill_words(uint32_t value) {
    Words<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) v.part[i] = value - typename Isa::u32{};
    return v;
}

// 0, 1, ... 15
template <class Isa> INFERPLANE_INLINE Words<Isa> lane_index() {
    alignas(64) static constexpr uint32_t index[lanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Words<Isa> v;
    std::memcpy(&v, index, sizeof v);
    return v;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> multiply_add(Floats<Isa> a, Floats<Isa> b, Floats<Isa> c) {
    for (int i = 0; i < Isa::parts; ++i) c.part[i] = Isa::fma(a.part[i], b.part[i], c.part[i]);
    return c;
}

template <class Isa> INFERPLANE_INLINE Words<Isa> shift_left(Words<Isa> a, int bits) {
    for (int i = 0; i < Isa::parts; ++i) a.part[i] <<= bits;
    return a;
}

template <class Isa> INFERPLANE_INLINE Words<Isa> shift_right(Words<Isa> a, int bits) {
    for (int i = 0; i < Isa::parts; ++i) a.part[i] >>= bits;
    return a;
}

template <class Isa> INFERPLANE_INLINE Words<Isa> as_words(Floats<Isa> a) {
    Words<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) v.part[i] = typename Isa::u32(a.part[i]);
    return v;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> as_floats(Words<Isa> a) {
    Floats<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) v.part[i] = typename Isa::f32(a.part[i]);
    return v;
}

// a < b ? yes : no, lane by lane; a comparison with NaN says no.
template <class Isa>
INFERPLANE_INLINE Floats<Isa> where_less(Floats<Isa> a, Floats<Isa> b, Floats<Isa> yes, Floats<Isa> no) {
    for (int i = 0; i < Isa::parts; ++i) yes.part[i] = a.part[i] < b.part[i] ? yes.part[i] : no.part[i];
    return yes;
}

template <class Isa>
INFERPLANE_INLINE Words<Isa> where_less(Words<Isa> a, Words<Isa> b, Words<Isa> yes, Words<Isa> no) {
    for (int i = 0; i < Isa::parts; ++i) yes.part[i] = a.part[i] < b.part[i] ? yes.part[i] : no.part[i];
    return yes;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> round_even(Floats<Isa> a) {
    for (int i = 0; i < Isa::parts; ++i) a.part[i] = Isa::round_even(a.part[i]);
    return a;
}

// Whole floats to integers and back; values must fit.
template <class Isa> INFERPLANE_INLINE Words<Isa> to_integers(Floats<Isa> a) {
    Words<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) {
        v.part[i] = typename Isa::u32(__builtin_convertvector(a.part[i], typename Isa::i32));
    }
    return v;
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> from_integers(Words<Isa> a) {
    Floats<Isa> v;
    for (int i = 0; i < Isa::parts; ++i) {
        v.part[i] = __builtin_convertvector(typename Isa::i32(a.part[i]), typename Isa::f32);
    }
    return v;
}

// Horizontal sums and maxima fold halves: the same tree on every instruction set.
template <class Isa> INFERPLANE_INLINE float sum(Floats<Isa> a) {
    alignas(64) float x[lanes];
    std::memcpy(x, &a, sizeof x);
    for (int i = 0; i < 8; ++i) x[i] += x[i + 8];
    for (int i = 0; i < 4; ++i) x[i] += x[i + 4];
    return (x[0] + x[2]) + (x[1] + x[3]);
}

template <class Isa> INFERPLANE_INLINE float maximum(Floats<Isa> a) { return Isa::maximum(a); }

// Loads and stores of 16 elements, converting to and from float32.
template <class Isa> INFERPLANE_INLINE Floats<Isa> load(const float* from) {
    Floats<Isa> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class Isa> INFERPLANE_INLINE void store(float* to, Floats<Isa> v) { std::memcpy(to, &v, sizeof v); }

template <class Isa> INFERPLANE_INLINE Words<Isa> load_words(const void* from) {
    Words<Isa> v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class Isa> INFERPLANE_INLINE void store_words(void* to, Words<Isa> v) { std::memcpy(to, &v, sizeof v); }

template <class Isa> INFERPLANE_INLINE Floats<Isa> load(const bf16* from) {
    return as_floats(shift_left(Isa::widen(&from->bits), 16));
}

template <class Isa> INFERPLANE_INLINE void store(bf16* to, Floats<Isa> v) {
    const Words<Isa> bits = as_words(v), one = fill_words<Isa>(1), top = shift_right(bits, 16);
    const Words<Isa> rounded = shift_right(bits + fill_words<Isa>(0x7fff) + (top & one), 16);
    const Words<Isa> infinity = fill_words<Isa>(0x7f800000);
    const Words<Isa> quiet = top | fill_words<Isa>(0x40);
    Isa::narrow(&to->bits, where_less(infinity, bits & fill_words<Isa>(0x7fffffff), quiet, rounded));
}

template <class Isa> INFERPLANE_INLINE Floats<Isa> load(const f16* from) { return Isa::load_half(from); }
template <class Isa> INFERPLANE_INLINE Floats<Isa> load(const int8_t* from) { return Isa::load_bytes(from); }
template <class Isa> INFERPLANE_INLINE void store(f16* to, Floats<Isa> v) { Isa::store_half(to, v); }

// The first `count` < 16 elements; lanes beyond are zero and memory beyond is untouched.
template <class Isa, class T> INFERPLANE_INLINE Floats<Isa> load_first(const T* from, int64_t count) {
    T edge[lanes] = {};
    __builtin_memcpy(edge, from, count * sizeof(T));
    return load<Isa>(edge);
}

template <class Isa, class T> INFERPLANE_INLINE void store_first(T* to, Floats<Isa> v, int64_t count) {
    T edge[lanes];
    store<Isa>(edge, v);
    __builtin_memcpy(to, edge, count * sizeof(T));
}

// All of a vector, or its first `count` at the end of a row: the mask guards the row's edge.
template <class Isa, class T> INFERPLANE_INLINE Floats<Isa> load_upto(const T* from, int64_t count) {
    return count >= lanes ? load<Isa>(from) : load_first<Isa>(from, count);
}

template <class Isa, class T> INFERPLANE_INLINE void store_upto(T* to, Floats<Isa> v, int64_t count) {
    if (count >= lanes) store<Isa>(to, v);
    else store_first<Isa>(to, v, count);
}

}  // namespace inferplane
