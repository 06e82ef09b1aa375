#include "pipeline/start/preflight.h"

#include <fcntl.h>

#include <filesystem>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "base/file.h"
#include "pipeline/run/export_note.h"
#include "pipeline/run/run_files.h"
#include "pipeline/run/sealed_json.h"
#include "stages/calibrate/parallel_tokenizer.h"
#include "stages/calibrate/text_file.h"
#include "stages/export/output_folder.h"
#include "stages/export/side_files.h"
#include "stages/quantize/methods.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr double kGiB = 0x1p30;

// What lies in a folder already, as far as it can be seen.
std::uint64_t bytes_below(const fs::path& folder) {
  std::uint64_t bytes = 0;
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code gone;
    if (!entry->is_regular_file(gone)) continue;
    const std::uintmax_t size = entry->file_size(gone);
    if (!gone) bytes += size;
  }
  return bytes;
}

// Bytes of a recipe's codes at the least of its widths, and how many weights they are of.
std::pair<std::uint64_t, std::uint64_t> least_codes(const Recipe& recipe,
                                                    const ModelConfig& model) {
  const std::vector<LinearScheme> own = own_schemes(recipe);
  const LinearScheme least = std::ranges::min(own, {}, &LinearScheme::bits);
  const BlockLayout layout = block_layout(model);
  std::uint64_t bits = 0, quantized = 0;
  for (std::int64_t block = 0; block < model.blocks; ++block) {
    for (const LinearSpec& spec : layout.linears) {
      const std::string module = fmt::format("{}{}.{}", layout.prefix, block, spec.name);
      const LinearOverride* const asked = find_override(recipe.overrides, module);
      const LinearScheme scheme = asked != nullptr ? asked->scheme.value_or(least) : least;
      if (scheme.is_original()) continue;
      const auto weights =
          static_cast<std::uint64_t>(spec.rows) * static_cast<std::uint64_t>(spec.cols);
      quantized += weights;
      bits += weights * static_cast<std::uint64_t>(scheme.bits);
    }
  }
  return {bits / 8, quantized};
}

std::string size_text(std::uint64_t bytes) {
  const auto size = static_cast<double>(bytes);
  return size < kGiB ? fmt::format("{:.1f} MiB", size / 0x1p20)
                     : fmt::format("{:.1f} GiB", size / kGiB);
}

}  // namespace

Windows evaluation_windows(const PerplexityTask& task, int limit, const Tokenizer& tokenizer,
                           ThreadPool& threads, const std::function<void()>& tick) {
  const TextFile file(task.text, threads, tick);
  if (file.json_lines()) {
    throw InputError(file.description() +
                     ", but perplexity is measured on plain text: put the texts into one file");
  }
  const std::string joined = task.rows ? join_rows(file.content()) : std::string();
  const std::string_view text = task.rows ? joined : file.content();
  const std::size_t most = static_cast<std::size_t>(limit) * static_cast<std::size_t>(task.window);
  std::vector<std::int32_t> ids;
  try {
    // All of it, whatever the limit, so that a text is refused now or never.
    for (ChunkCutter chunks(tokenizer, text); chunks.next();) tick();
    ids = ParallelTokenizer(tokenizer, threads).encode_document(text, most, tick);
  } catch (const InputError& error) {
    throw InputError(task.text.string() + ": " + error.what());
  }
  return cut_windows(ids, task.window, limit, task.text.string());
}

std::vector<std::string> check_evaluation(const Evaluations& evaluations,
                                          const Tokenizer& tokenizer, ThreadPool& threads,
                                          const std::function<void()>& tick) {
  std::vector<std::string> lines;
  for (const PerplexityTask& task : evaluations.perplexity) {
    evaluation_windows(task, 1, tokenizer, threads, tick);
    lines.push_back("perplexity: " + task.text.string() + ": plain text" +
                    (task.rows ? ", each line a row" : ""));
  }
  with_file_errors_named([&] {
    for (const TaskOptions& task : evaluations.tasks) {
      const std::size_t documents =
          read_task(read_task_template(task.task), task.file, task.limit).size();
      lines.push_back(fmt::format("task {}: {}: {}", task.name, task.file.string(),
                                  counted(documents, "document")));
      tick();
    }
  });
  return lines;
}

void check_exports(const RunConfig& config) {
  if (config.export_formats.empty()) return;
  with_file_errors_named([&] {
    for (const std::string& name : side_files(config.model).carried)
      (void)open_regular_file(config.model / name, O_RDONLY);
    for (const Recipe& recipe : config.recipes) {
      for (const std::string& format : config.export_formats) {
        const std::string key = "export/" + recipe.name + "/" + format;
        const SealedJson note = read_sealed_json(export_note_path(config.run / key), key);
        check_replaceable(config.run / key, note.object.has_value());
      }
    }
  });
}

std::uint64_t least_bytes_written(const RunConfig& config, const ModelConfig& model) {
  const auto dense = static_cast<std::uint64_t>(
      model.blocks * element_count(tensors_of_block(model, 0)) +
      element_count(tensors_before_blocks(model)) + element_count(tensors_after_blocks(model)));
  std::uint64_t bytes = 0;
  for (const Recipe& recipe : config.recipes) {
    const auto [codes, quantized] = least_codes(recipe, model);
    bytes += codes;
    for (const std::string& format : config.export_formats) {
      const std::uint64_t rest = format == "dense" ? dense : dense - quantized;
      bytes += rest * 2 + (format == "dense" ? 0 : codes);  // 16 bits, or 32
    }
  }
  return bytes;
}

void check_disk(const RunConfig& config, const ModelConfig& model) {
  std::error_code error;
  const fs::space_info space = fs::space(config.run, error);
  if (error || space.capacity == 0) return;  // a file system that does not say
  check_disk(config.run, least_bytes_written(config, model), bytes_below(config.run),
             space.available);
}

void check_disk(const fs::path& run, std::uint64_t needed, std::uint64_t there,
                std::uint64_t available) {
  if (needed <= there || needed - there <= available) return;
  throw Error("not enough room on the disk of " + run.string() +
              ": records and exports will take " + size_text(needed) + " and more, " +
              size_text(there) + " are there, and " + size_text(available) + " are free");
}

void check_memory(const ModelConfig& model, const Backend& backend) {
  const auto weights = static_cast<std::uint64_t>(element_count(tensors_of_block(model, 0)));
  check_memory(weights * size_of(backend.activation_type()), backend.available_bytes());
}

void check_memory(std::uint64_t needed, std::uint64_t available) {
  if (needed <= available) return;
  throw Error("not enough memory: the weights of one block take " + size_text(needed) + ", and " +
              size_text(available) + " are free");
}

}  // namespace roundhouse
