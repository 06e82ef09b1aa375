#include "pipeline/plan/device_rates.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <functional>

#include "base/error.h"
#include "base/json_file.h"
#include "base/quote.h"
#include "stages/quantize/block_cost.h"

namespace roundhouse {
namespace {

// Of GPUs nothing here was measured. Peaks are those of the vendor's data sheets; of products 80 % of the dense peak and in F32
// 75 % are taken as reached, of attention what cuDNN's own benchmark reports for 2048 causal tokens on an H200 (484 TFLOP/s
// forward, 370 backward), in proportion for the others. Links: NVLink 4 and 3 at 80 % of 450 and 300 GB/s a way, one 400 (A100:
// 200) Gb/s adapter a GPU, PCIe 5 and 4 at 55 and 25 GB/s. Hosts: load, commit, pack and host messages as measured on two processors,
// for a rank: 2.3 GB/s (a 70B block in 0.73 s; 1.3 s by one thread), 4.1e9 and 355 million weights/s, and 3 GB/s. A GPU's host has
// more processors a rank, so that these are rather slow. Rounding is bound by memory, at 20 bytes a weight and half of the memory's
// rate; clustering is a guess, 50 times slower. File systems differ most: 5 GB/s a node and 40 together are a parallel one that
// is not idle; give your own by --rates.
DeviceRates gpu(const std::string& name, double matmul, double f32, double attention,
                double memory_rate, double link, double node_link, double copy, double gib) {
  DeviceRates rates;
  rates.name = name;
  rates.source = "data sheets and shares of them, nothing measured";
  rates.matmul = matmul;
  rates.f32 = f32;
  rates.attention = attention;
  rates.round = memory_rate / 40;
  rates.cluster = rates.round / 50;
  rates.commit = 4.1e9;
  rates.pack = 3.55e8;
  rates.load = 2.3e9;
  rates.host_copy = copy;
  rates.team_link = link;
  rates.node_link = node_link;
  rates.host_message = 3e9;
  rates.file_read = rates.file_write = 5e9;
  rates.file_system = 40e9;
  rates.message_seconds = 3e-5;
  rates.unit_seconds = 0.05;
  rates.ranks_a_node = 8;
  rates.device_bytes = gib * 0x1p30;
  rates.host_bytes = 2e12;
  rates.program_bytes = 1.5e9;
  return rates;
}

// `roundhouse plan configs/tiny-world.yaml --measure` and configs of 2048-wide models on two processors of a shared virtual machine
// (AVX-512), two threads.
DeviceRates cpu() {
  DeviceRates rates;
  rates.name = "cpu";
  rates.source = "measured on two processors of a virtual machine";
  rates.is_host = true;
  rates.matmul = 2.0e11;
  rates.f32 = 1.2e11;
  rates.attention = 3e10;
  rates.round = 1e8;
  rates.cluster = 1.5e6;
  rates.commit = 4.1e9;
  rates.pack = 2e8;
  rates.load = 1.3e9;
  rates.host_copy = 0;
  rates.team_link = rates.node_link = rates.host_message = 3e9;
  rates.file_read = 1e9;
  rates.file_write = 5e8;
  rates.file_system = 1e9;
  rates.message_seconds = 2e-5;
  rates.unit_seconds = 0.02;
  rates.ranks_a_node = 2;
  rates.host_bytes = 24.0 * 0x1p30;
  rates.program_bytes = 2.9e7;  // of a run that finds everything done
  return rates;
}

// cpu_precision: bf16, on a processor that has such products: 1.7 to 1.9 times the operations a second (docs/results.md).
DeviceRates cpu_bf16() {
  DeviceRates rates = cpu();
  rates.name = "cpu-bf16";
  rates.bf16 = true;
  rates.matmul *= 1.8;
  return rates;
}

struct Entry {
  const char* name;
  std::function<DeviceRates()> make;
};
const std::vector<Entry>& table() {
  static const std::vector<Entry> devices = {
      {"h200", [] { return gpu("h200", 790e12, 50e12, 400e12, 4.8e12, 360e9, 45e9, 55e9, 139); }},
      {"h100", [] { return gpu("h100", 790e12, 50e12, 400e12, 3.35e12, 360e9, 45e9, 55e9, 78); }},
      {"a100", [] { return gpu("a100", 250e12, 14.6e12, 126e12, 2.04e12, 240e9, 22e9, 25e9, 78); }},
      {"cpu", cpu},
      {"cpu-bf16", cpu_bf16}};
  return devices;
}

struct Field {
  const char* name;
  double DeviceRates::*value;
};
constexpr Field kFields[] = {{"matmul", &DeviceRates::matmul},
                             {"f32", &DeviceRates::f32},
                             {"attention", &DeviceRates::attention},
                             {"round", &DeviceRates::round},
                             {"cluster", &DeviceRates::cluster},
                             {"commit", &DeviceRates::commit},
                             {"pack", &DeviceRates::pack},
                             {"load", &DeviceRates::load},
                             {"host_copy", &DeviceRates::host_copy},
                             {"team_link", &DeviceRates::team_link},
                             {"node_link", &DeviceRates::node_link},
                             {"host_message", &DeviceRates::host_message},
                             {"file_read", &DeviceRates::file_read},
                             {"file_write", &DeviceRates::file_write},
                             {"file_system", &DeviceRates::file_system},
                             {"message_seconds", &DeviceRates::message_seconds},
                             {"unit_seconds", &DeviceRates::unit_seconds},
                             {"device_bytes", &DeviceRates::device_bytes},
                             {"host_bytes", &DeviceRates::host_bytes},
                             {"program_bytes", &DeviceRates::program_bytes}};

double positive(const nlohmann::json& value, const std::string& where, bool zero) {
  if (!value.is_number() || !std::isfinite(value.get<double>()) || value.get<double>() < 0 ||
      (!zero && value.get<double>() == 0)) {
    throw InputError(where + ": must be a number above 0");
  }
  return value.get<double>();
}

}  // namespace

double DeviceRates::rate_of(const std::string& method, const std::string& phase) const {
  for (const std::string& key : {method + "." + phase, phase}) {
    if (const auto found = phases.find(key); found != phases.end()) return found->second;
  }
  return works_in_f32(phase) ? f32 : matmul;
}

std::vector<std::string> known_devices() {
  std::vector<std::string> names;
  for (const Entry& entry : table()) names.emplace_back(entry.name);
  return names;
}

DeviceRates rates_of_device(const std::string& name) {
  std::string known;
  for (const Entry& entry : table()) {
    if (entry.name == name) return entry.make();
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw InputError("--device: " + in_quotes(name) + " is not one of " + known +
                   "; give the rates of another by --rates FILE");
}

DeviceRates rates_like(const Backend& backend) {
  std::string device = backend.description();
  if (backend.is_host_memory()) return device.ends_with("in BF16") ? cpu_bf16() : cpu();
  std::ranges::transform(device, device.begin(), [](unsigned char c) { return std::tolower(c); });
  for (const Entry& entry : table()) {
    if (device.find(entry.name) != device.npos) return entry.make();
  }
  return rates_of_device("h100");
}

DeviceRates read_rates(const std::filesystem::path& file) {
  const nlohmann::json object = read_json_file(file, std::size_t{1} << 20);
  const auto at = [&](const std::string& key) { return file.string() + ": " + key; };
  if (!object.is_object()) throw InputError(file.string() + ": must be an object of rates");
  DeviceRates rates;
  if (object.contains("like")) {
    if (!object["like"].is_string())
      throw InputError(at("like") + ": must be the name of a device");
    rates = rates_of_device(object["like"].get<std::string>());
  }
  rates.name = file.stem().string();
  rates.source = file.string();
  for (const auto& [key, value] : object.items()) {
    const auto field = std::ranges::find_if(kFields, [&](const Field& f) { return f.name == key; });
    if (field != std::end(kFields)) {
      rates.*field->value = positive(value, at(key), true);
    } else if (key == "name" || key == "source") {
      if (!value.is_string()) throw InputError(at(key) + ": must be a text");
      (key == "name" ? rates.name : rates.source) = value.get<std::string>();
    } else if (key == "is_host" || key == "bf16") {
      if (!value.is_boolean()) throw InputError(at(key) + ": must be true or false");
      (key == "bf16" ? rates.bf16 : rates.is_host) = value.get<bool>();
    } else if (key == "ranks_a_node") {
      if (!value.is_number_integer() || value.get<double>() < 1 || value.get<double>() > 10000)
        throw InputError(at(key) + ": must be a whole number from 1 to 10000");
      rates.ranks_a_node = value.get<int>();
    } else if (key == "phases") {
      if (!value.is_object()) throw InputError(at(key) + ": must be an object of rates");
      for (const auto& [phase, rate] : value.items())
        rates.phases[phase] = positive(rate, at(key + "." + phase), false);
    } else if (key != "like") {
      throw InputError(file.string() + ": unknown key " + in_quotes(key));
    }
  }
  for (const Field& field : kFields) {
    const std::string name = field.name;
    const bool may_be_zero = name == "host_copy" || name == "message_seconds" ||
                             name == "unit_seconds" || name == "program_bytes" ||
                             (name == "device_bytes" && rates.is_host);
    if (!may_be_zero && rates.*field.value <= 0) {
      throw InputError(file.string() + ": " + name +
                       " is missing, or 0: name it, or a device that it is like, as in \"like\": "
                       "\"h200\"");
    }
  }
  return rates;
}

nlohmann::json to_json(const DeviceRates& rates) {
  nlohmann::json object = {{"name", rates.name},
                           {"source", rates.source},
                           {"is_host", rates.is_host},
                           {"bf16", rates.bf16},
                           {"ranks_a_node", rates.ranks_a_node},
                           {"phases", rates.phases}};
  for (const Field& field : kFields) object[field.name] = rates.*field.value;
  return object;
}

}  // namespace roundhouse
