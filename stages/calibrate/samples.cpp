#include "stages/calibrate/samples.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include <fmt/format.h>

#include "base/counted.h"
#include "base/error.h"
#include "base/random.h"
#include "stages/calibrate/document_tokens.h"

namespace roundhouse {
namespace {

constexpr std::int64_t kMicroBatchTokens = 2048;

// What every way to draw has to do with.
struct Draw {
  const SampleOptions& options;
  DocumentTokens& text;
  const std::vector<std::size_t>& order;  // of the documents
  Random& random;

  std::size_t length() const { return static_cast<std::size_t>(options.sequence_length); }
  std::size_t samples() const { return static_cast<std::size_t>(options.samples); }
  std::size_t tokens() const { return samples() * length(); }
  // Documents without text, which have only what stands around one, are no tokens of a row.
  std::size_t row_tokens(std::size_t document) const {
    return text.blank(document) ? 0 : text.tokens(document);
  }
};

// Too little text, all of which has been counted: `windows` of it are there.
[[noreturn]] void fail_for_want_of_text(const Draw& draw, std::size_t windows,
                                        std::size_t longest) {
  std::size_t total = 0;
  for (const std::size_t document : draw.order) total += draw.row_tokens(document);
  const std::string& keys = draw.options.keys;
  const std::size_t in_a_row = total / draw.length();
  std::string line = fmt::format(
      "{}: {} with {} (the longest has {}) make {} by drawing: {}, and {}.samples: {} of "
      "{}.sequence_length: {} need {}, {}. ",
      draw.options.text.string(), counted(draw.order.size(), "document"), counted(total, "token"),
      longest, counted(windows, "window"),
      names_of_drawings()[static_cast<std::size_t>(draw.options.drawing)], keys, draw.samples(),
      keys, draw.length(), counted(draw.samples(), "window"), counted(draw.tokens(), "token"));
  if (draw.options.drawing != Drawing::kConcatenated && in_a_row >= draw.samples()) {
    line += "Use drawing: concatenated";
  } else if (draw.options.drawing != Drawing::kConcatenated && in_a_row > windows) {
    line += "Use drawing: concatenated with at most " + counted(in_a_row, "sample") +
            ", a shorter sequence_length, or more text";
  } else if (windows > 0) {
    line +=
        "Use at most " + counted(windows, "sample") + ", a shorter sequence_length, or more text";
  } else {
    line += "Use a shorter sequence_length, or more text";
  }
  throw InputError(line);
}

// The tokens that are taken, in the order of the samples, and what was looked at for them.
struct Taken {
  std::vector<TokenSpan> spans;
  std::size_t looked_at = 0;  // documents
  std::size_t unfit = 0;      // of them
};

Taken draw_windows(const Draw& draw) {
  Taken taken;
  std::size_t longest = 0, fit_tokens = 0;
  // Documents are tokenized when their turn comes, as many at a time as windows are missing.
  const auto count_from = [&](std::size_t place) {
    const std::size_t missing = draw.samples() - taken.spans.size();
    draw.text.count(
        std::span(draw.order).subspan(place, std::min(missing, draw.order.size() - place)));
    return place + missing;
  };
  std::size_t counted = 0;
  for (std::size_t place = 0; place < draw.order.size() && taken.spans.size() < draw.samples();
       ++place) {
    if (place == counted) counted = count_from(place);
    const std::size_t tokens = draw.text.tokens(draw.order[place]);
    ++taken.looked_at;
    longest = std::max(longest, tokens);
    if (tokens < draw.length()) {
      ++taken.unfit;
      continue;
    }
    fit_tokens += tokens;
    taken.spans.push_back(
        {draw.order[place], draw.random.below(tokens - draw.length() + 1), draw.length()});
  }
  if (taken.spans.size() == draw.samples()) return taken;

  const std::size_t fit = taken.spans.size();
  if (fit_tokens < draw.tokens()) {
    fail_for_want_of_text(draw, fit_tokens / draw.length(), longest);
  }
  // All were used once, and are used again in the same order.
  while (taken.spans.size() < draw.samples()) {
    const std::size_t document = taken.spans[taken.spans.size() - fit].document;
    const std::size_t places = draw.text.tokens(document) - draw.length() + 1;
    taken.spans.push_back({document, draw.random.below(places), draw.length()});
  }
  return taken;
}

Taken draw_packed(const Draw& draw) {
  Taken taken;
  std::size_t ids = 0, counted = 0, longest = 0;
  for (std::size_t place = 0; place < draw.order.size() && ids < draw.tokens(); ++place) {
    const std::size_t document = draw.order[place];
    if (place == counted) {
      const std::size_t missing = (draw.tokens() - ids + draw.length() - 1) / draw.length();
      counted += std::min(missing, draw.order.size() - place);
      draw.text.count(std::span(draw.order).subspan(place, counted - place));
    }
    ++taken.looked_at;
    const std::size_t tokens = draw.text.tokens(document);
    longest = std::max(longest, tokens);
    if (draw.text.blank(document) || tokens > draw.length()) {
      ++taken.unfit;
      continue;
    }
    taken.spans.push_back({document, 0, std::min(tokens, draw.tokens() - ids)});
    ids += taken.spans.back().count;
  }
  if (ids < draw.tokens()) fail_for_want_of_text(draw, ids / draw.length(), longest);
  return taken;
}

Taken draw_concatenated(const Draw& draw) {
  std::vector<std::size_t> documents(draw.order.size());
  std::iota(documents.begin(), documents.end(), std::size_t{0});
  draw.text.count(documents);
  std::vector<std::size_t> begins = {0};  // of each document in the row, and the end
  for (const std::size_t document : documents)
    begins.push_back(begins.back() + draw.row_tokens(document));
  const std::size_t total = begins.back(), places = total / draw.length();
  if (places < draw.samples()) {
    std::size_t longest = 0;
    for (const std::size_t document : documents)
      longest = std::max(longest, draw.text.tokens(document));
    fail_for_want_of_text(draw, places, longest);
  }
  // Windows lie side by side from a random token on, and a random choice of them is taken (Fisher and Yates, as far as
  // needed).
  const std::size_t shift = draw.random.below(total - places * draw.length() + 1);
  std::unordered_map<std::size_t, std::size_t> moved;
  const auto at = [&](std::size_t place) {
    const auto found = moved.find(place);
    return found == moved.end() ? place : found->second;
  };
  Taken taken;
  taken.looked_at = documents.size();
  for (std::size_t i = 0; i < draw.samples(); ++i) {
    const std::size_t other = i + draw.random.below(places - i);
    const std::size_t chosen = at(other);
    moved[other] = at(i);
    for (std::size_t begin = shift + chosen * draw.length(), end = begin + draw.length();
         begin < end;) {
      const auto next = std::ranges::upper_bound(begins, begin);
      const auto document = static_cast<std::size_t>(next - begins.begin()) - 1;
      const std::size_t count = std::min(*next, end) - begin;
      taken.spans.push_back({document, begin - begins[document], count});
      begin += count;
    }
  }
  return taken;
}

std::size_t different_documents(const std::vector<TokenSpan>& spans) {
  std::unordered_set<std::size_t> documents;
  for (const TokenSpan& span : spans) documents.insert(span.document);
  return documents.size();
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

const std::vector<std::string>& names_of_drawings() {
  static const std::vector<std::string> names = {"windows", "packed", "concatenated"};
  return names;
}

DrawnSamples draw_samples(const SampleOptions& options, const std::filesystem::path& model,
                          const Tokenizer& tokenizer, ThreadPool& threads, Monitor& monitor) {
  TextKey key{.name = options.text_key};
  if (key.name != TextKey().name) key.model = model;
  const TextFile file(
      options.text, threads, [&] { monitor.tick(); }, key);
  monitor.say("calibration: " + file.description());
  ParallelTokenizer parallel(tokenizer, threads);
  DocumentTokens text(file, parallel, options.drawing == Drawing::kPacked, monitor);
  Random random(options.seed);
  std::vector<std::size_t> order(file.documents());
  std::iota(order.begin(), order.end(), std::size_t{0});
  random.shuffle(order);

  const Draw draw{options, text, order, random};
  Taken taken;
  switch (options.drawing) {
    case Drawing::kWindows:
      taken = draw_windows(draw);
      break;
    case Drawing::kPacked:
      taken = draw_packed(draw);
      break;
    case Drawing::kConcatenated:
      taken = draw_concatenated(draw);
      break;
  }
  const std::size_t used = different_documents(taken.spans);
  std::string line = fmt::format("calibration: {} windows of {} tokens from {}", options.samples,
                                 options.sequence_length, counted(used, "document"));
  if (taken.unfit > 0) {
    line += fmt::format("; {} of {} looked at were {}", taken.unfit, taken.looked_at,
                        options.drawing == Drawing::kPacked ? "longer" : "shorter");
    if (options.drawing == Drawing::kWindows && used < draw.samples())
      line += ", which shorter windows or another drawing would use";
  }
  monitor.say(line);
  return {.samples = Samples(options.samples, options.sequence_length, options.shards,
                             text.gather(taken.spans)),
          .facts = {{"text", file.conversations() ? "conversations"
                             : file.json_lines()  ? "JSON lines"
                                                  : "plain text"},
                    {"documents", file.documents()},
                    {"documents_looked_at", taken.looked_at},
                    {"documents_used", used}}};
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
