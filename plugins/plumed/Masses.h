#ifndef UQBIAS_PLUMED_MASSES_H
#define UQBIAS_PLUMED_MASSES_H

#include <string>
#include <vector>

namespace uqbias {

/// One line about atoms whose mass (amu) is not that of their element within 20 %, or an empty string. Engines that pass
/// no masses (not finite, zero, or one for all atoms) are not compared.
std::string compareMasses(const std::vector<int>& atomicNumbers,const std::vector<double>& masses);

}

#endif
