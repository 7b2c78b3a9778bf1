#include "Manifest.h"

#include <cctype>
#include <cstdlib>
#include <map>
#include <stdexcept>

namespace uqbias {

namespace {

/// A JSON value; the manifest is small, so every kind has its member.
struct Json {
  enum class Kind { null, boolean, number, string, list, object };
  Kind kind=Kind::null;
  bool boolean=false;
  double number=0.0;
  std::string string;
  std::vector<Json> list;
  std::map<std::string,Json> object;

  const Json* find(const std::string& key) const {
    const auto found=object.find(key);
    return found==object.end() ? nullptr : &found->second;
  }
};

class Reader {
public:
  explicit Reader(const std::string& text): text(text) {}

  Json read() {
    Json value=readValue();
    skipSpace();
    if(at!=text.size()) {
      fail();
    }
    return value;
  }

private:
  const std::string& text;
  std::size_t at=0;

  [[noreturn]] void fail() const {
    throw std::runtime_error("manifest.json is damaged at character "+std::to_string(at));
  }

  void skipSpace() {
    while(at<text.size() && std::isspace(static_cast<unsigned char>(text[at]))) {
      ++at;
    }
  }

  char peek() {
    skipSpace();
    if(at>=text.size()) {
      fail();
    }
    return text[at];
  }

  bool accept(char wanted) {
    if(peek()!=wanted) {
      return false;
    }
    ++at;
    return true;
  }

  void expect(char wanted) {
    if(!accept(wanted)) {
      fail();
    }
  }

  bool acceptWord(const std::string& word) {
    if(text.compare(at,word.size(),word)!=0) {
      return false;
    }
    at+=word.size();
    return true;
  }

  Json readValue() {
    Json value;
    const char first=peek();
    if(first=='{') {
      value.kind=Json::Kind::object;
      readObject(value);
    } else if(first=='[') {
      value.kind=Json::Kind::list;
      readList(value);
    } else if(first=='"') {
      value.kind=Json::Kind::string;
      value.string=readString();
    } else if(acceptWord("true") || acceptWord("false")) {
      value.kind=Json::Kind::boolean;
      value.boolean=first=='t';
    } else if(!acceptWord("null")) {
      value.kind=Json::Kind::number;
      const char* begin=text.c_str()+at;
      char* end=nullptr;
      value.number=std::strtod(begin,&end);
      if(end==begin) {
        fail();
      }
      at+=static_cast<std::size_t>(end-begin);
    }
    return value;
  }

  void readObject(Json& value) {
    expect('{');
    if(accept('}')) {
      return;
    }
    do {
      if(peek()!='"') {
        fail();
      }
      const std::string key=readString();
      expect(':');
      value.object[key]=readValue();
    } while(accept(','));
    expect('}');
  }

  void readList(Json& value) {
    expect('[');
    if(accept(']')) {
      return;
    }
    do {
      value.list.push_back(readValue());
    } while(accept(','));
    expect(']');
  }

  std::string readString() {
    expect('"');
    std::string found;
    while(at<text.size() && text[at]!='"') {
      if(text[at]!='\\') {
        found+=text[at++];
        continue;
      }
      if(++at>=text.size()) {
        fail();
      }
      const char escaped=text[at++];
      if(escaped=='u') {
        // Names and units are ASCII; any other character only appears in free text.
        found+='?';
        at+=4;
      } else {
        found+=escaped=='n' ? '\n' : escaped=='t' ? '\t' : escaped;
      }
    }
    if(at>=text.size()) {
      fail();
    }
    ++at;
    return found;
  }
};

std::string getString(const Json& object,const std::string& key) {
  const Json* found=object.find(key);
  if(!found || found->kind!=Json::Kind::string) {
    throw std::runtime_error("manifest.json has no text '"+key+"'");
  }
  return found->string;
}

bool getFlag(const Json& object,const std::string& key) {
  const Json* found=object.find(key);
  return found && found->boolean;
}

std::vector<std::string> getStrings(const Json& object,const std::string& key) {
  std::vector<std::string> strings;
  if(const Json* found=object.find(key)) {
    for(const Json& item : found->list) {
      strings.push_back(item.string);
    }
  }
  return strings;
}

}

Manifest parseManifest(const std::string& text) {
  const Json json=Reader(text).read();
  if(json.kind!=Json::Kind::object || getString(json,"format")!="uqbias-torchscript") {
    throw std::runtime_error("manifest.json is not of format uqbias-torchscript");
  }
  Manifest manifest;
  manifest.output=getString(json,"output");
  manifest.unit=getString(json,"unit");
  manifest.withForces=getFlag(json,"with_forces");
  manifest.periodic=getFlag(json,"periodic");
  if(const Json* numbers=json.find("atomic_numbers")) {
    for(const Json& number : numbers->list) {
      manifest.atomicNumbers.push_back(static_cast<int>(number.number));
    }
  }
  if(manifest.atomicNumbers.empty()) {
    throw std::runtime_error("manifest.json has no atomic_numbers");
  }
  manifest.components=getStrings(json,"components");
  manifest.hasComponents=!manifest.components.empty();
  manifest.units=getStrings(json,"units");
  if(!manifest.hasComponents) {
    manifest.components={manifest.output};
    manifest.units={manifest.unit};
  } else if(manifest.units.empty()) {
    for(const std::string& name : manifest.components) {
      const bool isEnergy=name=="energy" || name=="biased";
      manifest.units.push_back(name==manifest.output ? manifest.unit : isEnergy ? "kJ/mol" : "");
    }
  }
  if(manifest.units.size()!=manifest.components.size()) {
    throw std::runtime_error("manifest.json has "+std::to_string(manifest.components.size())+" components and "
                             +std::to_string(manifest.units.size())+" units");
  }
  if(const Json* versions=json.find("versions")) {
    if(const Json* torch=versions->find("torch")) {
      manifest.torchVersion=torch->string;
    }
  }
  return manifest;
}

}
