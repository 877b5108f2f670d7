// A step's native calls, recorded while they run for the first time and replayed in one call, without Python in between.
//
// A tape keeps what its calls point to: arrays that came from elsewhere are held, results made while it was recorded lie in
// pages that only tapes of the same owner use, one after the other.
#pragma once

#include <functional>

#include "arguments.h"
#include "memory.h"

namespace inferplane {

class Tape {
  public:
    static thread_local Tape* recording;  // of this thread, or null

    explicit Tape(std::shared_ptr<IdlePages> pages) : pages_(std::move(pages)) {}
    ~Tape();
    Tape(const Tape&) = delete;

    void add(std::function<void()> call) { calls_.push_back(std::move(call)); }
    void spoil();  // it must never be replayed
    void hold(PyObject* argument);  // an array, or a sequence of them
    const std::shared_ptr<IdlePages>& pages() const { return pages_; }
    void made(const void* result) { made_.push_back(result); }
    void replay() const;

  private:
    std::shared_ptr<IdlePages> pages_;
    std::vector<std::function<void()>> calls_;
    std::vector<PyObject*> held_;
    std::vector<const void*> made_;
};

// Does a call's work while other Python threads run. Whatever depends on numbers in arrays is checked in there: a tape repeats it.
template <class Work> PyObject* launch(Work work) {
    if (Tape::recording) Tape::recording->add(work);
    {
        WithoutGil free;
        work();
    }
    Py_RETURN_NONE;
}

}  // namespace inferplane
