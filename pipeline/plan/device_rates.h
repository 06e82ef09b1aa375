// What a device, its host and the machine around it can do: a table of known ones, and files of measured ones.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "kernels/backend.h"

namespace roundhouse {

struct DeviceRates {
  std::string name;      // "h200"
  std::string source;    // where the figures are from
  bool is_host = false;  // the CPU: activations are in F32, and its memory is the host's
  bool bf16 = false;     // of a CPU's products as `cpu_precision: bf16` has them

  // Operations a second of one device:
  double matmul = 0;     // of products with inputs of the activation type, as they are reached
  double f32 = 0;        // in F32: factorizations, and what solves linears
  double attention = 0;  // forward and backward
  // Of a phase of a method, "gptq.forward", or of any method, "forward", where it was measured.
  std::map<std::string, double> phases;

  // Weights a second:
  double round = 0;    // a grid found and rounded to, once
  double cluster = 0;  // k-means
  double commit = 0;   // packed and checked for a record, by all threads of one rank
  double pack = 0;     // the same and hashed, by one thread: as files of exports are made

  // Bytes a second:
  double load = 0;          // a checkpoint's weights from the page cache to the device, by one rank
  double host_copy = 0;     // between host and device, each way; 0: there is no such way
  double team_link = 0;     // between devices of a node, each way
  double node_link = 0;     // between nodes, of each rank, each way
  double host_message = 0;  // through host memory, of each rank
  double file_read = 0, file_write = 0;  // the file system that all share, one node
  double file_system = 0;                // the same, all nodes together

  double message_seconds = 0;  // a message's latency
  double unit_seconds = 0;     // of a unit, beside all that is here: starting and ending it

  int ranks_a_node = 1;
  double device_bytes = 0;   // of one device
  double host_bytes = 0;     // of a node
  double program_bytes = 0;  // of host memory, a rank that does nothing yet

  double bytes_of_activation() const { return is_host ? 4 : 2; }
  double rate_of(const std::string& method, const std::string& phase) const;
};

std::vector<std::string> known_devices();
DeviceRates rates_of_device(const std::string& name);  // throws InputError listing the names

// Those of the table for what a rank computes on: by the name of its GPU, the H100's where that has none of them.
DeviceRates rates_like(const Backend& backend);

// Throws InputError naming file and key: missing, not a positive number, unknown.
DeviceRates read_rates(const std::filesystem::path& file);
nlohmann::json to_json(const DeviceRates& rates);

}  // namespace roundhouse
