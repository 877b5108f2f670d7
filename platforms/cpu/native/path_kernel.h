// Fills a path's table with the kernels of one Isa. Include inside that Isa's target region.
#pragma once

#include "attention_kernel.h"
#include "byte_dot.h"
#include "limits_kernel.h"
#include "linear_kernel.h"
#include "path.h"
#include "quantized_floats_kernel.h"
#include "rows_kernel.h"
#include "sample_kernel.h"

namespace inferplane {

template <class P, class T> constexpr LinearKernels linear_kernels(const char* product) {
    return {stage_rows<P, T>, multiply_panels<P, T>, sizeof(typename P::Left), product};
}

template <class D, class T> constexpr QuantizedKernels codes_kernels(const char* product) {
    return {stage_codes<typename D::Isa, T>, multiply_codes<D, T>, 1, D::tile_rows, product};
}

template <class P, class T> constexpr QuantizedKernels floats_kernels(const char* product) {
    return {stage_floats<P, T>, multiply_floats<P, T>, sizeof(typename P::Left), 1, product};
}

template <class Isa> constexpr Path make_path(const char* name) {
    using F = Single<Isa, float>;
    using H = Single<Isa, f16>;
    using B = PairWide<Isa>;
    using D = PairedBytes<Isa>;
    constexpr const char *paired = "int8 in pairs of 16 bits", *widened = "float32 multiply-add on widened codes";
    return {
        name,
        {linear_kernels<F, float>("float32 multiply-add"), linear_kernels<B, bf16>("float32 multiply-add on widened pairs"),
         linear_kernels<H, f16>("float32 multiply-add on widened halves")},
        {codes_kernels<D, float>(paired), codes_kernels<D, bf16>(paired), codes_kernels<D, f16>(paired)},
        {floats_kernels<F, float>(widened), floats_kernels<F, bf16>(widened), floats_kernels<F, f16>(widened)},
        {},
        {{attend_task<F, float, float>, attend_task<F, float, int8_t>},
         {attend_task<F, bf16, bf16>, attend_task<F, bf16, int8_t>},
         {attend_task<F, f16, f16>, attend_task<F, f16, int8_t>}},
        {{rms_norm_rows<Isa, float, float>, rms_norm_rows<Isa, float, float>},
         {rms_norm_rows<Isa, bf16, bf16>, rms_norm_rows<Isa, bf16, float>},
         {rms_norm_rows<Isa, f16, f16>, rms_norm_rows<Isa, f16, float>}},
        {{layer_norm_rows<Isa, float, float>, layer_norm_rows<Isa, float, float>},
         {layer_norm_rows<Isa, bf16, bf16>, layer_norm_rows<Isa, bf16, float>},
         {layer_norm_rows<Isa, f16, f16>, layer_norm_rows<Isa, f16, float>}},
        {rope_tokens<Isa, float>, rope_tokens<Isa, bf16>, rope_tokens<Isa, f16>},
        {activation_any<Isa, float>, activation_any<Isa, bf16>, activation_any<Isa, f16>},
        {arithmetic_range<Isa, float>, arithmetic_range<Isa, bf16>, arithmetic_range<Isa, f16>},
        {scale_range<Isa, float>, scale_range<Isa, bf16>, scale_range<Isa, f16>},
        largest<Isa>,
        exponentials<Isa>,
        gumbel_scores<Isa>,
        read_lines<Isa>,
        peak_rate<F>,
        peak_rate<B>,
        peak_of_codes<D>,
    };
}

}  // namespace inferplane
