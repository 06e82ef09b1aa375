// The tokenizer of LLaMA and Mistral: SentencePiece BPE with byte fallback.
//
// Merging is confined to what pieces of the vocabulary hold: between two characters that stand side by side in no piece no
// merge can happen, and what is left of them has no influence on what is right. There texts are cut into words, which are
// tokenized once; the ids are those of the whole text.
#include <sentencepiece_processor.h>

#include <cstring>
#include <exception>
#include <optional>
#include <unordered_set>

#include "base/error.h"
#include "base/file.h"
#include "base/json_file.h"
#include "model/tokenizer/character_pairs.h"
#include "model/tokenizer/sentencepiece_vocabulary.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/tokenizer_files.h"
#include "model/tokenizer/utf8.h"

// Exported by the library, but in none of its installed headers.
namespace sentencepiece::logging {
void SetMinLogLevel(int level);
}

namespace roundhouse {
namespace {

constexpr std::size_t kMaxModelBytes = std::size_t{1} << 26;
constexpr char32_t kSpaceSymbol = U'\u2581';  // what SentencePiece writes for a space

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

// Settings of a model that matter here.
struct Facts {
  bool removes_spaces = true;  // at the ends of a text, and all but one in a row
  bool space_is_suffix = false;
};

// Only BPE without a normalization map: it is what these models have, and the library follows such
// a map (a trie inside the file) without checking that it stays within bounds. Field numbers are
// those of sentencepiece_model.proto.
Facts check_model(std::string_view model, const std::filesystem::path& path) {
  constexpr std::uint64_t kTrainerSpec = 2, kNormalizerSpec = 3, kDenormalizerSpec = 5;
  constexpr std::uint64_t kModelType = 3, kBpe = 2, kSpaceIsSuffix = 24;
  constexpr std::uint64_t kCharsMap = 2, kRemovesSpaces = 4;
  const auto fail = [&](const char* what) { throw InputError(path.string() + ": " + what); };

  Facts facts;
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
      if (field->number == kTrainerSpec && part->number == kSpaceIsSuffix)
        facts.space_is_suffix = part->value != 0;
      if (field->number == kNormalizerSpec && part->number == kRemovesSpaces)
        facts.removes_spaces = part->value != 0;
    }
  }
  if (type != kBpe) fail("not a BPE model of SentencePiece");
  return facts;
}

// A space and what SentencePiece writes for it are the same to it.
char32_t with_plain_space(char32_t c) { return c == kSpaceSymbol ? U' ' : c; }

class SentencePieceTokenizer : public Tokenizer {
 public:
  SentencePieceTokenizer(const std::filesystem::path& path, bool add_prefix_space, bool legacy)
      : add_prefix_space_(add_prefix_space), legacy_(legacy) {
    std::string model = read_text_file(path, kMaxModelBytes);
    facts_ = check_model(model, path);
    sentencepiece::logging::SetMinLogLevel(4);  // above "fatal": what goes wrong is in the status
    load(model, path, processor_);
    // The same without a space in front of the text. The fields of a message that stands twice are merged:
    // normalizer_spec (3) with add_dummy_prefix (3) false.
    load(model.append("\x1a\x02\x18\x00", 4), path, inside_);
    note_pieces();
  }

  // The library's own, unless a name is given.
  void set_bos(const std::optional<std::string>& name, const std::filesystem::path& config) {
    bos_ = token("bos_token", name, processor_.bos_id(), config);
  }
  void set_eos(const std::optional<std::string>& name, const std::filesystem::path& config) {
    eos_ = token("eos_token", name, processor_.eos_id(), config);
  }

  std::int32_t vocabulary() const override { return processor_.GetPieceSize(); }
  std::int32_t bos() const override { return bos_; }
  std::int32_t eos() const override { return eos_; }
  std::optional<std::int32_t> id_of_token(const std::string& name) const override {
    const std::int32_t id = processor_.PieceToId(name);
    return processor_.IdToPiece(id) == name ? std::optional(id) : std::nullopt;
  }

  std::vector<std::pair<std::string, std::int32_t>> pieces() const {
    std::vector<std::pair<std::string, std::int32_t>> all;
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (!processor_.IsControl(id) && !processor_.IsUnknown(id) && !processor_.IsUnused(id))
        all.emplace_back(processor_.IdToPiece(id), id);
    }
    return all;
  }

  bool may_cut(char32_t left, char32_t right) const override {
    const char32_t before = with_plain_space(left), after = with_plain_space(right);
    if (facts_.space_is_suffix || in_pieces_.contains(before, after)) return false;
    if (facts_.removes_spaces && (before == U' ' || after == U' ')) return false;
    // Unknown characters in a row are one id, unless they are spelled out in bytes.
    return has_bytes_ || characters_.contains(before) || characters_.contains(after);
  }

 private:
  static void load(const std::string& model, const std::filesystem::path& path,
                   sentencepiece::SentencePieceProcessor& processor) {
    std::string problem;
    try {
      const auto status = processor.LoadFromSerializedProto(model);
      if (!status.ok()) problem = status.ToString();
    } catch (const std::exception& error) {
      problem = error.what();
    }
    if (problem.empty() && processor.GetPieceSize() == 0) problem = "no pieces";
    if (!problem.empty())
      throw InputError(path.string() + ": not a SentencePiece model: " + in_quotes(problem));
  }

  void note_pieces() {
    for (int id = 0; id < processor_.GetPieceSize(); ++id) {
      if (processor_.IsByte(id)) has_bytes_ = true;
      if (processor_.IsByte(id) || processor_.IsControl(id) || processor_.IsUnknown(id)) continue;
      const std::string& piece = processor_.IdToPiece(id);
      if (!is_utf8(piece)) continue;  // no text holds it
      char32_t left = 0;
      for (std::size_t i = 0; i < piece.size();) {
        const CodePoint c = code_point_at(piece, i);
        const char32_t right = with_plain_space(c.value);
        if (i > 0) in_pieces_.add(left, right);
        if (c.bytes == piece.size()) characters_.insert(right);
        left = right;
        i += c.bytes;
      }
    }
  }

  std::int32_t token(const char* role, const std::optional<std::string>& name, std::int32_t own,
                     const std::filesystem::path& config) const {
    const std::optional<std::int32_t> id = name ? id_of_token(*name) : own;
    if (!id || *id < 0) {
      throw InputError(config.string() + ": " + role + ": " +
                       (name ? in_quotes(*name) + " is" : "there is") +
                       " no piece of tokenizer.model");
    }
    return *id;
  }

  void append_part(std::string_view part, PieceStart start, WordCache& cache,
                   std::vector<std::int32_t>& ids) const override {
    CodePoint left = code_point_at(part, 0);
    // "legacy" is in front of every part between special tokens, whatever it begins with.
    const bool wanted = legacy_
                            ? start != PieceStart::kWithin
                            : start == PieceStart::kText && with_plain_space(left.value) != U' ';
    bool prefixed = add_prefix_space_ && wanted;
    for (std::size_t begin = 0, end = left.bytes; begin < part.size();) {
      for (; end < part.size(); end += left.bytes) {
        const CodePoint right = code_point_at(part, end);
        if (may_cut(left.value, right.value)) break;
        left = right;
      }
      append_word(part.substr(begin, end - begin), prefixed, cache, ids);
      prefixed = false;
      begin = end;
      if (begin == part.size()) break;
      left = code_point_at(part, begin);
      end = begin + left.bytes;
    }
  }

  void append_word(std::string_view word, bool prefixed, WordCache& cache,
                   std::vector<std::int32_t>& ids) const {
    const WordCache::Key key = cache.key(word);
    if (!prefixed) {
      if (const auto known = cache.find(key)) {
        ids.insert(ids.end(), known->begin(), known->end());
        return;
      }
    }
    std::vector<int> own;
    const auto status = (prefixed ? processor_ : inside_).Encode(word, &own);
    if (!status.ok()) throw InputError("a text cannot be tokenized: " + status.ToString());
    ids.insert(ids.end(), own.begin(), own.end());
    if (!prefixed) cache.add(key, own);
  }

  bool add_prefix_space_, legacy_;
  Facts facts_;
  sentencepiece::SentencePieceProcessor processor_;  // of what begins a text
  sentencepiece::SentencePieceProcessor inside_;     // of anything else
  bool has_bytes_ = false;
  CharacterPairs in_pieces_;
  std::unordered_set<char32_t> characters_;  // that are pieces
  std::int32_t bos_ = -1;
  std::int32_t eos_ = -1;
};

}  // namespace

std::vector<std::pair<std::string, std::int32_t>> sentencepiece_pieces(
    const std::filesystem::path& file) {
  return SentencePieceTokenizer(file, true, true).pieces();
}

std::vector<SentencePiece> sentencepiece_vocabulary(const std::filesystem::path& file) {
  constexpr std::uint64_t kPiece = 1, kText = 1, kScore = 2, kType = 3;
  const std::string bytes = read_text_file(file, kMaxModelBytes);
  check_model(bytes, file);
  std::vector<SentencePiece> pieces;
  for (std::string_view model = bytes; !model.empty();) {
    const Field field = take_field(model).value();
    if (field.number != kPiece) continue;
    SentencePiece piece;
    for (std::string_view inner = field.bytes; !inner.empty();) {
      const auto part = take_field(inner);
      if (!part) throw InputError(file.string() + ": not a SentencePiece model");
      if (part->number == kText) piece.text = part->bytes;
      if (part->number == kScore && part->bytes.size() == sizeof(float))
        std::memcpy(&piece.score, part->bytes.data(), sizeof(float));
      if (part->number == kType) piece.type = static_cast<std::int32_t>(part->value);
    }
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

std::unique_ptr<Tokenizer> load_sentencepiece(const std::filesystem::path& file,
                                              const TokenizerConfig& config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>(
      file, config.add_prefix_space.value_or(true), config.legacy.value_or(true));
  // Hugging Face's LlamaTokenizer adds it unless told otherwise.
  if (config.add_bos.value_or(true)) tokenizer->set_bos(config.bos, config.file);
  if (config.add_eos.value_or(false)) tokenizer->set_eos(config.eos, config.file);
  return tokenizer;
}

}  // namespace roundhouse
