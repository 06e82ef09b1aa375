// Figures of a task from log-likelihoods.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <optional>

#include "base/json_number.h"
#include "stages/evaluate/tasks.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;

// Mean of zeros and ones, and the standard error that lm-eval gives it.
struct Mean {
  double mean = 0, standard_error = 0;
};

Mean mean_of(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  Mean result;
  for (const double value : values) result.mean += value;
  result.mean /= n;
  double squares = 0;
  for (const double value : values) squares += (value - result.mean) * (value - result.mean);
  if (n > 1) result.standard_error = std::sqrt(squares / (n - 1) / n);
  return result;
}

void put_mean(Json& figures, const std::string& name, const Mean& mean) {
  figures[name] = number_or_null<Json>(mean.mean);
  figures[name + "_stderr"] = number_or_null<Json>(mean.standard_error);
}

// The first of the largest, like numpy's argmax; none where a value is not a number: nothing was chosen.
std::optional<std::size_t> largest(const std::vector<double>& values) {
  if (std::ranges::any_of(values, [](double value) { return std::isnan(value); })) return {};
  return static_cast<std::size_t>(std::ranges::max_element(values) - values.begin());
}

// 1 or 0; NaN where nothing was chosen, so that no mean is made of it.
double score_of(std::optional<std::size_t> choice, std::size_t gold) {
  if (!choice) return std::numeric_limits<double>::quiet_NaN();
  return *choice == gold ? 1 : 0;
}

Json to_json(std::optional<std::size_t> choice) { return choice ? Json(*choice) : Json(); }

void score_choices(const TaskScoring& scoring, std::span<const TaskDocument> documents,
                   const std::vector<std::vector<double>>& sums, TaskResult& result) {
  const bool normalized = scoring.metric == TaskMetric::kNormalizedAccuracy;
  std::vector<double> right, right_by_length;
  std::map<std::string, std::vector<double>> subjects;
  for (std::size_t d = 0; d < documents.size(); ++d) {
    const TaskDocument& document = documents[d];
    std::vector<double> by_length;
    for (std::size_t c = 0; c < sums[d].size(); ++c)
      by_length.push_back(sums[d][c] / static_cast<double>(document.characters[c]));
    const std::optional<std::size_t> choice = largest(sums[d]);
    const std::optional<std::size_t> choice_by_length = largest(by_length);
    right.push_back(score_of(choice, document.gold));
    right_by_length.push_back(score_of(choice_by_length, document.gold));
    if (!document.subject.empty()) subjects[document.subject].push_back(right.back());
    Json& answer = result.answers[d];
    answer["gold"] = document.gold;
    answer["choice"] = to_json(choice);
    if (normalized) answer["choice_norm"] = to_json(choice_by_length);
  }
  const Mean by_size = mean_of(right);
  if (!scoring.has_subjects) {
    put_mean(result.figures, "acc", by_size);
    if (normalized) put_mean(result.figures, "acc_norm", mean_of(right_by_length));
    return;
  }
  // Of the subjects' means, which are independent.
  Mean by_subject;
  double variance = 0;
  Json each = Json::object();
  for (const auto& [subject, values] : subjects) {
    const Mean mean = mean_of(values);
    by_subject.mean += mean.mean / static_cast<double>(subjects.size());
    variance += mean.standard_error * mean.standard_error;
    each[subject] = number_or_null<Json>(mean.mean);
  }
  by_subject.standard_error = std::sqrt(variance) / static_cast<double>(subjects.size());
  put_mean(result.figures, "acc", scoring.mean_of_subjects ? by_subject : by_size);
  result.figures["acc_by_subject"] = number_or_null<Json>(by_subject.mean);
  result.figures["acc_by_size"] = number_or_null<Json>(by_size.mean);
  result.figures["subjects"] = std::move(each);
}

}  // namespace

TaskScoring scoring_of(const TaskTemplate& task, Protocol protocol) {
  const auto mean = task.mean_of_subjects.find(protocol);
  return {.metric = task.metric,
          .has_subjects = task.subjects.has_value(),
          .mean_of_subjects = mean != task.mean_of_subjects.end() && mean->second};
}

TaskResult score_task(const TaskScoring& scoring, std::span<const TaskDocument> documents,
                      const std::vector<std::vector<std::size_t>>& results,
                      std::span<const LogLikelihood> log_likelihoods) {
  TaskResult result;
  std::vector<std::vector<double>> sums(documents.size());
  for (std::size_t d = 0; d < documents.size(); ++d) {
    Json answer = {{"document", d}};
    Json list = Json::array();
    for (const std::size_t r : results[d]) {
      sums[d].push_back(log_likelihoods[r].sum);
      list.push_back(number_or_null<Json>(log_likelihoods[r].sum));
    }
    answer["log_likelihoods"] = std::move(list);
    result.answers.push_back(std::move(answer));
  }

  if (scoring.wants_greedy()) {
    std::vector<double> right;
    double sum = 0;
    for (std::size_t d = 0; d < documents.size(); ++d) {
      const bool greedy = log_likelihoods[results[d][0]].greedy;
      const bool finite = !std::isnan(sums[d][0]);
      right.push_back(!finite ? std::numeric_limits<double>::quiet_NaN() : greedy ? 1 : 0);
      result.answers[d]["greedy"] = finite ? Json(greedy) : Json();
      sum += sums[d][0];
    }
    put_mean(result.figures, "acc", mean_of(right));
    result.figures["perplexity"] =
        number_or_null<Json>(std::exp(-sum / static_cast<double>(documents.size())));
  } else if (scoring.metric == TaskMetric::kPerplexity) {
    double sum = 0, words = 0, bytes = 0;
    for (std::size_t d = 0; d < documents.size(); ++d) {
      for (const double window : sums[d]) sum += window;
      words += static_cast<double>(documents[d].words);
      bytes += static_cast<double>(documents[d].bytes);
    }
    result.figures["word_perplexity"] = number_or_null<Json>(std::exp(-sum / words));
    result.figures["byte_perplexity"] = number_or_null<Json>(std::exp(-sum / bytes));
    result.figures["bits_per_byte"] = number_or_null<Json>(-sum / bytes / std::log(2.0));
  } else {
    score_choices(scoring, documents, sums, result);
  }
  result.figures["documents"] = documents.size();
  return result;
}

}  // namespace roundhouse
