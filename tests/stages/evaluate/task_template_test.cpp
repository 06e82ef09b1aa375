#include "stages/evaluate/task_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "base/error.h"
#include "stages/evaluate/tasks.h"
#include "tests/base/temporary_folder.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using Json = nlohmann::ordered_json;
using testing::ElementsAre;
using testing::HasSubstr;

const Json kRecord = Json::parse(
    R"({"a": " x_y ", "words": ["one", "two"], "rows": [{"t": "p", "n": 1}, {"t": "q", "n": 2}],
        "o": {"k": "v", "l": "w"}, "bad": [1, {"t": "p"}], "n": 7})");

Json value_of(const std::string& text) {
  const auto lookup = [](const std::string& name) {
    const auto found = kRecord.find(name);
    return found == kRecord.end() ? nullptr : &*found;
  };
  const TextTemplate::Value value = TextTemplate(text).evaluate(lookup);
  return value ? *value : Json("MISSING");
}

template <class Call>
std::string error_of(const Call& call) {
  try {
    (void)call();
  } catch (const InputError& error) {
    return error.what();
  }
  return "none";
}

TEST(TextTemplateTest, FieldsAreFoundWithinObjectsAndLists) {
  EXPECT_EQ(value_of("-{{o.k}}{{ o.l }}-"), "-vw-");
  EXPECT_EQ(value_of("{{rows.t}}"), Json({"p", "q"}));
  EXPECT_EQ(value_of("{{rows.1.n}}"), 2);
  EXPECT_EQ(value_of("{{words.0}}"), "one");
  for (const char* missing : {"{{b}}", "{{o.z}}", "{{rows.z}}", "{{words.2}}", "{{words.t}}",
                              "{{a.b}}", "{{bad.t}}", "{{words.0x}}"})
    EXPECT_EQ(value_of(missing), "MISSING") << missing;
  EXPECT_EQ(value_of("{{o.z | default(b) | default(words.1)}}"), "two");
  EXPECT_EQ(value_of("{{b | default(\"\")}}"), "");
}

TEST(TextTemplateTest, FiltersAreAppliedFromLeftToRight) {
  EXPECT_EQ(value_of("{{a | trim | replace(\"_\", ' ')}}"), "x y");
  EXPECT_EQ(value_of("{{words | capitalize}}"), Json({"One", "Two"}));
  EXPECT_EQ(value_of("{{'a-b-c' | before('-')}} {{'a-b-c' | after('-')}} "
                     "{{'a-b-c' | before_last('-')}} {{'a-b-c' | after_last('-')}}"),
            "a b-c a-b c");
  EXPECT_EQ(value_of("{{'abc' | before('-')}}|{{'abc' | after('-')}}|"
                     "{{'abc' | before_last('-')}}|{{'abc' | after_last('-')}}"),
            "abc|||abc");
  EXPECT_EQ(value_of("{{'a <b> c <d\\n> <e' | remove('<', '>')}}"), "a  c <d\n> <e");
  EXPECT_EQ(value_of("{{words | prepend(['1. ', '2. ']) | join(\"\\n\")}}"), "1. one\n2. two");
  EXPECT_EQ(value_of("{{words | letters}}"), Json({"A", "B"}));
  EXPECT_EQ(value_of("{{o | keys}}"), Json({"k", "l"}));
  EXPECT_EQ(value_of("{{o | values}}"), Json({"v", "w"}));
  EXPECT_EQ(value_of("{{[a, 'b'] | trim}}"), Json({"x_y", "b"}));
}

TEST(TextTemplateTest, ExpressionsAreThoseOfChatTemplates) {
  EXPECT_EQ(value_of("{{[words, 'c']}}"), Json({Json({"one", "two"}), "c"}));
  EXPECT_EQ(value_of("{{words[-1] + '!'}}"), "two!");
  EXPECT_EQ(value_of("{{'yes' if o.k == 'v' else 'no'}} {{a.strip()[0]}}"), "yes x");
  EXPECT_EQ(value_of("{{'none' if b is undefined}}"), "none");
  EXPECT_EQ(value_of("{{n + 1}}"), 8);
  EXPECT_EQ(value_of("a\n {{- o.k }} \n"), "av \n") << "and the last newline stays";
}

TEST(TextTemplateTest, WhatIsWrongIsNamed) {
  const auto error = [](const std::string& text) {
    return error_of([&] { return value_of(text); });
  };
  EXPECT_EQ(error("{{a"), "{{ without }}");
  EXPECT_EQ(error("{{a | tirm}}"), "there is no filter \"tirm\" (did you mean \"trim\"?)");
  EXPECT_EQ(error("{{a | replace('b')}}"), "replace takes 2 arguments, not 1");
  EXPECT_EQ(error("{% if a %}"),
            "of Jinja2 there are only {{expressions}} here, at \"{% if a %}\"");
  EXPECT_EQ(error("{{}}"), "a name is missing before the end");
  EXPECT_EQ(error("{{[a b]}}"), "] is missing before \"b\"");
  EXPECT_THAT(error("{{'a\\x'}}"), HasSubstr(R"(after \ in a text there must be n, t, r, )"));
  EXPECT_THAT(error("{{" + std::string(80, '[') + "}}"), HasSubstr("too deep"));
  EXPECT_EQ(error("x{{b}}"), "\"b\" is missing");
  EXPECT_EQ(error("{{b | trim}}"), "\"b\" is missing");
  EXPECT_EQ(error("x{{n}}"), "\"n\" must be a text");
  EXPECT_EQ(error("{{n | trim}}"), "\"n\", for trim: must be a text or a list of texts");
  EXPECT_EQ(error("{{a | replace('', 'b')}}"), "\"a\", for replace: what is looked for is empty");
  EXPECT_EQ(error("{{words | prepend(['1'])}}"),
            "\"words\", for prepend: there must be 1 of them, not 2");
  std::string growing = "{{a";
  for (int i = 0; i < 40; ++i) growing += " | replace('x', 'xxxxxxxxxxxxxxxx')";
  EXPECT_EQ(error(growing + "}}"), "\"a\", for replace: becomes too long");
}

class TaskTemplateTest : public testing::Test {
 protected:
  std::vector<TaskDocument> read(const std::string& yaml, const std::string& documents) const {
    const auto file = folder_.path() / "data.jsonl";
    std::ofstream(file) << documents;
    return read_task(parse_task_template(yaml, "mine.yaml"), file, 0);
  }
  static std::string refusal(const std::string& yaml) {
    return error_of([&] { return parse_task_template(yaml, "mine.yaml").metric; });
  }

  TemporaryFolder folder_;
};

constexpr const char* kMine = R"(# mine
filters: {plain: 'trim | replace("_", " ")'}
let:
  asked: "{{question | plain}}"
  twice: "{{asked}} {{asked}}"
context: "Q: {{twice}}\nA:"
choices: "{{options | plain}}"
labels: "{{keys}}"
gold: "{{answer}}"
metric: acc_norm
)";
constexpr const char* kDocument =
    R"({"question": " who_is ", "options": ["a_b", "c "], "keys": [1, true], "answer": "true"})";

TEST_F(TaskTemplateTest, ATaskOfOnesOwnIsAFile) {
  const TaskDocument document = read(kMine, kDocument).at(0);
  EXPECT_THAT(document.requests, ElementsAre(TextRequest{"Q: who is who is\nA:", " a b"},
                                             TextRequest{"Q: who is who is\nA:", " c"}));
  EXPECT_EQ(document.gold, 1u);
  EXPECT_THAT(document.characters, ElementsAre(3, 1));
  EXPECT_THAT(error_of([&] { return read(kMine, R"({"options": []})").size(); }),
              HasSubstr("data.jsonl:1: \"question\" is missing (mine.yaml:4: let.asked)"));
  // With what it does not say itself from a named task, and no blank in front of choices.
  const TaskDocument other = read("include: piqa\ncontext: '{{goal}}?'\ndelimiter: ''\n",
                                  R"({"goal": "g", "sol1": "a", "sol2": "b", "label": "1"})")
                                 .at(0);
  EXPECT_THAT(other.requests, ElementsAre(TextRequest{"g?", "a"}, TextRequest{"g?", "b"}));
  EXPECT_EQ(other.gold, 1u);
  const TaskDocument page =
      read("page: '{{t | trim}}'\nmetric: perplexity\n", R"({"t": " two words "})").at(0);
  EXPECT_EQ(page.page, "two words");
  EXPECT_EQ(page.words, 2u);
  EXPECT_EQ(page.bytes, 9u);
}

TEST_F(TaskTemplateTest, WhatIsWrongIsNamedWithFileLineAndKey) {
  EXPECT_EQ(refusal("context: a\nchoices: [b, c]\ngold: '0'\nmetirc: acc\n"),
            "mine.yaml:4: unknown key \"metirc\" (did you mean \"metric\"?)");
  EXPECT_EQ(refusal("choices: [b, c]\n"), "mine.yaml: context: is missing");
  EXPECT_EQ(refusal("context: a\n"), "mine.yaml: choices: is missing");
  EXPECT_EQ(refusal("context: a\nchoices: [b, c]\n"), "mine.yaml: gold: is missing");
  EXPECT_EQ(refusal("context: '{{a'\nchoices: [b, c]\ngold: '0'\n"),
            "mine.yaml:1: context: {{ without }}");
  EXPECT_EQ(refusal("context: a\nchoices: [b]\ngold: '0'\n"),
            "mine.yaml:2: choices: must be a list of two or more texts");
  EXPECT_EQ(refusal("context: a\nchoices: [b, c]\ngold: '0'\nlabels: {A: x}\n"),
            "mine.yaml:4: labels.A: must be a whole number, not \"x\"");
  EXPECT_EQ(refusal("metric: best\n"),
            "mine.yaml:1: metric: must be one of acc, acc_norm, greedy, perplexity, not \"best\"");
  EXPECT_EQ(refusal("include: pica\n"), "mine.yaml:1: include: no task is called \"pica\"");
  EXPECT_EQ(refusal("filters: {trim: 'trim'}\n"),
            "mine.yaml:1: filters.trim: is a filter already: take another name");
  EXPECT_EQ(refusal("include: choices\nsubjects: {field: s}\n"),
            "choices.yaml:5: metric: must be acc where there are subjects");
  EXPECT_EQ(refusal("- a\n"),
            "mine.yaml: must be a group of keys and values, as docs/tasks.md has them");
  EXPECT_THAT(refusal("a: &x 1\n"), HasSubstr("mine.yaml:1: anchors and aliases"));
  std::string many = "let:\n";
  for (int i = 0; i < 101; ++i) many += "  n" + std::to_string(i) + ": a\n";
  EXPECT_EQ(refusal(many), "mine.yaml:1: let: has more than 100 names");
}

// Names that each hold the one before twice.
TEST_F(TaskTemplateTest, TextsThatWouldFillTheMemoryAreRefused) {
  std::string yaml = "let:\n  n0: '{{question}}'\n";
  for (int i = 1; i < 90; ++i) {
    const std::string before = "{{n" + std::to_string(i - 1) + "}}";
    yaml += "  n" + std::to_string(i) + ": '" + before + before + "'\n";
  }
  yaml += "context: '{{n89}}'\nchoices: [a, b]\ngold: '0'\n";
  EXPECT_THAT(
      error_of([&] { return read(yaml, kDocument).size(); }),
      HasSubstr("data.jsonl:1: a text of more than 67108864 bytes (mine.yaml:24: let.n22)"));
}

TEST_F(TaskTemplateTest, ATaskIsKnownByItsContent) {
  std::set<std::string> identities;
  for (const std::string& task : task_names()) {
    // Results name the tasks that are what they were when names were all there was.
    EXPECT_EQ(read_task_template(task).identity, task);
    identities.insert(read_task_template(task).identity);
  }
  EXPECT_EQ(identities.size(), task_names().size());
  const auto identity = [](const std::string& yaml) {
    return parse_task_template(yaml, "mine.yaml").identity;
  };
  const std::string mine = identity(kMine);
  EXPECT_EQ(mine.size(), 32u);
  EXPECT_EQ(identity(std::string("# a remark\nfiles: [elsewhere.jsonl]\n") + kMine), mine);
  EXPECT_NE(identity(std::string(kMine) + "delimiter: '_'\n"), mine);
  const auto file = folder_.path() / "copied.yaml";
  std::ofstream(file) << kMine;
  EXPECT_EQ(read_task_template(file.string()).identity, mine);
  EXPECT_THROW((void)read_task_template((folder_.path() / "none.yaml").string()), InputError);
}

// Those in the source tree, which are installed for people to copy.
TEST_F(TaskTemplateTest, NamedTasksAreFilesThatPeopleCanRead) {
  for (const std::string& task : task_names()) {
    const auto file = source_folder() / "configs/tasks" / (task + ".yaml");
    EXPECT_EQ(read_task_template(file.string()).files, read_task_template(task).files);
  }
}

}  // namespace
}  // namespace roundhouse
