// Python entries that record and replay, and what a tape keeps alive.
#include "tape.h"

#include <algorithm>
#include <cstdint>

namespace inferplane {

thread_local Tape* Tape::recording = nullptr;

Tape::~Tape() {
    if (recording == this) recording = nullptr;
    for (PyObject* array : held_) Py_DECREF(array);
}

void Tape::spoil() {
    calls_.insert(calls_.begin(), [] { throw Invalid("replay: the step read numbers while it was recorded, and others may stand there now"); });
}

// Results of this recording are left to Python: their pages go to later results as soon as nobody needs them.
void Tape::hold(PyObject* argument) {
    for (PyObject* array : arrays_in(argument)) {
        if (std::find(made_.begin(), made_.end(), memory_of(array)) != made_.end()) continue;
        if (std::find(held_.begin(), held_.end(), array) != held_.end()) continue;
        Py_INCREF(array);
        held_.push_back(array);
    }
}

void Tape::replay() const {
    for (const std::function<void()>& call : calls_) call();
}

namespace {

constexpr const char *pages_name = "inferplane.pages", *tape_name = "inferplane.tape";

using SharedPages = std::shared_ptr<IdlePages>;

template <class Held> void drop(PyObject* capsule) { delete static_cast<Held*>(PyCapsule_GetPointer(capsule, PyCapsule_GetName(capsule))); }

template <class Held> PyObject* wrap(Held* held, const char* name) {
    PyObject* capsule = PyCapsule_New(held, name, drop<Held>);
    if (!capsule) {
        delete held;
        throw PythonError();
    }
    return capsule;
}

template <class Held> Held& unwrap(PyObject* capsule, const char* name) {
    void* held = PyCapsule_GetPointer(capsule, name);
    if (!held) throw PythonError();
    return *static_cast<Held*>(held);
}

PyObject* py_tape_pages(const Arguments&) { return wrap(new SharedPages(std::make_shared<IdlePages>(INT64_MAX)), pages_name); }

PyObject* py_record(const Arguments& a) {
    INFERPLANE_REQUIRE(!Tape::recording, "record: this thread records already");
    Tape* const tape = new Tape(unwrap<SharedPages>(a.object(0), pages_name));
    PyObject* capsule = wrap(tape, tape_name);
    Tape::recording = tape;
    return capsule;
}

PyObject* py_stop_recording(const Arguments&) {
    Tape::recording = nullptr;
    Py_RETURN_NONE;
}

PyObject* py_spoil_recording(const Arguments&) {
    if (Tape::recording) Tape::recording->spoil();
    Py_RETURN_NONE;
}

PyObject* py_replay(const Arguments& a) {
    const Tape& tape = unwrap<Tape>(a.object(0), tape_name);
    {
        WithoutGil free;
        tape.replay();
    }
    Py_RETURN_NONE;
}

}  // namespace

PyMethodDef* tape_methods() {
    static PyMethodDef methods[] = {
        INFERPLANE_METHOD(tape_pages, 0, "tape_pages() -> pages for the results of tapes that are never replayed at the same time."),
        INFERPLANE_METHOD(record, 1, "record(pages) -> tape: what this thread calls from now on runs and is kept on it."),
        INFERPLANE_METHOD(stop_recording, 0, "stop_recording(): the tape is whole."),
        INFERPLANE_METHOD(spoil_recording, 0, "spoil_recording(): what this thread records, if it does, cannot be replayed."),
        INFERPLANE_METHOD(replay, 1, "replay(tape): its calls once more, on the same arrays; their shapes are not checked again, ids are."),
        {nullptr, nullptr, 0, nullptr}};
    return methods;
}

}  // namespace inferplane
