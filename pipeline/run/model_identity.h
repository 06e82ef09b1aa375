// Which model a run is of: by what its tensors hold, not by where they lie.
//
// The first 4 KiB of every tensor (model_fingerprint()) are part of every record's identity. What lies behind them is hashed
// as it is read. A block's record names the hashes of the tensors of its block and of those outside the blocks (embedding,
// final norm, head); RUN/model.json holds those of all tensors that were read so far, with path, size and times of the files.
// While these do not change they stand for the content, and nothing is read twice.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "comm/communicator.h"
#include "model/causal_lm.h"
#include "stages/flow/monitor.h"

namespace roundhouse {

using ContentsByTensor = std::map<std::string, std::string>;  // tensor name -> content_hash()

class ModelIdentity {
 public:
  // `writes`: keeps RUN/model.json; only a job that holds the run may.
  ModelIdentity(const CausalLM& model, std::filesystem::path run, Communicator& world,
                Monitor& monitor, bool writes)
      : model_(model), run_(std::move(run)), world_(world), monitor_(monitor), writes_(writes) {}

  // Collective, before anything is computed. `recorded`: what records of the run say they are made of, the same on every
  // rank. If the files are not those that model.json knows, or there is no model.json, all ranks share in hashing them again.
  // Throws InputError naming tensors that do not hold what records were made of.
  void settle(const std::vector<ContentsByTensor>& recorded);

  // Collective, before the first block, whose record keeps it: rank 0 hashes what lies outside the blocks, as far as nobody has. So
  // content() of a model whose blocks are done is known to every group of ranks.
  void note_outside_blocks();

  // Collective: the hashes of all tensors, for what was made of the whole model. Ranks share in hashing what nobody has read.
  ContentsByTensor contents_of_model();

  // What records say they are made of. Throws InputError naming a tensor that held something else.
  void learn(const ContentsByTensor& recorded);

  // Collective over `group`, the world or a part of it: brings together what its ranks have read since; rank 0 of the world
  // writes model.json. Throws InputError naming a tensor that did not hold the same for all.
  void join(Communicator& group);

  // Of every tensor's name and hash; empty while some were not read yet.
  std::string content() const;

 private:
  void write() const;
  void hash_again(bool all);

  const CausalLM& model_;
  std::filesystem::path run_;
  Communicator& world_;
  Monitor& monitor_;
  bool writes_;
  nlohmann::json files_;  // rank 0: path, size and times, as they were before anything was read
};

// Names of the tensors of one block and of those outside the blocks, with their hashes; throws Error if one was not read.
ContentsByTensor contents_of_block(const CausalLM& model, int block);

inline constexpr const char* kModelFile = "model.json";

}  // namespace roundhouse
