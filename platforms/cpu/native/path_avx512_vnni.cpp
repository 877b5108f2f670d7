// The AVX-512 path with the dot product of bytes: quantized linears of its own, the rest of AVX-512.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <vector>

#include "dtype.h"
#include "memory.h"
#include "path.h"

// Everything above is compiled for any processor, everything below for this one.
#pragma GCC push_options
// gcc 12 warns about its own intrinsics.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")
#include "byte_dot_vnni.h"
#include "path_kernel.h"

namespace inferplane {

// Only kernels over VnniBytes are instantiated here: no symbol is shared with the plain AVX-512 unit.
const Path& avx512_vnni_path() {
    static const Path path = [] {
        constexpr const char* product = "vpdpbusd";
        Path made = avx512_path();
        made.name = "avx512_vnni";
        constexpr RangeKernel<QuantizedJob> multiply[3] = {multiply_codes<VnniBytes, float>, multiply_codes<VnniBytes, bf16>,
                                                           multiply_codes<VnniBytes, f16>};
        for (int type = 0; type < 3; ++type) {
            made.codes[type].multiply = multiply[type];
            made.codes[type].tile_rows = VnniBytes::tile_rows;
            made.codes[type].product = product;
        }
        made.peak_int8 = peak_of_codes<VnniBytes>;
        return made;
    }();
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
