#include "stages/evaluate/perplexity.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "base/error.h"

namespace roundhouse {
Windows cut_windows(const std::vector<std::int32_t>& tokens, std::int64_t length,
                    std::int64_t limit, const std::string& name) {
  std::int64_t count = static_cast<std::int64_t>(tokens.size()) / length;
  if (limit > 0) count = std::min(count, limit);
  if (count == 0) {
    throw InputError(
        fmt::format("{}: {} tokens do not fill one window of {}", name, tokens.size(), length));
  }
  return {{tokens.begin(), tokens.begin() + count * length}, length};
}

std::string join_rows(std::string_view text) {
  std::string joined;
  joined.reserve(text.size() + text.size() / 16);
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size() - 1) + 1;  // behind the line feed
    const std::string_view line = text.substr(0, end);
    if (line.find_first_not_of(" \t\r\n") != std::string_view::npos) joined += line;
    text.remove_prefix(end);
    if (!text.empty()) joined += "\n\n";
  }
  return joined;
}

std::vector<ScoredSequence> sequences_of(const Windows& windows) {
  const auto length = static_cast<std::size_t>(windows.length);
  std::vector<ScoredSequence> sequences;
  for (std::size_t begin = 0; begin < windows.ids.size(); begin += length) {
    const auto window = std::span(windows.ids).subspan(begin, length);
    ScoredRows scored{.first_row = 0, .targets = {window.begin() + 1, window.end()}};
    scored.targets.push_back(-1);
    sequences.push_back({{window.begin(), window.end()}, {std::move(scored)}});
  }
  return sequences;
}

DivergenceFigures figures_of(std::span<const Divergence> rows) {
  DivergenceFigures figures;
  std::vector<double> nats;
  for (const Divergence& row : rows) {
    nats.push_back(row.nats);
    figures.mean += row.nats;
    figures.same_top += static_cast<double>(row.same_top);
  }
  if (nats.empty()) return figures;
  const auto n = static_cast<double>(nats.size());
  figures.mean /= n;
  figures.same_top /= n;
  figures.rows = std::ssize(nats);
  // A model whose output is not finite has no order of its rows.
  if (!std::isfinite(figures.mean)) {
    figures.percentile_99 = figures.largest = figures.same_top = figures.mean;
    return figures;
  }
  std::ranges::sort(nats);
  figures.percentile_99 = nats[(nats.size() * 99 + 99) / 100 - 1];
  figures.largest = nats.back();
  return figures;
}

Perplexity perplexity_of(std::span<const LogLikelihood> windows, std::int64_t length) {
  double sum = 0;
  for (const LogLikelihood& window : windows) sum += -window.sum / static_cast<double>(length - 1);
  return {std::exp(sum / static_cast<double>(windows.size())), std::ssize(windows), length};
}

}  // namespace roundhouse
