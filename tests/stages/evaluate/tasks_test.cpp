#include "stages/evaluate/tasks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "base/error.h"
#include "model/template/white_space.h"
#include "stages/evaluate/wikitext.h"
#include "tests/base/temporary_folder.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
const std::filesystem::path kModel = source_folder() / "tests/data/tiny-world";

std::vector<TaskDocument> read(const std::string& task, const std::filesystem::path& file,
                               int limit = 0) {
  return read_task(read_task_template(task), file, limit);
}

TaskScoring scoring(const std::string& task, Protocol protocol = Protocol::kLmEval) {
  return scoring_of(read_task_template(task), protocol);
}

class TasksTest : public testing::Test {
 protected:
  std::filesystem::path write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((folder_.path() / name).parent_path());
    std::ofstream(folder_.path() / name, std::ios::binary) << text;
    return folder_.path() / name;
  }
  TaskDocument first(const std::string& task, const std::string& text,
                     const std::string& name = "file.jsonl") const {
    return read(task, write(name, text)).at(0);
  }
  std::string error_of(const std::string& task, const std::string& text) const {
    try {
      (void)first(task, text);
    } catch (const InputError& error) {
      return error.what();
    }
    return "none";
  }

  TemporaryFolder folder_;
};

// Prompts by hand, after the definitions of the tasks.
TEST_F(TasksTest, PromptsAreThoseOfTheHarness) {
  TaskDocument piqa = first("piqa", R"({"goal": "g", "sol1": "one", "sol2": "two", "label": 1})");
  EXPECT_THAT(piqa.requests, ElementsAre(TextRequest{"Question: g\nAnswer:", " one"},
                                         TextRequest{"Question: g\nAnswer:", " two"}));
  EXPECT_EQ(piqa.gold, 1u);
  EXPECT_THAT(piqa.characters, ElementsAre(3, 3));

  const TaskDocument winogrande = first(
      "winogrande",
      R"({"sentence": "Ann met Bea, _ was late. ", "option1": "Ann", "option2": "Bea", "answer": "2"})");
  EXPECT_THAT(winogrande.requests, ElementsAre(TextRequest{"Ann met Bea, Ann", " was late."},
                                               TextRequest{"Ann met Bea, Bea", " was late."}));
  EXPECT_EQ(winogrande.gold, 1u);

  const TaskDocument hellaswag = first(
      "hellaswag",
      R"({"activity_label": "Bike", "ctx_a": "A [x] man [title] rides.", "ctx_b": "éVE Goes İ", "endings": [" on  and  on", "[y] off"], "label": "0"})");
  EXPECT_THAT(hellaswag.requests,
              ElementsAre(TextRequest{"Bike: A man. rides. Éve goes i\u0307", " on and on"},
                          TextRequest{"Bike: A man. rides. Éve goes i\u0307", "  off"}));

  const TaskDocument lambada = first("lambada_openai", R"({"text": "one two\nthree four"})");
  EXPECT_THAT(lambada.requests, ElementsAre(TextRequest{"one two\nthree", " four"}));

  const TaskDocument boolq =
      first("boolq", R"({"passage": "p", "question": "q", "label": "true"})");
  EXPECT_THAT(boolq.requests, ElementsAre(TextRequest{"p\nQuestion: q?\nAnswer:", " no"},
                                          TextRequest{"p\nQuestion: q?\nAnswer:", " yes"}));
  EXPECT_EQ(boolq.gold, 1u);
  EXPECT_EQ(first("boolq", R"({"passage": "p", "question": "q", "answer": false})").gold, 0u);

  const TaskDocument rte =
      first("rte", "index\tsentence1\tsentence2\tlabel\n0\t\"a\tb\tnot_entailment\n", "dev.tsv");
  EXPECT_THAT(rte.requests,
              ElementsAre(TextRequest{"\"a\nQuestion: b True or False?\nAnswer:", " True"},
                          TextRequest{"\"a\nQuestion: b True or False?\nAnswer:", " False"}));
  EXPECT_EQ(rte.gold, 1u);

  const TaskDocument truthful =
      first("truthfulqa_mc1", R"([{"question": "q", "mc1_targets": {"z": 1, "a": 0}}])", "mc.json");
  EXPECT_TRUE(truthful.requests[0].context.starts_with("Q: What is human life expectancy"));
  EXPECT_TRUE(truthful.requests[0].context.ends_with("in Barcelona, Spain.\n\nQ: q\nA:"));
  EXPECT_EQ(truthful.requests[0].continuation, " z");
  EXPECT_EQ(truthful.requests[1].continuation, " a");
}

TEST_F(TasksTest, LabelledQuestionsComeInThreeForms) {
  const std::vector<TextRequest> want = {{"Question: q\nAnswer:", " x"},
                                         {"Question: q\nAnswer:", " y"}};
  for (
      const char* text :
      {R"({"question": {"stem": "q", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}]}, "answerKey": "2"})",
       R"({"question": "q", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"})",
       R"({"question": "q", "choices": ["x", "y"], "answerKey": "B"})"}) {
    const TaskDocument arc = first("arc_easy", text);
    EXPECT_EQ(arc.requests, want);
    EXPECT_EQ(arc.gold, 1u);
  }
  EXPECT_EQ(
      first("openbookqa", R"({"question_stem": "q", "choices": ["x", "y"], "answerKey": " A"})")
          .requests[0],
      (TextRequest{"q", " x"}));
}

TEST_F(TasksTest, SubjectsAreFilesOfAFolder) {
  write("mmlu/world_religions_test.csv", "\" one, two \",a,b,c,d,C\nq,1,2,3,4,A\n");
  write("mmlu/anatomy_test.csv", "question,choice0,choice1,choice2,choice3,answer\nq,1,2,3,4,3\n");
  write("mmlu/anatomy_dev.csv", "no test");
  const auto documents = read("mmlu", folder_.path() / "mmlu", 1);
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_EQ(documents[0].subject, "anatomy");
  EXPECT_EQ(documents[0].gold, 3u);
  EXPECT_EQ(documents[1].requests[2],
            (TextRequest{"The following are multiple choice questions (with answers) about world "
                         "religions.\n\none, two\nA. a\nB. b\nC. c\nD. d\nAnswer:",
                         " C"}));
  EXPECT_EQ(documents[1].gold, 2u);
}

TEST_F(TasksTest, LabelsMayStandInAFileBeside) {
  const auto file = write("valid.jsonl", "{\"goal\": \"g\", \"sol1\": \"a\", \"sol2\": \"b\"}\n");
  write("valid-labels.lst", "1\n");
  EXPECT_EQ(read("piqa", file)[0].gold, 1u);
  write("valid-labels.lst", "1\n0\n");
  EXPECT_THROW((void)read("piqa", file), InputError);
}

TEST_F(TasksTest, WhatIsWrongIsNamedWithFileLineAndKey) {
  EXPECT_THAT(
      error_of("choices", R"({"context": "c", "choices": ["a", "b"], "gold": 2})"),
      HasSubstr("file.jsonl:1: the right answer is number 2, counted from 0, of 2 choices"));
  EXPECT_THAT(error_of("choices", R"({"context": "c", "choices": ["a", ""], "gold": 1})"),
              HasSubstr("file.jsonl:1: a choice is empty"));
  EXPECT_THAT(error_of("choices", R"({"context": "c", "choices": ["b"], "gold": 0})"),
              HasSubstr("there must be 2 to 1000 choices (`template: greedy`"));
  EXPECT_THAT(error_of("choices", R"({"context": "c", "choices": ["a", 1], "gold": 0})"),
              HasSubstr("\"choices\" must be a list of texts (choices.yaml:3: choices)"));
  EXPECT_THAT(error_of("choices", R"({"context": "c", "choices": "ab", "gold": 0})"),
              HasSubstr("\"choices\" must be a list of texts"));
  for (const char* gold : {"\"x\"", "true", "0.5", "\"\"", "[0]"}) {
    EXPECT_THAT(error_of("choices", std::string(R"({"context": "c", "choices": ["a", "b"], )") +
                                        "\"gold\": " + gold + "}"),
                HasSubstr("\"gold\" must be a "))
        << gold;
  }
  EXPECT_THAT(error_of("choices", R"({"context": "c", "choices": ["a", "b"], "gold": -1})"),
              HasSubstr("the right answer is number -1, counted from 0, of 2 choices"));
  EXPECT_EQ(first("choices", R"({"context": "c", "choices": ["a", "b"], "gold": "1"})").gold, 1u);
  EXPECT_THAT(error_of("boolq", R"({"passage": "p", "question": "q", "answer": "maybe"})"),
              HasSubstr("\"answer\" must be one of \"0\", \"1\", \"false\", \"true\", not "
                        "\"maybe\" (boolq.yaml:5: gold)"));
  EXPECT_THAT(error_of("lambada_openai", R"({"text": "ends in a blank "})"),
              HasSubstr("file.jsonl:1: a choice is empty (lambada_openai.yaml:4: continuation)"));
  EXPECT_THAT(error_of("choices", R"({"choices": ["a"], "gold": 0})"),
              HasSubstr("file.jsonl:1: \"context\" is missing"));
  EXPECT_THAT(error_of("greedy", R"({"context": "c", "choices": ["a", "b"], "gold": 0})"),
              HasSubstr("\"choices\", for only: must have one text"));
  EXPECT_THAT(
      error_of("winogrande", R"({"sentence": "s", "option1": "a", "option2": "b", "answer": "1"})"),
      HasSubstr("a choice is empty (winogrande.yaml:7: continuation)"));
  EXPECT_THAT(error_of("winogrande",
                       R"({"sentence": "_ s", "option1": "a", "option2": "b", "answer": "3"})"),
              HasSubstr("\"answer\" must be one of \"1\", \"2\", not \"3\""));
  EXPECT_THAT(error_of("arc_easy", R"({"question": "q", "choices": ["x", "y"], "answerKey": "C"})"),
              HasSubstr("the answer \"C\" is none of \"A\", \"B\""));
  EXPECT_THAT(error_of("truthfulqa_mc1", R"({"question": "q", "mc1_targets": {"z": 1, "a": 1}})"),
              HasSubstr("the answer \"1\" stands more than once among \"1\", \"1\""));
  EXPECT_THAT(
      error_of(
          "arc_easy",
          R"({"question": "q", "choices": {"text": ["x", "y"], "label": ["A"]}, "answerKey": "A"})"),
      HasSubstr("there are 1 labels for 2 choices"));
  EXPECT_THAT(
      error_of("mmlu",
               R"({"subject": "s", "question": "q", "choices": ["1", "2", "3"], "answer": 0})"),
      HasSubstr(
          "\"options\", for prepend: there must be 4 of them, not 3 (mmlu.yaml:10: let.lines)"));
  EXPECT_THAT(error_of("piqa", R"({"goal": 1, "sol1": "a", "sol2": "b", "label": 0})"),
              HasSubstr("\"goal\" must be a text (piqa.yaml:4: context)"));
  EXPECT_THAT(
      error_of("piqa", "{\"goal\": \"a\\u0000\", \"sol1\": \"a\", \"sol2\": \"b\", \"label\": 0}"),
      HasSubstr("has a NUL in it"));
  EXPECT_THAT(
      error_of("mmlu", R"({"question": "q", "choices": ["1", "2", "3", "4"], "answer": 0})"),
      HasSubstr("\"subject\" is missing"));
  EXPECT_THROW((void)read("mmlu", folder_.path()), InputError);
}

TEST_F(TasksTest, AContextLosesItsWhiteSpaceToTheContinuation) {
  const auto tokenizer = load_tokenizer(kModel);
  const ModelConfig model = read_model_config(kModel);
  const RequestEncoder encoder(*tokenizer, model, Protocol::kLmEval);
  const RequestEncoder paper(*tokenizer, model, Protocol::kPaper);
  const auto whole = tokenizer->encode_document("The cat is in the house.");
  TokenPair pair = encoder.encode({"The cat is in the \n", "house."});
  EXPECT_EQ(pair.context, tokenizer->encode_document("The cat is in the"));
  pair = encoder.encode({"The cat is in the ", "house."});
  EXPECT_EQ(pair.context, tokenizer->encode_document("The cat is in the"));
  std::vector<std::int32_t> both = pair.context;
  both.insert(both.end(), pair.continuation.begin(), pair.continuation.end());
  EXPECT_EQ(both, whole);
  EXPECT_EQ(encoder.encode({"The cat is in the", " house."}), pair);
  // Without what the tokenizer puts in front.
  const TokenPair bare = paper.encode({"The cat is in the", " house."});
  EXPECT_EQ(bare.context, tokenizer->encode("The cat is in the"));
  EXPECT_EQ(bare.continuation, pair.continuation);
  // Without a context: the token that begins a text, in the papers that which ends one.
  EXPECT_EQ(encoder.encode({"", " house."}).context, (std::vector<std::int32_t>{model.bos}));
  EXPECT_EQ(paper.encode({"", " house."}).context, (std::vector<std::int32_t>{model.eos.at(0)}));
  // A text that begins with that token has it once.
  EXPECT_EQ(encoder.encode({"<s>The cat", " is"}).context, tokenizer->encode("<s>The cat"));
  EXPECT_THROW((void)encoder.encode({"a", ""}), InputError);
}

TEST_F(TasksTest, LongInputsLoseTheirBeginning) {
  const auto tokenizer = load_tokenizer(kModel);
  ModelConfig model = read_model_config(kModel);
  model.max_positions = 5;
  const RequestEncoder encoder(*tokenizer, model, Protocol::kLmEval);
  TaskDocument document;
  document.requests = {{"The cat is in the house. The dog is in the house.", " No"},
                       {"The cat is in the house. The dog is in the house.", " Yes"}};
  const TaskSequences encoded = encoder.encode(std::span(&document, 1), [] {});
  const TokenPair pair = encoder.encode(document.requests[0]);
  std::vector<std::int32_t> ids = pair.context;
  ids.insert(ids.end(), pair.continuation.begin(), pair.continuation.end());
  ids.pop_back();
  EXPECT_EQ(encoded.sequences[0].ids, (std::vector<std::int32_t>{ids.end() - 5, ids.end()}));
  EXPECT_EQ(encoded.sequences[0].scored[0].targets, pair.continuation);
  EXPECT_EQ(encoded.sequences[0].scored[0].first_row, 5 - std::ssize(pair.continuation));
  EXPECT_EQ(encoded.cut, 1u) << "documents, not requests";
  document.requests.pop_back();
  for (const std::int64_t more : {-1, 0}) {  // its tokens are as many as fit
    model.max_positions = std::ssize(ids) + more;
    const RequestEncoder wide(*tokenizer, model, Protocol::kLmEval);
    EXPECT_EQ(wide.encode(std::span(&document, 1), [] {}).cut, more < 0 ? 1u : 0u);
  }
  model.max_positions = 1;
  const RequestEncoder tiny(*tokenizer, model, Protocol::kLmEval);
  EXPECT_THROW((void)tiny.encode({"The cat is", " in the house of glass."}), InputError);
}

TEST_F(TasksTest, AnswersOfOneTokenAreOnePassOfTheModel) {
  const auto tokenizer = load_tokenizer(kModel);
  const RequestEncoder encoder(*tokenizer, read_model_config(kModel), Protocol::kLmEval);
  std::vector<TaskDocument> documents(2);
  documents[0].requests = {{"a", " A"}, {"a", " A house of glass."}, {"a", " B"}};
  documents[1].requests = {{"a", " C"}};
  const TaskSequences encoded = encoder.encode(documents, [] {});
  const TokenPair one = encoder.encode(documents[0].requests[0]);
  const TokenPair other = encoder.encode(documents[0].requests[2]);
  ASSERT_EQ(one.continuation.size(), 1u);  // what this test is about
  ASSERT_EQ(other.continuation.size(), 1u);
  ASSERT_EQ(encoded.sequences.size(), 3u);
  EXPECT_EQ(encoded.sequences[0].scored.size(), 2u);
  EXPECT_EQ(encoded.sequences[0].scored[1].targets, other.continuation);
  EXPECT_THAT(encoded.results[0], ElementsAre(0, 2, 1));
  EXPECT_THAT(encoded.results[1], ElementsAre(3));
}

TEST_F(TasksTest, PagesAreWindowsThatPredictEachTokenOnce) {
  const auto tokenizer = load_tokenizer(kModel);
  ModelConfig model = read_model_config(kModel);
  TaskDocument page;
  page.page = "The cat is in the house. The dog is in the market.";
  for (const std::int64_t longest : {4, 5, 100}) {
    model.max_positions = longest;
    const RequestEncoder encoder(*tokenizer, model, Protocol::kLmEval);
    const auto tokens = tokenizer->encode_document(page.page);
    std::vector<std::int32_t> predicted;
    const TaskSequences encoded = encoder.encode(std::span(&page, 1), [] {});
    for (const ScoredSequence& window : encoded.sequences) {
      const ScoredRows& scored = window.scored.at(0);
      EXPECT_LE(std::ssize(window.ids), longest);
      // Full windows begin with the token before what they predict, the last one earlier.
      const bool full = std::ssize(scored.targets) == std::min(longest, std::ssize(tokens));
      EXPECT_EQ(scored.first_row == 0, full);
      std::vector<std::int32_t> all = {model.bos};
      all.insert(all.end(), tokens.begin(), tokens.end());
      const auto end = std::ssize(predicted) + std::ssize(scored.targets);
      EXPECT_EQ(window.ids, (std::vector<std::int32_t>{all.begin() + end - std::ssize(window.ids),
                                                       all.begin() + end}));
      predicted.insert(predicted.end(), scored.targets.begin(), scored.targets.end());
    }
    EXPECT_EQ(predicted, tokens);
    EXPECT_EQ(encoded.results[0].size(), encoded.sequences.size());
  }
}

TEST_F(TasksTest, FiguresAreThoseOfTheHarness) {
  std::vector<TaskDocument> documents(4);
  for (TaskDocument& each : documents) {
    each.characters = {1, 10};
    each.gold = 1;
  }
  const std::vector<std::vector<std::size_t>> results = {{0, 1}, {2, 3}, {4, 5}, {6, 7}};
  std::vector<LogLikelihood> sums(8);
  const double values[] = {-1, -2, -2, -1, -3, -3, -1, -11};
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i].sum = values[i];
  const TaskResult result = score_task(scoring("choices"), documents, results, sums);
  // Of equal ones the first is taken; a character's share of -2 over 10 beats -1 over 1.
  EXPECT_EQ(result.figures["acc"], 0.25);
  EXPECT_DOUBLE_EQ(result.figures["acc_stderr"].get<double>(), 0.25);
  EXPECT_EQ(result.figures["acc_norm"], 0.75);
  EXPECT_EQ(result.figures["documents"], 4);
  EXPECT_EQ(result.answers[3].dump(),
            R"({"document":3,"log_likelihoods":[-1.0,-11.0],"gold":1,"choice":0,"choice_norm":0})");

  documents[0].subject = "a";
  for (std::size_t i = 1; i < 4; ++i) documents[i].subject = "b";
  const auto mmlu = [&](Protocol protocol) {
    return score_task(scoring("mmlu", protocol), documents, results, sums).figures;
  };
  EXPECT_EQ(mmlu(Protocol::kLmEval)["acc"], 0.25);
  EXPECT_DOUBLE_EQ(mmlu(Protocol::kPaper)["acc"].get<double>(), 1.0 / 6);
  EXPECT_DOUBLE_EQ(mmlu(Protocol::kLmEval)["acc_by_subject"].get<double>(), 1.0 / 6);

  sums[0].greedy = false;
  const TaskResult greedy =
      score_task(scoring("greedy"), std::span(documents).first(2), {{0}, {1}}, sums);
  EXPECT_EQ(greedy.figures["acc"], 0.5);
  EXPECT_DOUBLE_EQ(greedy.figures["perplexity"].get<double>(), std::exp(1.5));

  sums[0].sum = NAN;
  const TaskResult unknown =
      score_task(scoring("greedy"), std::span(documents).first(2), {{0}, {1}}, sums);
  EXPECT_TRUE(unknown.figures["acc"].is_null());
  EXPECT_TRUE(unknown.answers[0]["greedy"].is_null());
  const TaskResult broken = score_task(scoring("choices"), documents, results, sums);
  EXPECT_TRUE(broken.answers[0]["log_likelihoods"][0].is_null());
  EXPECT_TRUE(broken.answers[0]["choice"].is_null());
  EXPECT_TRUE(broken.figures["acc"].is_null()) << "a model without an output has no accuracy";
  EXPECT_TRUE(broken.figures["acc_norm"].is_null());
  EXPECT_TRUE(mmlu(Protocol::kLmEval)["acc"].is_null());
  EXPECT_TRUE(mmlu(Protocol::kPaper)["acc_by_subject"].is_null());
}

TEST_F(TasksTest, PagesHavePerplexitiesOfWordsAndBytes) {
  const auto file =
      write("wiki.test.raw", " \n = One = \n a b .\n \n = = Part = = \n = Two = \n c");
  const auto documents = read("wikitext", file);
  ASSERT_EQ(documents.size(), 2u);
  EXPECT_EQ(documents[1].page, " = Two =\nc");
  EXPECT_EQ(documents[1].words, 5u);  // "", "=", "Two", "=", "c"
  EXPECT_EQ(documents[1].bytes, 12u);
  std::vector<LogLikelihood> sums(3);
  for (LogLikelihood& each : sums) each.sum = -12;
  const TaskResult result =
      score_task(scoring("wikitext"), std::span(documents).last(1), {{0, 2}}, sums);
  EXPECT_DOUBLE_EQ(result.figures["word_perplexity"].get<double>(), std::exp(24.0 / 5));
  EXPECT_DOUBLE_EQ(result.figures["byte_perplexity"].get<double>(), std::exp(2.0));
  EXPECT_DOUBLE_EQ(result.figures["bits_per_byte"].get<double>(), 2 / std::log(2.0));
}

TEST_F(TasksTest, WikiTextIsDetokenized) {
  EXPECT_EQ(detokenized_wikitext("1 @,@ 000 metres ( 0 @.@ 6 mi ) , \" so \" : N 's"),
            "1,000 metres (0.6 mi), \"so\": 1's");
  EXPECT_EQ(detokenized_wikitext(" = = = A = = = \n x"), " === A ===\nx");
}

TEST_F(TasksTest, WhiteSpaceIsPythons) {
  EXPECT_EQ(strip("\u00a0\x1c x \u3000"), "x");
  EXPECT_EQ(strip_end(" é\u2003"), " é");
  EXPECT_EQ(count_white_space("a\u00a0 b\nc"), 2u);
  EXPECT_EQ(count_characters("é\u3000x"), 3u);
}

}  // namespace
}  // namespace roundhouse
