#include "Masses.h"
#include "Model.h"

#include "colvar/Colvar.h"
#include "core/ActionRegister.h"
#include "core/PlumedMain.h"
#include "config/version.h"
#include "tools/Tensor.h"
#include "tools/Units.h"
// PLUMED 2.9 keeps its units there.
#if __has_include("core/Atoms.h")
#define UQBIAS_PLUMED_2_9 1
#include "core/Atoms.h"
#endif

#include <cmath>
#include <memory>
#include <string>
#include <vector>

namespace PLMD {
namespace uqbias {

//+PLUMEDOC COLVAR UNCERTAINTY
/*
Calculate the uncertainty of a machine-learned potential, or another output of its model, for a group of atoms.

The model is a TorchScript file that `uqbias.export_torchscript` wrote. See UNCERTAINTY.md beside this file.

```plumed
LOAD FILE=./libuqbias.so
u: UNCERTAINTY ATOMS=1-22 MODEL=cv.pt
METAD ARG=u SIGMA=0.1 HEIGHT=1.0 PACE=500 BIASFACTOR=10 FILE=HILLS
```

*/
//+ENDPLUMEDOC

/// For the manual of PLUMED 2.11; earlier versions have no such function, or one of other arguments.
template<class K> auto describeValue(K& keys,int) -> decltype(keys.setValueDescription("scalar","")) {
  keys.setValueDescription("scalar","the first output of the model");
}

template<class K> void describeValue(K&,long) {}

class Uncertainty : public Colvar {
  std::unique_ptr<::uqbias::Model> model;
  bool pbc=true;
  bool components=false;
  bool massesCompared=false;
  /// Values per model unit: 1 unless the output is an energy.
  std::vector<double> scales;
  std::vector<double> positions;
  std::vector<double> box;
  std::vector<double> values;
  std::vector<double> gradients;
  std::vector<double> boxGradients;

  double nmPerLength();
  double kjPerEnergy();
  double amuPerMass();
  bool hasMasses() const;
  bool naturalUnits();
  void describe(const std::string& path,const std::string& device,bool doublePrecision,int threads);
  void compareMasses();
  void setDerivatives(Value* value,std::size_t k);

public:
  explicit Uncertainty(const ActionOptions&);
  void calculate() override;
  static void registerKeywords(Keywords& keys);
};

PLUMED_REGISTER_ACTION(Uncertainty,"UNCERTAINTY")

void Uncertainty::registerKeywords(Keywords& keys) {
  Colvar::registerKeywords(keys);
  keys.add("atoms","ATOMS","the atoms of the model, in the order of its training data");
  keys.add("compulsory","MODEL","file written by uqbias.export_torchscript");
  keys.add("compulsory","DEVICE","cpu","where the model runs: cpu, cuda or cuda:<index>");
  keys.add("compulsory","THREADS","1","threads of torch during the calculation");
  keys.addFlag("FLOAT64",false,"hold the weights and calculate in double precision");
  keys.addFlag("COMPONENTS",false,"give every output of a model with several: value is the first, the others have their own names");
  ActionWithValue::useCustomisableComponents(keys);
  describeValue(keys,0);
}

Uncertainty::Uncertainty(const ActionOptions& ao):
  PLUMED_COLVAR_INIT(ao) {
  std::vector<AtomNumber> atoms;
  parseAtomList("ATOMS",atoms);
  std::string path, device;
  parse("MODEL",path);
  parse("DEVICE",device);
  int threads=1;
  parse("THREADS",threads);
  bool doublePrecision=false, nopbc=false;
  parseFlag("FLOAT64",doublePrecision);
  parseFlag("COMPONENTS",components);
  parseFlag("NOPBC",nopbc);
  checkRead();
  pbc=!nopbc;
  if(threads<1) {
    error("THREADS="+std::to_string(threads)+", it must be at least 1");
  }
  if(atoms.empty()) {
    error("no ATOMS; give the atoms of the model, such as ATOMS=1-22");
  }
  if(naturalUnits()) {
    error("UNITS NATURAL has no nm to convert to; use UNITS LENGTH=... ENERGY=...");
  }
  try {
    model=std::make_unique<::uqbias::Model>(path,device,doublePrecision,threads);
  } catch(const std::runtime_error& fault) {
    error(fault.what());
  }
  const auto& manifest=model->manifest();
  if(atoms.size()!=manifest.atomicNumbers.size()) {
    error("ATOMS has "+std::to_string(atoms.size())+" atoms and MODEL="+path+" was made for "
          +std::to_string(manifest.atomicNumbers.size())+"; give its atoms in the order of the training data");
  }
  if(components && !manifest.hasComponents) {
    error("COMPONENTS and MODEL="+path+" gives one value only; leave COMPONENTS out, or export the model with components=[...]");
  }
  if(manifest.periodic && nopbc) {
    error("NOPBC and MODEL="+path+" is periodic; leave NOPBC out, or export the model with periodic=False");
  }
  const std::size_t n=components ? manifest.components.size() : 1;
  for(std::size_t k=0; k<n; ++k) {
    scales.push_back(manifest.units[k]=="kJ/mol" ? 1.0/kjPerEnergy() : 1.0);
    if(!components) {
      addValueWithDerivatives();
      setNotPeriodic();
    } else {
      const std::string name=k==0 ? "value" : manifest.components[k];
      addComponentWithDerivatives(name);
      componentIsNotPeriodic(name);
    }
  }
  positions.resize(3*atoms.size());
  box.resize(9);
  values.resize(n);
  gradients.resize(n*3*atoms.size());
  boxGradients.resize(9*n);
  describe(path,device,doublePrecision,threads);
  requestAtoms(atoms);
}

void Uncertainty::describe(const std::string& path,const std::string& device,bool doublePrecision,int threads) {
  const auto& manifest=model->manifest();
  log<<"  model "<<path<<" for "<<manifest.atomicNumbers.size()<<" atoms, "
     <<(manifest.withForces ? "with its own forces" : "differentiated by autograd")<<"\n";
  for(std::size_t k=0; k<scales.size(); ++k) {
    log<<"  "<<(components ? getPntrToComponent(static_cast<int>(k))->getName() : getLabel())<<" is "<<manifest.components[k]<<", in "
       <<(scales[k]!=1.0 ? "PLUMED's energy unit" : manifest.units[k].empty() ? "the model's unit" : manifest.units[k])<<"\n";
  }
  log<<"  on "<<device<<" in "<<(doublePrecision ? "double" : "single")<<" precision, "<<threads<<" thread(s), torch "
     <<::uqbias::compiledTorchVersion()<<"\n";
  log<<"  "<<(manifest.periodic ? "with periodic boundary conditions in the model"
              : pbc ? "made whole across periodic boundaries, in the order of ATOMS" : "without periodic boundary conditions")<<"\n";
  if(!model->warning().empty()) {
    log<<"  WARNING: "<<model->warning()<<"\n";
  }
}

#ifdef UQBIAS_PLUMED_2_9
double Uncertainty::nmPerLength() {
  return plumed.getAtoms().getUnits().getLength();
}

double Uncertainty::kjPerEnergy() {
  return plumed.getAtoms().getUnits().getEnergy();
}

double Uncertainty::amuPerMass() {
  return plumed.getAtoms().getUnits().getMass();
}

bool Uncertainty::naturalUnits() {
  return plumed.getAtoms().usingNaturalUnits();
}

bool Uncertainty::hasMasses() const {
  // They are not numbers where the engine gave none.
  return true;
}
#else
double Uncertainty::nmPerLength() {
  return getUnits().getLength();
}

double Uncertainty::kjPerEnergy() {
  return getUnits().getEnergy();
}

double Uncertainty::amuPerMass() {
  return getUnits().getMass();
}

bool Uncertainty::naturalUnits() {
  return usingNaturalUnits();
}

bool Uncertainty::hasMasses() const {
  return massesWereSet;
}
#endif

void Uncertainty::compareMasses() {
  massesCompared=true;
  std::vector<double> masses(getNumberOfAtoms());
  if(hasMasses()) {
    for(unsigned i=0; i<masses.size(); ++i) {
      masses[i]=getMass(i)*amuPerMass();
    }
  }
  const std::string fault=::uqbias::compareMasses(model->manifest().atomicNumbers,masses);
  if(!fault.empty()) {
    log<<"  WARNING: "<<getLabel()<<": "<<fault<<"\n";
  }
}

void Uncertainty::calculate() {
  if(!massesCompared) {
    compareMasses();
  }
  if(pbc) {
    makeWhole();
  }
  const double length=nmPerLength();
  const unsigned n=getNumberOfAtoms();
  for(unsigned i=0; i<n; ++i) {
    for(unsigned d=0; d<3; ++d) {
      positions[3*i+d]=length*getPosition(i)[d];
    }
  }
  const bool periodic=model->manifest().periodic;
  if(periodic) {
    if(getBox().determinant()==0.0) {
      error("the model is periodic and the engine gives no box");
    }
    for(unsigned i=0; i<3; ++i) {
      for(unsigned d=0; d<3; ++d) {
        box[3*i+d]=length*getBox()(i,d);
      }
    }
  }
  const bool differentiate=!doNotCalculateDerivatives();
  try {
    model->evaluate(positions.data(),periodic ? box.data() : nullptr,values.size(),values.data(),
                    differentiate ? gradients.data() : nullptr,periodic ? boxGradients.data() : nullptr);
  } catch(const std::runtime_error& fault) {
    error(fault.what());
  }
  for(std::size_t k=0; k<values.size(); ++k) {
    Value* value=components ? getPntrToComponent(static_cast<int>(k)) : getPntrToValue();
    value->set(scales[k]*values[k]);
    if(differentiate) {
      setDerivatives(value,k);
    }
  }
}

void Uncertainty::setDerivatives(Value* value,std::size_t k) {
  const unsigned n=getNumberOfAtoms();
  const double scale=scales[k]*nmPerLength();
  const double* gradient=gradients.data()+k*3*n;
  Tensor virial;
  for(unsigned i=0; i<n; ++i) {
    const Vector derivative(scale*gradient[3*i],scale*gradient[3*i+1],scale*gradient[3*i+2]);
    setAtomsDerivatives(value,static_cast<int>(i),derivative);
    virial-=Tensor(getPosition(i),derivative);
  }
  if(model->manifest().periodic) {
    // Scaled positions stay when the cell is strained: the explicit derivative in the lattice vectors adds to x (x) dE/dx.
    Tensor explicitPart;
    for(unsigned i=0; i<3; ++i) {
      for(unsigned d=0; d<3; ++d) {
        explicitPart(i,d)=scale*boxGradients[9*k+3*i+d];
      }
    }
    virial-=matmul(getBox().transpose(),explicitPart);
  }
  setBoxDerivatives(value,virial);
}

}
}

/// What the library was compiled against; uqbias.plumed.build reads it from the file without loading it.
extern "C" const char uqbias_plumed_plugin[];
const char uqbias_plumed_plugin[]="uqbias-plumed-plugin torch=" UQBIAS_TORCH_VERSION " plumed=" PLUMED_VERSION_LONG " end";
