// What can be refused before any block is quantized. A job of days must not end with a line about its last file.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.h"
#include "model/causal_lm.h"
#include "model/tokenizer/tokenizer.h"
#include "pipeline/config/config.h"
#include "stages/evaluate/perplexity.h"

namespace roundhouse {

// The windows of a task's text, its rows joined where the task says so; at most `limit` (0: all). Throws InputError naming the
// file: see TextFile; JSON lines; not one window; what the tokenizer says.
Windows evaluation_windows(const PerplexityTask& task, int limit, const Tokenizer& tokenizer,
                           ThreadPool& threads, const std::function<void()>& tick);

// Throws the errors of evaluation_windows(), looking at whole texts but tokenizing a window. Returns a line for each: what it was taken for.
// Reads the documents of tasks, and throws the errors of read_task().
std::vector<std::string> check_evaluation(const Evaluations& evaluations,
                                          const Tokenizer& tokenizer, ThreadPool& threads,
                                          const std::function<void()>& tick);

// Throws the errors that exports of the run would end with: a side file of the model that cannot be read, a folder in their
// place that is somebody's.
void check_exports(const RunConfig& config);

// Bytes that the run's records and exports cannot do without.
std::uint64_t least_bytes_written(const RunConfig& config, const ModelConfig& model);
// Throws Error if the run's disk has clearly too little room for what is not there yet.
void check_disk(const RunConfig& config, const ModelConfig& model);
void check_disk(const std::filesystem::path& run, std::uint64_t needed, std::uint64_t there,
                std::uint64_t available);

// Throws Error if this rank's device cannot even hold the weights of one block.
void check_memory(const ModelConfig& model, const Backend& backend);
void check_memory(std::uint64_t needed, std::uint64_t available);

}  // namespace roundhouse
