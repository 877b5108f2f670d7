// The AVX-512 path: F, BW, DQ and VL, as on every server processor since 2017.
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
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "isa_avx512.h"
#include "path_kernel.h"

namespace inferplane {

const Path& avx512_path() {
    static constexpr Path path = make_path<Avx512>("avx512");
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
