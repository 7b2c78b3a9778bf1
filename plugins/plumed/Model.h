#ifndef UQBIAS_PLUMED_MODEL_H
#define UQBIAS_PLUMED_MODEL_H

#include "Manifest.h"

#include <memory>
#include <string>
#include <vector>

namespace uqbias {

/// A TorchScript file of uqbias.export_torchscript on one device. Nothing of torch shows in this header, so that
/// torch and PLUMED never meet in one translation unit.
class Model {
public:
  /// device: cpu, cuda or cuda:<index>. doublePrecision: weights and arithmetic in float64. threads: of torch, per call.
  /// Throws std::runtime_error with one line that names the file.
  Model(const std::string& path,const std::string& device,bool doublePrecision,int threads);
  ~Model();

  const Manifest& manifest() const;

  /// Something that the user should know though the model works; empty if there is nothing.
  const std::string& warning() const;

  /// positions: [N,3] nm. box: [3,3] nm, rows are lattice vectors, nullptr for a model that takes none.
  /// The first nValues components: values [n], gradients [n,N,3] per nm, boxGradients [n,3,3] per nm at fixed
  /// positions; gradients and boxGradients may be nullptr. Throws std::runtime_error.
  void evaluate(const double* positions,const double* box,std::size_t nValues,
                double* values,double* gradients,double* boxGradients);

private:
  struct Impl;
  std::unique_ptr<Impl> impl;
};

/// Version of torch whose headers this library was compiled with, such as 2.9.1+cu128.
std::string compiledTorchVersion();

}

#endif
