#include "Model.h"
#include "ReleaseGil.h"

#include <torch/script.h>
#include <torch/cuda.h>
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/jit/ir/ir.h>
#include <torch/csrc/jit/runtime/graph_executor.h>

#include <algorithm>
#include <cstring>
#include <dlfcn.h>
#include <fstream>
#include <stdexcept>
#include <unordered_map>

/// "uqbias-plumed-plugin torch=<version> plumed=<version> end", of Uncertainty.cpp.
extern "C" const char uqbias_plumed_plugin[];

namespace uqbias {

namespace {

std::string firstLine(const std::string& text) {
  return text.substr(0,text.find('\n'));
}

/// "2.9" of "2.9.1+cu128".
std::string majorMinor(const std::string& version) {
  const std::size_t dot=version.find('.');
  return dot==std::string::npos ? version : version.substr(0,version.find('.',dot+1));
}

/// Version of the torch that the process has loaded, which need not be the one compiled with; empty if it does not say.
std::string loadedTorchVersion() {
  const std::string settings=at::show_config();
  const std::string key="TORCH_VERSION=";
  const std::size_t begin=settings.find(key);
  if(begin==std::string::npos) {
    return "";
  }
  const std::size_t from=begin+key.size();
  return settings.substr(from,settings.find_first_of(", \n",from)-from);
}

/// PLUMED unloads plugins when its object is destroyed; torch must stay, its threads and destructors would crash.
void keepTorchLoaded() {
#ifdef __APPLE__
  const char* names[]= {"libtorch.dylib","libtorch_cpu.dylib"};
#else
  const char* names[]= {"libtorch.so","libtorch_cpu.so"};
#endif
  for(const char* name : names) {
    dlopen(name,RTLD_LAZY|RTLD_NOLOAD|RTLD_NODELETE);
  }
}

/// Threads of torch for the length of a call; the host's own number comes back afterwards.
class ThreadGuard {
  int before;
  int now;
public:
  explicit ThreadGuard(int threads): before(at::get_num_threads()), now(threads) {
    if(now!=before) {
      at::set_num_threads(now);
    }
  }
  ~ThreadGuard() {
    if(now!=before) {
      at::set_num_threads(before);
    }
  }
  ThreadGuard(const ThreadGuard&)=delete;
  ThreadGuard& operator=(const ThreadGuard&)=delete;
};

void castTensors(torch::jit::Module& module,torch::Device device,torch::ScalarType dtype) {
  // Module::to(device,dtype) would also cast indices to floating point.
  const auto cast=[&](at::Tensor tensor) {
    const auto wanted=tensor.is_floating_point() ? dtype : tensor.scalar_type();
    tensor.set_data(tensor.detach().to(device,wanted));
    tensor.set_requires_grad(false);
  };
  for(const at::Tensor& tensor : module.parameters()) {
    cast(tensor);
  }
  for(const at::Tensor& tensor : module.buffers()) {
    cast(tensor);
  }
}

void doubleConstants(torch::jit::Block* block);

/// Files hold casts to float32 and constants of it: replace both, so that all arithmetic is in float64.
void doubleConstants(torch::jit::Node* node) {
  using torch::jit::Symbol;
  static const Symbol value=Symbol::attr("value");
  if(node->kind()==torch::jit::prim::Constant && node->hasAttribute(value)
      && node->kindOf(value)==torch::jit::AttributeKind::t) {
    const at::Tensor tensor=node->t(value);
    if(tensor.scalar_type()==at::kFloat) {
      node->t_(value,tensor.to(at::kDouble));
      node->output()->inferTypeFrom(node->t(value));
    }
  }
  const torch::jit::FunctionSchema* schema=node->maybeSchema();
  for(std::size_t i=0; schema && i<schema->arguments().size() && i<node->inputs().size(); ++i) {
    if(schema->arguments()[i].name()!="dtype") {
      continue;
    }
    const auto constant=torch::jit::toIValue(node->input(i));
    if(constant && constant->isInt() && constant->toInt()==static_cast<int64_t>(at::kFloat)) {
      torch::jit::WithInsertPoint at(node);
      node->replaceInput(i,node->owningGraph()->insertConstant(static_cast<int64_t>(at::kDouble)));
    }
  }
  for(torch::jit::Block* inner : node->blocks()) {
    doubleConstants(inner);
  }
}

void doubleConstants(torch::jit::Block* block) {
  for(torch::jit::Node* node : block->nodes()) {
    doubleConstants(node);
  }
}

/// The first n outputs as scalars, whatever container the model returns them in.
std::vector<at::Tensor> scalars(const c10::IValue& output,const Manifest& manifest,std::size_t n) {
  std::vector<at::Tensor> found;
  const auto add=[&](const at::Tensor& tensor) {
    const at::Tensor flat=tensor.reshape({-1});
    for(int64_t i=0; i<flat.numel(); ++i) {
      found.push_back(flat.numel()==1 ? flat.squeeze(0) : flat.select(0,i));
    }
  };
  if(output.isTensor()) {
    const at::Tensor tensor=output.toTensor();
    if(tensor.dim()==0) {
      found.push_back(tensor);
    } else {
      add(tensor);
    }
  } else if(output.isTuple()) {
    for(const c10::IValue& item : output.toTupleRef().elements()) {
      add(item.toTensor());
    }
  } else if(output.isGenericDict()) {
    const auto dict=output.toGenericDict();
    for(const std::string& name : manifest.components) {
      add(dict.at(name).toTensor());
    }
  }
  if(found.size()<n || found.size()!=manifest.components.size()) {
    throw std::runtime_error("the model returns "+std::to_string(found.size())+" values and its manifest names "
                             +std::to_string(manifest.components.size()));
  }
  found.resize(n);
  return found;
}

void copyOut(const at::Tensor& tensor,double* to,double sign) {
  const at::Tensor ready=tensor.detach().to(at::kCPU,at::kDouble).contiguous();
  const double* from=ready.const_data_ptr<double>();
  std::transform(from,from+ready.numel(),to,[sign](double x) {
    return sign*x;
  });
}

}

struct Model::Impl {
  std::string path;
  Manifest manifest;
  std::string warning;
  torch::jit::Module module;
  torch::Device device=torch::kCPU;
  torch::ScalarType dtype=torch::kFloat32;
  int threads=1;

  at::Tensor input(const double* data,int64_t rows,bool differentiate) const {
    // from_blob is of the caller's memory: .to copies, clone where nothing has to be converted.
    at::Tensor tensor=torch::from_blob(const_cast<double*>(data), {rows,3},torch::kFloat64);
    tensor=tensor.to(torch::TensorOptions().device(device).dtype(dtype),false,true);
    return differentiate ? tensor.requires_grad_(true) : tensor;
  }
};

Model::Model(const std::string& path,const std::string& device,bool doublePrecision,int threads):
  impl(std::make_unique<Impl>()) {
  impl->path=path;
  impl->threads=threads;
  impl->dtype=doublePrecision ? torch::kFloat64 : torch::kFloat32;
  const std::string loaded=loadedTorchVersion();
  if(!loaded.empty() && majorMinor(loaded)!=majorMinor(compiledTorchVersion())) {
    throw std::runtime_error("this plugin was compiled against torch "+compiledTorchVersion()+" and the process has loaded torch "
                             +loaded+"; build it again: uqbias plumed --build");
  }
  keepTorchLoaded();
  if(!std::ifstream(path).good()) {
    throw std::runtime_error("no such file: MODEL="+path+"; write one with uqbias.export_torchscript");
  }
  ReleaseGil release;
  ThreadGuard guard(threads);
  std::unordered_map<std::string,std::string> extra {{"manifest.json",""}};
  try {
    impl->device=torch::Device(device);
  } catch(const c10::Error&) {
    throw std::runtime_error("DEVICE="+device+" is not a device; give cpu, cuda or cuda:<index>");
  }
  if(!impl->device.is_cpu() && !impl->device.is_cuda()) {
    throw std::runtime_error("DEVICE="+device+" is not supported; give cpu, cuda or cuda:<index>");
  }
  if(impl->device.is_cuda() && !torch::cuda::is_available()) {
    throw std::runtime_error("DEVICE="+device+" and torch sees no CUDA device; use DEVICE=cpu, or check nvidia-smi and that torch "
                             "is a CUDA build");
  }
  if(impl->device.has_index() && impl->device.is_cuda() && impl->device.index()>=static_cast<int>(torch::cuda::device_count())) {
    throw std::runtime_error("DEVICE="+device+" and torch sees "+std::to_string(torch::cuda::device_count())+" CUDA devices");
  }
  try {
    impl->module=torch::jit::load(path,torch::kCPU,extra);
  } catch(const std::exception& error) {
    throw std::runtime_error("MODEL="+path+" is not a TorchScript file ("+firstLine(error.what())
                             +"); write one with uqbias.export_torchscript");
  }
  if(extra["manifest.json"].empty()) {
    throw std::runtime_error("MODEL="+path+" has no manifest.json; write it with uqbias.export_torchscript");
  }
  try {
    impl->manifest=parseManifest(extra["manifest.json"]);
  } catch(const std::runtime_error& error) {
    throw std::runtime_error("MODEL="+path+": "+error.what()+"; write the file again with uqbias.export_torchscript");
  }
  if(impl->manifest.withForces && (impl->manifest.periodic || impl->manifest.hasComponents)) {
    throw std::runtime_error("MODEL="+path+" holds the forces of "+(impl->manifest.periodic ? "a periodic model without"
                             " the derivative in the box" : "one of several components")+"; export it with with_forces=False");
  }
  const std::string exported=majorMinor(impl->manifest.torchVersion);
  if(exported!=majorMinor(compiledTorchVersion())) {
    impl->warning=path+" was exported with torch "+impl->manifest.torchVersion+", this plugin uses torch "
                  +compiledTorchVersion();
  }
  try {
    impl->module.eval();
    castTensors(impl->module,impl->device,impl->dtype);
    if(doublePrecision) {
      for(const torch::jit::Module& part : impl->module.modules()) {
        if(const auto method=part.find_method("forward")) {
          doubleConstants(method->graph()->block());
        }
      }
    }
    impl->module=torch::jit::freeze(impl->module);
  } catch(const std::exception& error) {
    throw std::runtime_error("MODEL="+path+" cannot be prepared on "+device+" ("+firstLine(error.what())+")");
  }
}

Model::~Model()=default;

const Manifest& Model::manifest() const {
  return impl->manifest;
}

const std::string& Model::warning() const {
  return impl->warning;
}

void Model::evaluate(const double* positions,const double* box,std::size_t nValues,
                     double* values,double* gradients,double* boxGradients) {
  ReleaseGil release;
  ThreadGuard threads(impl->threads);
  // The host may be inside torch.no_grad() or torch.inference_mode().
  c10::InferenceMode inference(false);
  const bool byAutograd=gradients && !impl->manifest.withForces;
  torch::AutoGradMode grad(byAutograd);
  // The optimiser would rewrite the graph after the first two calls: 0.1 s at each, and float32 values that differ in their
  // last digits from those of a restarted run, to gain 5 %. Freezing has done the rest.
  torch::jit::GraphOptimizerEnabledGuard optimise(false);
  const int64_t n=static_cast<int64_t>(impl->manifest.atomicNumbers.size());
  try {
    std::vector<c10::IValue> inputs {impl->input(positions,n,byAutograd)};
    if(box) {
      inputs.emplace_back(impl->input(box,3,byAutograd && boxGradients));
    }
    const c10::IValue output=impl->module.forward(inputs);
    if(impl->manifest.withForces) {
      const auto& pair=output.toTupleRef().elements();
      values[0]=pair[0].toTensor().item<double>();
      if(gradients) {
        copyOut(pair[1].toTensor(),gradients,-1.0);
      }
      return;
    }
    const std::vector<at::Tensor> found=scalars(output,impl->manifest,nValues);
    for(std::size_t k=0; k<nValues; ++k) {
      values[k]=found[k].item<double>();
      if(!gradients) {
        continue;
      }
      torch::autograd::variable_list points {inputs[0].toTensor()};
      if(box && boxGradients) {
        points.push_back(inputs[1].toTensor());
      }
      // A component that does not depend on an input has no gradient there, which is not an error.
      const auto grads=torch::autograd::grad({found[k]},points, {},k+1<nValues,false,true);
      const auto write=[&](const at::Tensor& from,double* to,int64_t size) {
        if(from.defined()) {
          copyOut(from,to,1.0);
        } else {
          std::fill(to,to+size,0.0);
        }
      };
      write(grads[0],gradients+k*3*n,3*n);
      if(points.size()>1) {
        write(grads[1],boxGradients+9*k,9);
      }
    }
  } catch(const c10::Error& error) {
    throw std::runtime_error("the model "+impl->path+" failed: "+firstLine(error.what_without_backtrace()));
  } catch(const std::exception& error) {
    throw std::runtime_error("the model "+impl->path+" failed: "+firstLine(error.what()));
  }
}

std::string compiledTorchVersion() {
  const std::string marker=uqbias_plumed_plugin;
  const std::size_t begin=marker.find("torch=")+6;
  return marker.substr(begin,marker.find(' ',begin)-begin);
}

}
