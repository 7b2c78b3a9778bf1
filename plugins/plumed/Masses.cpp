#include "Masses.h"

#include <algorithm>
#include <cmath>
#include <sstream>

namespace uqbias {

namespace {

/// Standard atomic weights in amu from hydrogen on (IUPAC, abridged).
const double weights[]= {
  1.008, 4.003, 6.94, 9.012, 10.81, 12.01, 14.01, 16, 19, 20.18, 22.99, 24.3, 26.98, 28.09, 30.97, 32.06, 35.45,
  39.95, 39.1, 40.08, 44.96, 47.87, 50.94, 52, 54.94, 55.84, 58.93, 58.69, 63.55, 65.38, 69.72, 72.63, 74.92,
  78.97, 79.9, 83.8, 85.47, 87.62, 88.91, 91.22, 92.91, 95.95, 97.91, 101.1, 102.9, 106.4, 107.9, 112.4, 114.8,
  118.7, 121.8, 127.6, 126.9, 131.3, 132.9, 137.3, 138.9, 140.1, 140.9, 144.2, 144.9, 150.4, 152.0, 157.2,
  158.9, 162.5, 164.9, 167.3, 168.9, 173.1, 175.0, 178.5, 180.9, 183.8, 186.2, 190.2, 192.2, 195.1, 197.0,
  200.6, 204.4, 207.2, 209.0, 209.0, 210.0, 222.0, 223.0, 226.0, 227.0, 232.0, 231.0, 238.0, 237.0, 244.1,
  243.1, 247.1, 247.1, 251.1, 252.1, 257.1, 258.1, 259.1, 262.1
};
const int nElements=sizeof(weights)/sizeof(weights[0]);

}

std::string compareMasses(const std::vector<int>& atomicNumbers,const std::vector<double>& masses) {
  const bool isGiven=std::all_of(masses.begin(),masses.end(),[](double mass) {
    return std::isfinite(mass) && mass>0.0;
  });
  const bool isUnity=std::all_of(masses.begin(),masses.end(),[](double mass) {
    return mass==1.0;
  });
  if(!isGiven || isUnity || masses.size()!=atomicNumbers.size()) {
    return "";
  }
  std::ostringstream line;
  int nOdd=0;
  for(std::size_t i=0; i<masses.size(); ++i) {
    const int number=atomicNumbers[i];
    if(number<1 || number>nElements || std::abs(masses[i]-weights[number-1])<=0.2*weights[number-1]) {
      continue;
    }
    if(nOdd++<3) {
      line<<(nOdd>1 ? ", " : "")<<"atom "<<i+1<<" of ATOMS has "<<masses[i]<<" amu and the model's element "<<number
          <<" has "<<weights[number-1];
    }
  }
  if(nOdd>3) {
    line<<" and "<<nOdd-3<<" more";
  }
  return nOdd ? line.str()+"; check the order of ATOMS (hydrogen mass repartitioning and isotopes also do this)" : "";
}

}
