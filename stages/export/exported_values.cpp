#include "stages/export/exported_values.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "base/error.h"
#include "stages/store/block_record.h"

namespace roundhouse {

const QuantizedBlock& ExportedValues::load_block(int block) {
  if (!block_ || block_->block != block) {
    block_.reset();
    const std::optional<Record> record = job_.store.load(block_key(job_.recipe.name, block));
    if (!record) {
      throw Error(
          fmt::format("recipe {}: {} is not quantized yet (or was damaged): run the recipe "
                      "to its end first",
                      job_.recipe.name, plan_.unit_called(block)));
    }
    QuantizedBlock loaded = block_from_record(*record, plan_.units().of(block));
    if (loaded.block != block) {
      throw Error(fmt::format("recipe {}: the record of {} holds {}", job_.recipe.name,
                              plan_.unit_called(block), plan_.unit_called(loaded.block)));
    }
    for (const auto& [name, tensor] : loaded.replaced) {
      if (!job_.model.checkpoint().has(job_.decoder.prefix(block) + "." + name)) {
        throw Error(fmt::format("recipe {}: {} replaces {}, which the original does not have",
                                job_.recipe.name, plan_.unit_called(block), name));
      }
    }
    block_ = std::move(loaded);
  }
  return *block_;
}

const QuantizedLinear& ExportedValues::linear(const Piece& piece) {
  const QuantizedLinear& linear = load_block(piece.block).linears[piece.linear];
  const ExportedLinear& exported = plan_.exported(piece.block, piece.linear);
  plan_.announced(scheme_of(linear), exported.spec, exported.module);
  return linear;
}

// What a method changed, else what the checkpoint has.
HostView ExportedValues::kept(const Piece& piece) {
  if (piece.made) return piece.made->view();
  if (piece.block >= 0) {
    const DenseTensors& replaced = load_block(piece.block).replaced;
    const auto found =
        replaced.find(piece.source.substr(job_.decoder.prefix(piece.block).size() + 1));
    if (found != replaced.end()) return found->second.view();
  }
  job_.model.checkpoint().note_content(piece.source);
  return job_.model.checkpoint().view(piece.source);
}

void ExportedValues::each_slice(const Piece& piece,
                                const std::function<void(std::span<const std::byte>)>& use) {
  constexpr std::size_t kSlice = std::size_t{4} << 20;  // elements
  const HostView view = kept(piece);
  const std::size_t from_size = size_of(view.type), to_size = size_of(piece.type);
  const auto count = static_cast<std::size_t>(element_count(view.shape));
  std::vector<std::byte> slice(std::min(count, kSlice) * to_size);
  for (std::size_t done = 0; done < count; done += kSlice) {
    const std::size_t n = std::min(kSlice, count - done);
    convert_finite(piece.source, view.type, view.bytes.data() + done * from_size, piece.type,
                   slice.data(), n);
    use(std::span(slice).first(n * to_size));
  }
}

}  // namespace roundhouse
