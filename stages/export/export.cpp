#include "stages/export/export.h"

#include <algorithm>
#include <array>
#include <functional>
#include <utility>

#include "base/error.h"
#include "base/file.h"
#include "base/write_guard.h"
#include "comm/together.h"
#include "stages/export/exported_values.h"
#include "stages/export/output_folder.h"
#include "stages/export/sha256sums.h"
#include "stages/export/side_files.h"
#include "stages/quantize/methods.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

// The files of one rank.
class FileWriter {
 public:
  FileWriter(const ExportJob& job, const FilePlan& plan)
      : job_(job), plan_(plan), values_(job, plan) {}

  void write_file(const fs::path& directory, std::size_t file) {
    job_.monitor.phase("exporting " + job_.recipe.name + " as " + job_.format.name() + ": " +
                       plan_.name(file));
    write_atomically(directory / plan_.name(file), [&](const fs::path& temp) {
      const std::unique_ptr<TensorWriter> writer =
          plan_.container().create(temp, plan_.files(), file);
      for (const Piece& piece : plan_.pieces(file)) {
        if (piece.source.empty()) {
          write_linear(*writer, piece);
        } else {
          write_kept(*writer, piece);
        }
        job_.monitor.tick();
      }
      writer->close();
    });
  }

  // All files besides the weights; returns their names.
  std::vector<std::string> write_rest(const fs::path& directory) const {
    std::vector<std::string> written;
    const auto write = [&](const std::string& name, std::string_view text) {
      write_text_atomically(directory / name, text);
      written.push_back(name);
    };
    const fs::path& source = job_.model.checkpoint().directory();
    for (const Container::Text& text :
         plan_.container().texts(plan_.files(), plan_.declared_type()))
      write(text.name, text.text);
    const SideFiles beside = side_files(source);
    for (const std::string& name : beside.carried) write(name, read_text_file(source / name));
    if (!beside.left.empty()) {
      std::string left;
      for (const std::string& path : beside.left) left += (left.empty() ? "" : ", ") + path;
      job_.monitor.say("not carried along from " + source.string() + ": " + left);
    }
    return written;
  }

 private:
  void write_linear(TensorWriter& writer, const Piece& piece) {
    const QuantizedLinear& linear = values_.linear(piece);
    std::vector<HostTensor> filled;
    try {
      filled = job_.format.fill(linear, piece.type);
    } catch (const Error& error) {
      const bool in_block = piece.block < plan_.units().blocks();
      throw Error((in_block ? job_.decoder.prefix(piece.block) + "." : "") + error.what());
    }
    const std::vector<std::int64_t> order =
        plan_.container().row_order(plan_.exported(piece.block, piece.linear));
    for (std::size_t i = 0; i < filled.size(); ++i) {
      require(
          filled[i].type() == piece.tensors[i].type && filled[i].shape() == piece.tensors[i].shape,
          "an export format keeps to the shapes that it announced");
      if (order.empty()) {
        writer.write(piece.tensors[i].name, filled[i].bytes());
        continue;
      }
      const std::size_t row_bytes = filled[i].bytes().size() / order.size();
      for (const std::int64_t row : order) {
        writer.write(
            piece.tensors[i].name,
            filled[i].bytes().subspan(static_cast<std::size_t>(row) * row_bytes, row_bytes));
      }
    }
  }

  void write_kept(TensorWriter& writer, const Piece& piece) {
    values_.each_slice(piece, [&](std::span<const std::byte> slice) {
      writer.write(piece.tensors.front().name, slice);
    });
  }

  const ExportJob& job_;
  const FilePlan& plan_;
  ExportedValues values_;
};

void check_dtype(const ExportOptions& options) {
  if (!options.dtype) return;
  constexpr std::array kTypes = {DType::kF16, DType::kBF16, DType::kF32};
  if (std::ranges::find(kTypes, *options.dtype) == kTypes.end()) {
    throw InputError("an export's dtype is float16, bfloat16 or float32, not " +
                     std::string(name_of(*options.dtype)));
  }
}

// Of the linears of units of one kind.
void check_sizes(const ExportFormat& layout, const Recipe& recipe, const DecoderBlock& decoder,
                 int begin, int end) {
  if (recipe.overrides.empty()) {
    for (const LinearSpec& linear : decoder.linears()) layout.check_size(recipe, linear);
    return;
  }
  // Each linear by what becomes of it alone.
  const std::vector<LinearScheme> usual = own_schemes(recipe);
  for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
    std::vector<std::vector<LinearScheme>> seen;
    for (int block = begin; block < end; ++block) {
      Recipe one = recipe;
      one.schemes = usual;
      if (is_overridden(recipe.overrides, decoder, block, i))
        one.schemes = {scheme_of(recipe.overrides, decoder, block, i, usual.front())};
      if (one.schemes.front().is_original() || std::ranges::find(seen, one.schemes) != seen.end())
        continue;
      layout.check_size(one, decoder.linears()[i]);
      seen.push_back(one.schemes);
    }
  }
}

}  // namespace

std::vector<std::string> export_formats() { return format_names(); }

void check_exportable(const Recipe& recipe, const DecoderBlock& decoder, int blocks,
                      const std::string& format) {
  const std::unique_ptr<ExportFormat> layout = make_format(format);
  layout->check_schemes(recipe);
  for (const std::string& linear : recipe.include) {
    if (const std::string why = layout->cannot_hold(linear); !why.empty())
      throw not_exportable(format, recipe, why, "include");
  }
  check_sizes(*layout, recipe, decoder, 0, blocks);
  const ModelUnits units(decoder, blocks, recipe.include);
  if (units.outer() != nullptr) check_sizes(*layout, recipe, *units.outer(), blocks, blocks + 1);
}

void check_model_exportable(const CausalLM& model, const Recipe& recipe,
                            const std::string& format) {
  make_format(format)->check_model(model, recipe);
}

void check_kept_values(const CausalLM& model, const ExportOptions& options) {
  check_dtype(options);
  if (options.dtype && *options.dtype != DType::kF32)
    check_unquantized_values(model.config(), model.checkpoint(), *options.dtype);
}

bool export_checkpoint(const CausalLM& model, const DecoderBlock& decoder, const Recipe& recipe,
                       RunStore& store, const ExportOptions& options, const fs::path& directory,
                       Communicator& world, Monitor& monitor) {
  check_exportable(recipe, decoder, static_cast<int>(model.config().blocks), options.format);
  check_dtype(options);
  if (options.max_shard_bytes < 1) throw InputError("max_shard_bytes must be positive");
  const std::unique_ptr<ExportFormat> format = make_format(options.format);
  const fs::path target = output_path(directory);
  const fs::path partial = beside(target, ".partial");
  const int rank = world.rank(), size = world.size();
  const ExportJob job{model, decoder, recipe, store, options, *format, monitor};
  const std::unique_ptr<FilePlan> plan = plan_files(job, world, [&] {
    if (rank == 0) check_replaceable(target, options.replace);
  });
  FileWriter writer(job, *plan);
  const auto remove_partial = [&partial] {
    std::error_code ignored;
    fs::remove_all(partial, ignored);
  };
  const auto nothing = [] {};
  const auto on_rank_0 = [&](const std::function<void()>& work) {
    together(world, rank == 0 ? work : nothing, remove_partial);
  };
  on_rank_0([&] {
    pass_write_guard();
    fs::remove_all(partial);  // of a job that was killed
    fs::create_directories(partial);
  });

  std::string sums;  // of this rank's files
  bool stopped = false;
  const auto write_files = [&] {
    for (std::size_t i = static_cast<std::size_t>(rank); i < plan->count(); i += size) {
      stopped = monitor.stop_requested();
      if (stopped) return;
      writer.write_file(partial, i);
      sums += sum_line(partial, plan->name(i));
    }
  };
  together(world, write_files, remove_partial);
  if (world.all_reduce_max(stopped ? 1 : 0) == 1) {
    on_rank_0(remove_partial);
    return false;
  }
  const std::vector<std::vector<std::byte>> all_sums =
      world.gather(std::as_bytes(std::span(sums)), 0);

  on_rank_0([&] {
    std::vector<std::string> lines = lines_of(all_sums);
    for (const std::string& name : writer.write_rest(partial)) {
      lines.push_back(sum_line(partial, name));
    }
    write_sums(partial, std::move(lines));
    move_into_place(partial, target);
  });
  return true;
}

}  // namespace roundhouse
