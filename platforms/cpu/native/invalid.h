// The error of a wrong argument: becomes a ValueError.
#pragma once

#include <stdexcept>

namespace inferplane {

struct Invalid : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

// The text is built only where the condition fails.
#define INFERPLANE_REQUIRE(condition, text)                \
    do {                                                   \
        if (!(condition)) throw ::inferplane::Invalid(text); \
    } while (false)

}  // namespace inferplane
