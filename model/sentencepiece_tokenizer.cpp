// The tokenizer of LLaMA and Mistral: SentencePiece BPE with byte fallback.
//
// Text goes to SentencePiece as it is. The name of a special token in it ("<s>") is therefore
// spelled out in ordinary pieces; Hugging Face's tokenizers would turn it into the token. Otherwise
// both give the same ids.
#include <sentencepiece_processor.h>

#include <cstring>
#include <exception>
#include <optional>

#include "base/error.h"
#include "base/file.h"
#include "model/json_file.h"
#include "model/tokenizer_files.h"
#include "model/utf8.h"

// Exported by the library, but in none of its installed headers.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace roundhouse {
namespace {

constexpr std::size_t kMaxModelBytes = std::size_t{1} << 26;
constexpr std::size_t kMaxTextBytes = std::size_t{1} << 30;

// One field of a protocol buffer message: a number (varint) or bytes (a string or a message
// within).
struct Field {
  std::uint64_t number = 0;
  std::uint64_t value = 0;
  std::string_view bytes;
};

std::optional<std::uint64_t> take_varint(std::string_view& text) {
  std::uint64_t value = 0;
  for (unsigned shift = 0; shift < 64 && !text.empty(); shift += 7) {
    const auto byte = static_cast<unsigned char>(text.front());
    text.remove_prefix(1);
    value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  return std::nullopt;
}

// Takes the next field off the message; nothing if it is damaged.
std::optional<Field> take_field(std::string_view& message) {
  const auto key = take_varint(message);
  if (!key) return std::nullopt;
  Field field{.number = *key >> 3, .value = 0, .bytes = {}};
  std::uint64_t bytes = 0;
  switch (*key & 7) {
    case 0: {
      const auto value = take_varint(message);
      if (!value) return std::nullopt;
      field.value = *value;
      return field;
    }
    case 1:
      bytes = 8;
      break;
    case 5:
      bytes = 4;
      break;
    case 2: {
      const auto length = take_varint(message);
      if (!length) return std::nullopt;
      bytes = *length;
      break;
    }
    default:
      return std::nullopt;
  }
  if (bytes > message.size()) return std::nullopt;
  field.bytes = message.substr(0, bytes);
  message.remove_prefix(bytes);
  return field;
}

// Only BPE without a normalization map: it is what these models have, and the library follows such
// a map (a trie inside the file) without checking that it stays within bounds. Field numbers are
// those of sentencepiece_model.proto.
void check_model(std::string_view model, const std::filesystem::path& path) {
  constexpr std::uint64_t kTrainerSpec = 2, kNormalizerSpec = 3, kDenormalizerSpec = 5;
  constexpr std::uint64_t kModelType = 3, kBpe = 2;
  constexpr std::uint64_t kCharsMap = 2;
  const auto fail = [&](const char* what) { throw InputError(path.string() + ": " + what); };

  std::uint64_t type = 1;  // unigram, the default of the format
  while (!model.empty()) {
    const auto field = take_field(model);
    if (!field) fail("not a SentencePiece model");
    std::string_view inner = field->bytes;
    const bool normalizer = field->number == kNormalizerSpec || field->number == kDenormalizerSpec;
    if (!normalizer && field->number != kTrainerSpec) continue;
    while (!inner.empty()) {
      const auto part = take_field(inner);
      if (!part) fail("not a SentencePiece model");
      if (normalizer && part->number == kCharsMap && !part->bytes.empty()) {
        fail("a tokenizer that normalizes text is not supported");
      }
      if (field->number == kTrainerSpec && part->number == kModelType) type = part->value;
    }
  }
  if (type != kBpe) fail("not a BPE model of SentencePiece");
}

class SentencePieceTokenizer : public Tokenizer {
 public:
  explicit SentencePieceTokenizer(const std::filesystem::path& path) {
    const std::string model = read_text_file(path, kMaxModelBytes);
    check_model(model, path);
    sentencepiece::logging::SetMinLogLevel(4);  // above "fatal": what goes wrong is in the status
    std::string problem;
    try {
      const auto status = processor_.LoadFromSerializedProto(model);
      if (!status.ok()) problem = status.ToString();
    } catch (const std::exception& error) {
      problem = error.what();
    }
    if (problem.empty() && processor_.GetPieceSize() == 0) problem = "no pieces";
    if (!problem.empty())
      throw InputError(path.string() + ": not a SentencePiece model: " + in_quotes(problem));
  }

  // The library's own, unless a name is given.
  void set_bos(const std::optional<std::string>& name, const std::filesystem::path& config) {
    bos_ = processor_.bos_id();
    if (name) {
      bos_ = processor_.PieceToId(*name);
      if (processor_.IdToPiece(bos_) != *name) bos_ = -1;
    }
    if (bos_ < 0) {
      throw InputError(config.string() +
                       ": bos_token: " + (name ? in_quotes(*name) + " is" : "there is") +
                       " no piece of tokenizer.model");
    }
  }

  std::vector<std::int32_t> encode(std::string_view text) const override {
    if (text.size() > kMaxTextBytes)
      throw InputError("a text of more than 1 GiB cannot be tokenized in one piece");
    if (!is_utf8(text)) throw InputError("a text that is not UTF-8 cannot be tokenized");
    std::vector<int> ids;
    const auto status = processor_.Encode(text, &ids);
    if (!status.ok()) throw InputError("a text cannot be tokenized: " + status.ToString());
    return ids;
  }
  std::int32_t vocabulary() const override { return processor_.GetPieceSize(); }
  std::int32_t bos() const override { return bos_; }

 private:
  sentencepiece::SentencePieceProcessor processor_;
  std::int32_t bos_ = -1;
};

}  // namespace

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file,
                                              const TokenizerConfig& config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(file);
  // Hugging Face's LlamaTokenizer adds it unless told otherwise.
  if (config.add_bos.value_or(true)) tokenizer->set_bos(config.bos, config.file);
  return tokenizer;
}

}  // namespace roundhouse
