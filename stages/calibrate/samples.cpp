#include "stages/calibrate/samples.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/file.h"
#include "base/random.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kMicroBatchTokens = 2048;

std::vector<std::string> read_json_lines(const std::filesystem::path& path) {
  LineReader lines(path);
  std::vector<std::string> documents;
  std::string line;
  for (int number = 1; lines.next(line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    const std::string where = path.string() + ":" + std::to_string(number) + ": ";
    const nlohmann::json object = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) throw InputError(where + "not a JSON object");
    const auto text = object.find("text");
    if (text == object.end() || !text->is_string()) throw InputError(where + "no string \"text\"");
    documents.push_back(text->get<std::string>());
  }
  if (documents.empty()) throw InputError(path.string() + ": holds no text");
  return documents;
}

std::vector<std::string> read_documents(const std::filesystem::path& path) {
  const std::string extension = path.extension().string();
  if (extension == ".jsonl" || extension == ".json") return read_json_lines(path);
  return {read_text_file(path)};
}

struct Draw {
  const SampleOptions& options;
  const Tokenizer& tokenizer;
  const std::function<void()>& tick;
  const std::vector<std::string>& documents;
  const std::vector<std::size_t>& order;

  std::size_t length() const { return static_cast<std::size_t>(options.sequence_length); }
  std::size_t tokens() const { return static_cast<std::size_t>(options.samples) * length(); }
};

std::vector<std::int32_t> draw_windows(const Draw& draw, Random& random) {
  const std::size_t length = draw.length();
  std::vector<std::int32_t> ids;
  ids.reserve(draw.tokens());
  while (ids.size() < draw.tokens()) {
    const std::size_t before = ids.size();
    std::size_t longest = 0;
    for (const std::size_t document : draw.order) {
      if (ids.size() == draw.tokens()) break;
      draw.tick();
      const std::vector<std::int32_t> tokens =
          draw.tokenizer.encode_with_bos(draw.documents[document]);
      longest = std::max(longest, tokens.size());
      if (tokens.size() < length) continue;
      const auto start = static_cast<std::ptrdiff_t>(random.below(tokens.size() - length + 1));
      ids.insert(ids.end(), tokens.begin() + start,
                 tokens.begin() + start + static_cast<std::ptrdiff_t>(length));
    }
    if (ids.size() == before) {
      throw InputError(draw.options.text.string() + ": no document has the " +
                       std::to_string(length) +
                       " tokens of calibration.sequence_length (the longest has " +
                       std::to_string(longest) + ")");
    }
  }
  return ids;
}

std::vector<std::int32_t> draw_packed(const Draw& draw) {
  std::vector<std::int32_t> ids;
  for (const std::size_t document : draw.order) {
    if (ids.size() >= draw.tokens()) break;
    draw.tick();
    std::string_view text = draw.documents[document];
    constexpr std::string_view kSpace = " \t\r\n\f\v";
    text.remove_prefix(std::min(text.find_first_not_of(kSpace), text.size()));
    text.remove_suffix(text.size() - (text.find_last_not_of(kSpace) + 1));
    if (text.empty()) continue;
    const std::vector<std::int32_t> tokens = draw.tokenizer.encode_with_bos(text);
    if (tokens.size() <= draw.length()) ids.insert(ids.end(), tokens.begin(), tokens.end());
  }
  if (ids.size() < draw.tokens()) {
    throw InputError(
        draw.options.text.string() + ": its documents of up to " + std::to_string(draw.length()) +
        " tokens fill " + std::to_string(ids.size() / draw.length()) +
        " windows, and calibration.samples asks for " + std::to_string(draw.options.samples));
  }
  ids.resize(draw.tokens());
  return ids;
}

}  // namespace

Samples::Samples(std::int64_t count, std::int64_t length, int shards, std::vector<std::int32_t> ids)
    : count_(count), length_(length), shards_(shards), ids_(std::move(ids)) {
  require(count > 0 && length > 1 && shards > 0 && shards <= count, "samples: sizes");
  require(ids_.size() == static_cast<std::size_t>(count * length), "samples: number of ids");
}

std::span<const std::int32_t> Samples::ids(std::int64_t first, std::int64_t n) const {
  require(first >= 0 && n >= 0 && first + n <= count_, "samples: range");
  return std::span(ids_).subspan(static_cast<std::size_t>(first * length_),
                                 static_cast<std::size_t>(n * length_));
}

PartRange Samples::samples_of_shard(int shard) const {
  return parts_of_rank(static_cast<int>(count_), shard, shards_);
}

std::int64_t micro_batch_sequences(std::int64_t length) {
  return std::max<std::int64_t>(1, kMicroBatchTokens / length);
}

Samples draw_samples(const SampleOptions& options, const Tokenizer& tokenizer,
                     const std::function<void()>& tick) {
  const std::vector<std::string> documents = read_documents(options.text);
  Random random(options.seed);
  std::vector<std::size_t> order(documents.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  random.shuffle(order);
  const Draw draw{options, tokenizer, tick, documents, order};
  return Samples(
      options.samples, options.sequence_length, options.shards,
      options.drawing == Drawing::kPacked ? draw_packed(draw) : draw_windows(draw, random));
}

Record to_record(const Samples& samples) {
  Record record;
  HostTensor ids(DType::kI32, {samples.count(), samples.length()});
  std::ranges::copy(samples.ids(0, samples.count()), ids.as<std::int32_t>().begin());
  record.tensors.emplace("ids", std::move(ids));
  record.attributes = {{"shards", samples.shards()}};
  return record;
}

Samples samples_from_record(const Record& record) {
  const auto ids = record.tensors.find("ids");
  const nlohmann::json shards = record.attributes.is_object()
                                    ? record.attributes.value("shards", nlohmann::json())
                                    : nlohmann::json();
  if (ids == record.tensors.end() || ids->second.type() != DType::kI32 ||
      ids->second.shape().size() != 2 || !shards.is_number_integer()) {
    throw Error("calibration record: not token ids");
  }
  const auto values = ids->second.as<std::int32_t>();
  return Samples(ids->second.shape()[0], ids->second.shape()[1], shards.get<int>(),
                 {values.begin(), values.end()});
}

}  // namespace roundhouse
