// The AVX2 path: FMA and F16C come with it on every processor since 2013.
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
#pragma GCC target("avx2,fma,f16c")
#include "isa_avx2.h"
#include "path_kernel.h"

namespace inferplane {

const Path& avx2_path() {
    static constexpr Path path = make_path<Avx2>("avx2");
    return path;
}

}  // namespace inferplane
#pragma GCC pop_options
#endif
