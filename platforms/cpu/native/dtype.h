// Element types and their conversions through float32: round to nearest even, NaN preserved.
#pragma once

#include <cstdint>
#include <cstring>

namespace inferplane {

enum class DType { float32, bfloat16, float16 };

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

constexpr int64_t item_bytes(DType type) { return type == DType::float32 ? 4 : 2; }

inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float to_float(float value) { return value; }
inline float to_float(bf16 value) { return bits_float(uint32_t(value.bits) << 16); }

inline float to_float(f16 value) {
    const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
    const uint32_t magnitude = value.bits & 0x7fff;
    if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    // Subnormal halves are normal floats: 2^-24 per unit is exact.
    if (magnitude < 0x400) return bits_float(sign | float_bits(float(magnitude) * 0x1p-24f));
    return bits_float(sign | ((magnitude << 13) + 0x38000000));
}

template <class T> T from_float(float value);

template <> inline float from_float<float>(float value) { return value; }

template <> inline bf16 from_float<bf16>(float value) {
    const uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(bits >> 16 | 0x40)};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <> inline f16 from_float<f16>(float value) {
    const uint32_t bits = float_bits(value), magnitude = bits & 0x7fffffff;
    const uint16_t sign = bits >> 16 & 0x8000;
    if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
    if (magnitude >= 0x47800000) return {uint16_t(sign | 0x7c00)};
    // Below 2^-14 the float adder rounds for us: 0.5 has the spacing 2^-24 of subnormal halves.
    if (magnitude < 0x38800000) {
        return {uint16_t(sign | (float_bits(bits_float(magnitude) + 0.5f) - 0x3f000000))};
    }
    return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + (magnitude >> 13 & 1)) >> 13))};
}

template <class T> constexpr DType dtype_of();
template <> constexpr DType dtype_of<float>() { return DType::float32; }
template <> constexpr DType dtype_of<bf16>() { return DType::bfloat16; }
template <> constexpr DType dtype_of<f16>() { return DType::float16; }

}  // namespace inferplane
