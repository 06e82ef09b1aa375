// What a job writes: records, exports, snapshots, calibration sets.
#include <algorithm>
#include <filesystem>
#include <numeric>

#include "model/architectures/tensor_names.h"
#include "model/quantized/bitstream.h"
#include "pipeline/plan/cost_model.h"
#include "stages/export/format.h"
#include "stages/export/side_files.h"

namespace roundhouse {
namespace {

// A record's seal, groups and attributes: HDF5's own structures, and of each data set its header.
constexpr double kBytesOfRecord = 200, kBytesOfDataset = 560, kBytesOfLinearAttributes = 170;

double file_bytes(const std::filesystem::path& file) {
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(file, error);
  return error ? 0 : static_cast<double>(size);
}

}  // namespace

// Where widths are decided on the way, those that come nearest to the average, dealt over the linears.
std::vector<LinearScheme> CostModel::schemes_of(std::size_t r, int block) const {
  const std::size_t linears = job_.decoder.linears().size();
  const std::vector<LinearScheme> all = methods_[r]->schemes();
  const auto overridden = [&](std::vector<LinearScheme> schemes) {
    for (std::size_t i = 0; i < linears; ++i)
      schemes[i] = scheme_of(recipe(r).overrides, job_.decoder, block, i, schemes[i]);
    return schemes;
  };
  if (all.size() == 1) return overridden(std::vector<LinearScheme>(linears, all.front()));
  const nlohmann::json& options = recipe(r).options;
  const double average = options.contains("bits") && options["bits"].is_number()
                             ? options["bits"].get<double>()
                             : all.back().bits;
  std::vector<LinearScheme> schemes(linears, all.front());
  std::vector<std::size_t> order(linears);
  for (std::size_t i = 0; i < linears; ++i) order[i] = i;
  double left = (average - all.front().bits) * weights_;
  for (std::size_t w = 1; w < all.size(); ++w) {
    for (const std::size_t i : order) {
      const LinearSpec& spec = job_.decoder.linears()[i];
      const double more =
          (all[w].bits - schemes[i].bits) * static_cast<double>(spec.rows * spec.cols);
      if (more > left) continue;
      left -= more;
      schemes[i] = all[w];
    }
  }
  return overridden(schemes);
}

double CostModel::mean_over_blocks(
    std::size_t r, const std::function<double(const std::vector<LinearScheme>&)>& of) const {
  if (recipe(r).overrides.empty()) return of(schemes_of(r, 0));
  double sum = 0;
  for (int block = 0; block < static_cast<int>(job_.model.blocks); ++block)
    sum += of(schemes_of(r, block));
  return sum / static_cast<double>(job_.model.blocks);
}

double CostModel::record_bytes(std::size_t r) const {
  return mean_over_blocks(r, [&](const std::vector<LinearScheme>& schemes) {
    return record_bytes(r, job_.decoder, schemes);
  });
}

double CostModel::outer_weights(std::size_t r) const {
  double weights = 0;
  for (std::size_t i = 0; outer(r) != nullptr && i < outer(r)->linears().size(); ++i) {
    const LinearSpec& spec = outer(r)->linears()[i];
    weights += static_cast<double>(spec.rows * spec.cols);
  }
  return weights;
}

std::vector<LinearScheme> CostModel::outer_schemes(std::size_t r) const {
  std::vector<LinearScheme> schemes;
  const auto behind = static_cast<int>(job_.model.blocks);
  for (std::size_t i = 0; outer(r) != nullptr && i < outer(r)->linears().size(); ++i) {
    schemes.push_back(
        scheme_of(recipe(r).overrides, *outer(r), behind, i, methods_[r]->schemes().front()));
  }
  return schemes;
}

double CostModel::outer_record_bytes(std::size_t r) const {
  return outer(r) == nullptr ? 0 : record_bytes(r, *outer(r), outer_schemes(r));
}

double CostModel::record_bytes(std::size_t r, const DecoderBlock& decoder,
                               const std::vector<LinearScheme>& schemes) const {
  double bytes = kBytesOfRecord;
  for (std::size_t i = 0; i < schemes.size(); ++i) {
    const LinearSpec& spec = decoder.linears()[i];
    const LinearScheme& scheme = schemes[i];
    if (scheme.is_original()) {
      bytes += kBytesOfLinearAttributes;
      continue;
    }
    const auto rows = static_cast<double>(spec.rows);
    bytes += 4 * rows *
             static_cast<double>(packed_words(static_cast<std::size_t>(spec.cols), scheme.bits));
    bytes += kBytesOfLinearAttributes +
             kBytesOfDataset * (scheme.kind == LinearScheme::Kind::kTable ? 2 : 3);
    if (scheme.kind == LinearScheme::Kind::kTable) {
      bytes += 2 * rows * (1 << scheme.bits);
    } else {
      const std::int64_t size = scheme.group_size_for(spec.cols);
      bytes += 3 * rows * static_cast<double>((spec.cols + size - 1) / size);
      if (scheme.reordered) bytes += 4 * static_cast<double>(spec.cols);
    }
    if (scheme.sparse) {
      const nlohmann::json& options = recipe(r).options;
      double percent = options.value("outliers", 0.5);
      if (options.contains("sparse") && options["sparse"].is_object()) {
        percent =
            options["sparse"].value("sensitive", 0.05) + options["sparse"].value("outliers", 0.4);
      }
      bytes += 3 * kBytesOfDataset + 4 * rows +
               6 * percent / 100 * rows * static_cast<double>(spec.cols);
    }
  }
  return bytes;
}

double CostModel::export_bytes(std::size_t r, const std::string& format) const {
  const auto made = make_format(format);
  const DType kept = job_.config.export_dtype.value_or(job_.model.dtype);
  const auto each = static_cast<double>(size_of(kept));
  const auto blocks = static_cast<double>(job_.model.blocks);
  const auto linears_of = [&](const DecoderBlock& decoder,
                              const std::vector<LinearScheme>& schemes) {
    double linears = 0;
    for (std::size_t i = 0; i < schemes.size(); ++i) {
      const LinearSpec& spec = decoder.linears()[i];
      if (schemes[i].is_original()) {
        linears += each * static_cast<double>(spec.rows * spec.cols);
        continue;
      }
      const ExportedLinear linear{.module = spec.name, .spec = spec, .scheme = schemes[i]};
      for (const TensorInfo& tensor : made->tensors(linear, kept))
        linears += static_cast<double>(element_count(tensor.shape)) *
                   static_cast<double>(size_of(tensor.type));
    }
    return linears;
  };
  // All tensors, and of the linears what they have become.
  const double block =
      (static_cast<double>(element_count(tensors_of_block(job_.model, 0))) - weights_) * each +
      mean_over_blocks(r, [&](const std::vector<LinearScheme>& schemes) {
        return linears_of(job_.decoder, schemes);
      });
  double bytes =
      blocks * block + each * static_cast<double>(element_count(tensors_before_blocks(job_.model)) +
                                                  element_count(tensors_after_blocks(job_.model)));
  if (outer(r) != nullptr) {
    // A tied head is one tensor more.
    const double one =
        static_cast<double>(job_.model.vocabulary * job_.model.embedding_size) * each;
    bytes += linears_of(*outer(r), outer_schemes(r)) - outer_weights(r) * each +
             (job_.model.tied_embeddings ? one : 0);
  }
  std::error_code error;
  if (std::filesystem::is_directory(job_.config.model, error)) {
    for (const std::string& name : side_files(job_.config.model).carried)
      bytes += file_bytes(job_.config.model / name);
  }
  // Headers: a line a tensor, and a file's hash.
  const auto names = static_cast<double>(tensors_of_block(job_.model, 0).size()) +
                     2.0 * static_cast<double>(job_.decoder.linears().size());
  return bytes + blocks * names * 190 + 3000;
}

DiskUse CostModel::disk(const std::vector<Wave>& waves) const {
  DiskUse use;
  double most = 0, shared = 0;
  for (std::size_t r = 0; r < job_.config.recipes.size(); ++r) {
    use.records += records_bytes(r);
    for (const std::string& format : job_.config.export_formats)
      use.exports += export_bytes(r, format);
    shared = std::max(shared, gradient_stream_bytes(r));
  }
  std::vector<std::size_t> all(job_.config.recipes.size());
  std::iota(all.begin(), all.end(), 0);
  // A new one is whole before the one before goes, on each stage that has one under way.
  for (const Wave& wave : waves_of(all, waves)) {
    if (job_.config.interruption_hours > 0) most = std::max(most, streams_of(wave).all());
  }
  use.snapshots = std::max(2 * most * job_.mesh.stages(), 2 * shared * job_.mesh.stages());
  for (const std::string& set : calibration_sets_in_use(job_.config)) {
    const SampleOptions& samples = calibration_set(job_.config, set);
    use.calibration += 4.0 * samples.samples * samples.sequence_length + 4000;
  }
  return use;
}

}  // namespace roundhouse
