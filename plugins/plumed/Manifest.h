#ifndef UQBIAS_PLUMED_MANIFEST_H
#define UQBIAS_PLUMED_MANIFEST_H

#include <string>
#include <vector>

namespace uqbias {

/// What uqbias.export_torchscript writes beside the weights, as far as the action needs it.
struct Manifest {
  std::string output;
  std::string unit;
  bool withForces=false;
  bool periodic=false;
  std::vector<int> atomicNumbers;
  /// Names and units of the elements of the tensor [K] that the model returns; one of each for a scalar.
  std::vector<std::string> components;
  std::vector<std::string> units;
  /// Whether the file names its components.
  bool hasComponents=false;
  std::string torchVersion;
};

/// Parse manifest.json; throws std::runtime_error with one line.
Manifest parseManifest(const std::string& text);

}

#endif
