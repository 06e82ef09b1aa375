#include "stages/export/compare.h"

#include <algorithm>
#include <functional>
#include <set>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "base/file.h"
#include "base/quote.h"
#include "comm/together.h"
#include "stages/export/exported_values.h"
#include "stages/export/output_folder.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// The files of one rank.
class Comparison {
 public:
  Comparison(const ExportJob& job, const FilePlan& plan)
      : job_(job), plan_(plan), values_(job, plan) {}

  // What a file of weights holds that is not what the run has: a line each, with the tensor, a few at most. Reads it through the
  // format, not through what wrote it.
  std::vector<std::string> check_file(const fs::path& directory, std::size_t file) {
    job_.monitor.phase("checking " + job_.recipe.name + " as " + job_.format.name() + ": " +
                       plan_.name(file));
    std::vector<std::string> faults;
    std::unique_ptr<TensorFile> stored;
    try {
      stored = plan_.container().open(directory / plan_.name(file), plan_.files(), file);
    } catch (const Error& error) {
      return {within(directory, error.what())};
    }
    std::set<std::string> unknown;
    for (std::string& name : stored->names()) unknown.insert(std::move(name));
    for (const Piece& piece : plan_.pieces(file)) {
      for (const TensorInfo& tensor : piece.tensors) unknown.erase(tensor.name);
      std::string fault;
      try {
        const std::vector<HostView> views = views_of(*stored, piece);
        fault = piece.source.empty() ? compare_linear(piece, views) : compare_kept(piece, views);
      } catch (const Error& error) {
        fault = within(directory, error.what());
      }
      if (!fault.empty()) faults.push_back(std::move(fault));
      stored->release_pages();
      job_.monitor.tick();
    }
    for (const std::string& name : unknown)
      faults.push_back(plan_.name(file) + ": tensor " + in_quotes(name) + ": not of this model");
    for (std::string& fault : faults) {
      if (!fault.starts_with(plan_.name(file))) fault = plan_.name(file) + ": " + fault;
    }
    return faults;
  }

  // The same of what says how the weights are to be read.
  std::vector<std::string> check_rest(const fs::path& directory) const {
    std::vector<std::string> faults;
    for (const Container::Text& text :
         plan_.container().texts(plan_.files(), plan_.declared_type())) {
      try {
        const Container::Text there = {text.name, read_text_file(directory / text.name)};
        if (plan_.container().essence(there) != plan_.container().essence(text))
          faults.push_back(text.name + ": does not describe what the run made");
      } catch (const Error& error) {
        faults.push_back(within(directory, error.what()));
      }
    }
    return faults;
  }

 private:
  // Throws Error naming a tensor that is not there, or not in its type and shape.
  static std::vector<HostView> views_of(const TensorFile& file, const Piece& piece) {
    std::vector<HostView> views;
    for (const TensorInfo& tensor : piece.tensors) {
      views.push_back(file.view(tensor.name));
      if (views.back().type != tensor.type || views.back().shape != tensor.shape)
        throw Error("tensor " + in_quotes(tensor.name) + ": has another type or shape");
    }
    return views;
  }

  // Of the first weight that differs; empty: none does.
  std::string compare_linear(const Piece& piece, const std::vector<HostView>& stored) {
    const QuantizedLinear& linear = values_.linear(piece);
    const ExportedLinear& exported = plan_.exported(piece.block, piece.linear);
    const std::vector<std::int64_t> order = plan_.container().row_order(exported);
    const auto cols = static_cast<std::size_t>(linear.cols);
    DequantizedRows rows(linear);
    constexpr std::int64_t kTogether =
        16;  // rows whose words lie side by side in transposed layouts
    std::vector<float> there, expected(cols);
    std::int64_t wrong = 0;
    std::string first;
    for (std::int64_t begin = 0; begin < linear.rows; begin += kTogether) {
      const auto n = static_cast<std::size_t>(std::min(kTogether, linear.rows - begin));
      there.resize(n * cols);
      try {
        job_.format.read(exported, stored, begin, there);
      } catch (const Error& error) {
        throw Error("tensor of " + exported.module + ": " + error.what());
      }
      for (std::size_t i = 0; i < n; ++i) {
        const std::int64_t at = begin + static_cast<std::int64_t>(i);
        const std::int64_t row = order.empty() ? at : order[at];
        std::ranges::copy(rows.values(row), expected.begin());
        job_.format.round_row(linear, row, piece.type, expected);
        for (std::size_t col = 0; col < cols; ++col) {
          const float is = there[i * cols + col];
          if (is == expected[col]) continue;
          if (wrong++ == 0) {
            first = fmt::format("the weight of row {}, column {} is {} in place of {}", row, col,
                                is, expected[col]);
          }
        }
      }
    }
    if (wrong == 0) return "";
    const std::string what = piece.tensors.size() == 1 ? "tensor " + piece.tensors.front().name
                                                       : "tensors of " + exported.module;
    return fmt::format("{}: {} ({} of its {} weights differ)", what, first, wrong,
                       linear.rows * linear.cols);
  }

  std::string compare_kept(const Piece& piece, const std::vector<HostView>& stored) {
    std::size_t done = 0;
    std::optional<std::size_t> wrong;  // the first byte that differs
    values_.each_slice(piece, [&](std::span<const std::byte> slice) {
      const auto there = stored.front().bytes.subspan(done, slice.size());
      const auto [a, b] = std::ranges::mismatch(there, slice);
      if (!wrong && a != there.end()) wrong = done + static_cast<std::size_t>(a - there.begin());
      done += slice.size();
    });
    if (!wrong) return "";
    return fmt::format("tensor {}: differs from the model's {} at element {}",
                       piece.tensors.front().name, piece.source, *wrong / size_of(piece.type));
  }

  // Faults name files within the directory.
  static std::string within(const fs::path& directory, std::string fault) {
    const std::string prefix = directory.string() + "/";
    for (std::size_t at; (at = fault.find(prefix)) != std::string::npos;)
      fault.erase(at, prefix.size());
    return fault;
  }

  const ExportJob& job_;
  const FilePlan& plan_;
  ExportedValues values_;
};

}  // namespace

std::optional<std::vector<std::string>> compare_export(const CausalLM& model,
                                                       const DecoderBlock& decoder,
                                                       const Recipe& recipe, RunStore& store,
                                                       const ExportOptions& options,
                                                       const fs::path& directory,
                                                       Communicator& world, Monitor& monitor) {
  check_exportable(recipe, decoder, static_cast<int>(model.config().blocks), options.format);
  const std::unique_ptr<ExportFormat> format = make_format(options.format);
  const fs::path target = output_path(directory);
  const ExportJob job{model, decoder, recipe, store, options, *format, monitor};
  const std::unique_ptr<FilePlan> plan = plan_files(job, world, [] {});
  Comparison comparison(job, *plan);
  std::string faults;
  bool stopped = false;
  together(world, [&] {
    const auto add = [&](std::vector<std::string> more) {
      for (const std::string& fault : more) faults += printable_line(fault) + "\n";
    };
    if (world.rank() == 0) add(comparison.check_rest(target));
    for (auto i = static_cast<std::size_t>(world.rank()); i < plan->count();
         i += static_cast<std::size_t>(world.size())) {
      stopped = monitor.stop_requested();
      if (stopped) return;
      add(comparison.check_file(target, i));
    }
  });
  if (world.all_reduce_max(stopped ? 1 : 0) == 1) return std::nullopt;
  std::vector<std::string> all = lines_of(world.gather(std::as_bytes(std::span(faults)), 0));
  for (std::string& line : all) line.pop_back();
  return all;
}

}  // namespace roundhouse
