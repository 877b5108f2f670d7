// The error of a wrong argument: becomes a ValueError.
#pragma once

#include <stdexcept>

namespace inferplane {

struct Invalid : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

}  // namespace inferplane
