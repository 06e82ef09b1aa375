#include "model/checkpoint/weight_parts.h"

#include <algorithm>
#include <iterator>

#include "base/error.h"
#include "model/checkpoint/load_weight.h"

namespace roundhouse {
namespace {

std::string weight_of(const DecoderBlock& decoder, int block, std::size_t linear) {
  return decoder.module(block, linear) + ".weight";
}

}  // namespace

std::int64_t pieces_of_block(const std::vector<LinearSpec>& linears) {
  std::int64_t pieces = 0;
  for (const LinearSpec& linear : linears) pieces += pieces_of(linear.rows * linear.cols).count();
  return pieces;
}

std::vector<LinearPieces> pieces_of_part(const std::vector<LinearSpec>& linears, WeightPart part) {
  const std::int64_t all = pieces_of_block(linears);
  const std::int64_t begin = all * part.part / part.of, end = all * (part.part + 1) / part.of;
  std::vector<LinearPieces> found;
  std::int64_t first = 0;  // piece of the linear at hand
  for (std::size_t i = 0; i < linears.size(); ++i) {
    const std::int64_t count = pieces_of(linears[i].rows * linears[i].cols).count();
    const Pieces own{std::clamp<std::int64_t>(begin - first, 0, count),
                     std::clamp<std::int64_t>(end - first, 0, count)};
    if (own.count() > 0) found.push_back({static_cast<int>(i), own});
    first += count;
  }
  return found;
}

std::int64_t largest_part(const std::vector<LinearSpec>& linears, int parts) {
  std::int64_t largest = 0;
  for (int part = 0; part < parts; ++part) {
    std::int64_t values = 0;
    for (const auto& [i, pieces] : pieces_of_part(linears, {part, parts})) {
      const std::int64_t size = linears[i].rows * linears[i].cols;
      values += std::min(pieces.end * kPieceValues, size) - pieces.begin * kPieceValues;
    }
    largest = std::max(largest, values);
  }
  return largest;
}

std::vector<std::string> load_part(const Checkpoint& checkpoint, const DecoderBlock& decoder,
                                   WeightPart part, BlockWeights& weights, Backend& backend) {
  std::vector<std::string> hashes;
  for (const auto& [i, pieces] : pieces_of_part(decoder.linears(), part)) {
    const LinearSpec& linear = decoder.linears()[i];
    std::ranges::move(
        load_pieces(checkpoint, weight_of(decoder, static_cast<int>(weights.block), i),
                    {linear.rows, linear.cols}, pieces, weights.linears[i], backend),
        std::back_inserter(hashes));
  }
  return hashes;
}

void note_parts(const Checkpoint& checkpoint, const DecoderBlock& decoder, int block,
                std::span<const std::string> hashes) {
  require(std::ssize(hashes) == pieces_of_block(decoder.linears()),
          "the parts of a block have another count of pieces");
  for (std::size_t i = 0; i < decoder.linears().size(); ++i) {
    const LinearSpec& linear = decoder.linears()[i];
    const auto count = static_cast<std::size_t>(pieces_of(linear.rows * linear.cols).count());
    checkpoint.note_content(weight_of(decoder, block, i), hash_of_pieces(hashes.first(count)));
    hashes = hashes.subspan(count);
  }
}

}  // namespace roundhouse
