#ifndef UQBIAS_PLUMED_RELEASEGIL_H
#define UQBIAS_PLUMED_RELEASEGIL_H

namespace uqbias {

/// Gives Python's global lock back while in scope, if this thread holds it: torch's autograd refuses to run under it.
/// Python's symbols are looked up at run time, so that the same library works where there is no Python.
class ReleaseGil {
  void* state=nullptr;
public:
  ReleaseGil();
  ~ReleaseGil();
  ReleaseGil(const ReleaseGil&)=delete;
  ReleaseGil& operator=(const ReleaseGil&)=delete;
};

}

#endif
