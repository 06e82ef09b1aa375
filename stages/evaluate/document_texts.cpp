#include "stages/evaluate/document_texts.h"

#include <algorithm>
#include <map>
#include <optional>

#include <fmt/format.h>

#include "base/error.h"
#include "base/quote.h"
#include "model/template/template_filters.h"
#include "model/template/white_space.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;
using Value = TextTemplate::Value;

// A label: texts, numbers and truths as JSON writes them.
std::optional<std::string> label_of(const Json& value) {
  if (value.is_string()) return value.get<std::string>();
  if (value.is_boolean() || value.is_number_integer()) return value.dump();
  return {};
}

class Document {
 public:
  Document(const TaskTemplate& task, const TaskRecord& record) : task_(task), record_(record) {}

  TaskDocument read() {
    made_.where = record_.where;
    if (task_.subjects) made_.subject = record_.text(task_.subjects->field);
    if (task_.metric == TaskMetric::kPerplexity) {
      read_page();
    } else if (task_.metric == TaskMetric::kGreedy) {
      append_request(text_of(task_.contexts[0]), text_of(task_.choices[0]));
    } else {
      read_choices();
    }
    return std::move(made_);
  }

 private:
  [[noreturn]] void fail(const TaskText& text, const std::string& what) const {
    throw InputError(record_.where + ": " + what + " (" + text.where + ")");
  }

  // A name of the template's, of those before number `before`, or a field.
  const Json* lookup(const std::string& name, std::size_t before) {
    for (std::size_t i = before; i-- > 0;) {
      if (task_.names[i].first != name) continue;
      auto known = known_.find(i);
      if (known == known_.end())
        known = known_.emplace(i, evaluate(task_.names[i].second, i)).first;
      return known->second ? &*known->second : nullptr;
    }
    const auto found = record_.fields.find(name);
    return found == record_.fields.end() ? nullptr : &*found;
  }

  Value evaluate(const TaskText& text, std::size_t before) {
    Value value;
    try {
      value = text.text.evaluate([&](const std::string& name) { return lookup(name, before); });
    } catch (const InputError& error) {
      // That of a name which it uses says where it is already.
      if (std::string_view(error.what()).starts_with(record_.where + ": ")) throw;
      fail(text, error.what());
    }
    if (value) bytes_ += bytes_of(*value);
    if (bytes_ > kMostTemplateBytes) {
      fail(text, fmt::format("texts of more than {} bytes are made of it", kMostTemplateBytes));
    }
    return value;
  }

  Json value_of(const TaskText& text) {
    Value value = evaluate(text, task_.names.size());
    if (!value) fail(text, text.text.name() + " is missing");
    return std::move(*value);
  }

  void check_text(const TaskText& text, const Json& value, const std::string& what) const {
    if (!value.is_string()) fail(text, text.text.name() + " must be " + what);
    if (value.get_ref<const std::string&>().find('\0') != std::string::npos)
      fail(text, text.text.name() + " has a NUL in it");
  }

  std::string text_of(const TaskText& text) {
    const Json value = value_of(text);
    check_text(text, value, "a text");
    return value.get<std::string>();
  }

  std::vector<std::string> texts_of(const TaskText& text) {
    const Json value = value_of(text);
    if (!value.is_array()) fail(text, text.text.name() + " must be a list of texts");
    for (const Json& each : value) check_text(text, each, "a list of texts");
    return value.get<std::vector<std::string>>();
  }

  void append_request(const std::string& context, const std::string& choice) {
    if (choice.empty()) fail(task_.choices[0], "a choice is empty");
    made_.requests.push_back({context, task_.delimiter + choice});
  }

  void read_page() {
    made_.page = text_of(task_.choices[0]);
    const std::string counted = task_.counted ? text_of(*task_.counted) : made_.page;
    made_.words = count_white_space(counted) + 1;  // as re.split(r"\s+", page) counts
    made_.bytes = counted.size();
  }

  void read_choices() {
    std::vector<std::string> contexts, choices;
    for (const TaskText& text : task_.contexts) contexts.push_back(text_of(text));
    if (contexts.size() > 1) {
      choices.assign(contexts.size(), text_of(task_.choices[0]));
    } else if (task_.choices.size() > 1) {
      for (const TaskText& text : task_.choices) choices.push_back(text_of(text));
    } else {
      choices = texts_of(task_.choices[0]);
    }
    if (choices.size() < 2 || choices.size() > kMostChoices) {
      fail(task_.choices[0], fmt::format("there must be 2 to {} choices (`template: greedy` is for "
                                         "texts that are to be continued)",
                                         kMostChoices));
    }
    for (std::size_t i = 0; i < choices.size(); ++i) {
      append_request(contexts[contexts.size() > 1 ? i : 0], choices[i]);
      made_.characters.push_back(count_characters(choices[i]));
    }
    made_.gold = gold(choices.size());
  }

  std::size_t gold(std::size_t choices) {
    const Json value = value_of(*task_.gold);
    const std::optional<std::string> label = label_of(value);
    if (!label) fail(*task_.gold, task_.gold->text.name() + " must be a number or a text");
    if (task_.labels) return index_of(*label, choices);
    if (!task_.answers.empty()) {
      const auto found = task_.answers.find(*label);
      if (found == task_.answers.end()) {
        std::vector<std::string> known;
        for (const auto& [answer, index] : task_.answers) known.push_back(answer);
        fail(*task_.gold, task_.gold->text.name() + " must be one of " + in_quotes(known) +
                              ", not " + in_quotes(*label));
      }
      return checked(found->second, choices);
    }
    if (value.is_boolean() || label->empty() || label->size() > 20 ||
        label->find_first_not_of("0123456789", label->starts_with('-') ? 1 : 0) != label->npos)
      fail(*task_.gold, task_.gold->text.name() + " must be a whole number");
    return checked(label->size() < 10 && !label->starts_with('-') ? std::stoul(*label) : choices,
                   choices, *label);
  }

  std::size_t checked(std::size_t index, std::size_t choices,
                      const std::string& written = "") const {
    if (index < choices) return index;
    fail(*task_.gold, fmt::format("the right answer is number {}, counted from 0, of {} choices",
                                  written.empty() ? std::to_string(index) : written, choices));
  }

  // Where the label stands among those of the choices.
  std::size_t index_of(const std::string& label, std::size_t choices) {
    const TaskText& text = *task_.labels;
    const Json value = value_of(text);
    std::vector<std::string> labels;
    for (const Json& each : value) {
      const std::optional<std::string> one = value.is_array() ? label_of(each) : std::nullopt;
      if (!one) fail(text, text.text.name() + " must be a list of labels");
      labels.push_back(*one);
    }
    if (labels.size() != choices) {
      fail(text, fmt::format("there are {} labels for {} choices", labels.size(), choices));
    }
    const auto count = std::ranges::count(labels, label);
    if (count != 1) {
      fail(*task_.gold, "the answer " + in_quotes(label) +
                            (count == 0 ? " is none of " : " stands more than once among ") +
                            in_quotes(labels));
    }
    return static_cast<std::size_t>(std::ranges::find(labels, label) - labels.begin());
  }

  const TaskTemplate& task_;
  const TaskRecord& record_;
  std::map<std::size_t, Value> known_;  // names, once each
  std::size_t bytes_ = 0;
  TaskDocument made_;
};

}  // namespace

TaskDocument document_of(const TaskTemplate& task, const TaskRecord& record) {
  return Document(task, record).read();
}

}  // namespace roundhouse
