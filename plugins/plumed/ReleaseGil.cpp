#ifndef _GNU_SOURCE
// RTLD_DEFAULT of glibc.
#define _GNU_SOURCE
#endif
#include "ReleaseGil.h"

#include <dlfcn.h>

namespace uqbias {

namespace {

struct Python {
  int (*isInitialized)();
  int (*holdsLock)();
  void* (*save)();
  void (*restore)(void*);

  Python():
    isInitialized(find<int(*)()>("Py_IsInitialized")),
    holdsLock(find<int(*)()>("PyGILState_Check")),
    save(find<void*(*)()>("PyEval_SaveThread")),
    restore(find<void(*)(void*)>("PyEval_RestoreThread")) {}

  template<class T> static T find(const char* name) {
    return reinterpret_cast<T>(dlsym(RTLD_DEFAULT,name));
  }

  bool isPresent() const {
    return isInitialized && holdsLock && save && restore;
  }
};

const Python& python() {
  static const Python found;
  return found;
}

}

ReleaseGil::ReleaseGil() {
  const Python& py=python();
  if(py.isPresent() && py.isInitialized() && py.holdsLock()) {
    state=py.save();
  }
}

ReleaseGil::~ReleaseGil() {
  if(state) {
    python().restore(state);
  }
}

}
