#include "model/template/chat_template.h"

#include <cstdlib>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "tests/model/model_files.h"
#include "tests/source_folder.h"

namespace roundhouse {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

class ChatTemplateTest : public testing::Test {
 protected:
  ChatTemplate with(const std::string& source, const json& tokens = json::object()) {
    json config = tokens;
    config["chat_template"] = source;
    write_file(directory_ / "tokenizer_config.json", config.dump());
    return ChatTemplate(directory_.path());
  }
  std::string error_of(const std::string& source, const json& messages = kOne) {
    return input_error_of([&] { (void)with(source).render(messages); });
  }
  void compare(const std::filesystem::path& file) {
    const json golden = json::parse(read_text_file(file));
    for (const json& each : golden["cases"]) {
      const ChatTemplate chat = with(each["template"].get<std::string>(), golden["tokens"]);
      for (std::size_t i = 0; i < golden["conversations"].size(); ++i) {
        const json& messages = golden["conversations"][i];
        const json& text = each["texts"][i];
        if (text.is_null()) {
          EXPECT_NE(input_error_of([&] { (void)chat.render(messages); }), "(no InputError)")
              << each["name"];
        } else {
          EXPECT_EQ(chat.render(messages), text.get<std::string>()) << each["name"] << " " << i;
        }
      }
    }
  }
  inline static const json kOne = {{{"role", "user"}, {"content", "Hi"}}};
  TemporaryFolder directory_;
};

TEST_F(ChatTemplateTest, FormsOfPublishedModelsAreWrittenAsJinjaDoes) {
  compare(source_folder() / "tests/golden/chat/cases.json");
}

// Templates that are not part of the repository: a file made by make_chat.py.
TEST_F(ChatTemplateTest, PublishedTemplatesAreWrittenAsJinjaDoes) {
  const char* const file = std::getenv("ROUNDHOUSE_CHAT_CASES");
  if (file == nullptr) GTEST_SKIP() << "ROUNDHOUSE_CHAT_CASES names no file";
  compare(file);
}

TEST_F(ChatTemplateTest, StandsInAFileOfItsOwnOrInTheConfig) {
  write_file(directory_ / "tokenizer_config.json", R"({"bos_token": {"content": "<b>"}})");
  EXPECT_THAT(input_error_of([&] { ChatTemplate chat(directory_.path()); }),
              AllOf(HasSubstr("tokenizer_config.json: chat_template: there is none"),
                    HasSubstr("chat_template.jinja")));
  write_file(
      directory_ / "tokenizer_config.json",
      R"({"bos_token": {"content": "<b>"}, "chat_template": [{"name": "tool_use", "template": "x"},
                 {"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}"}]})");
  EXPECT_EQ(ChatTemplate(directory_.path()).render(kOne), "<b>Hi");
  write_file(directory_ / "chat_template.jinja", "{{ messages[0].role }}\n");
  const ChatTemplate own(directory_.path());
  EXPECT_EQ(own.render(kOne), "user");
  EXPECT_THAT(own.source(), HasSubstr("chat_template.jinja"));
}

TEST_F(ChatTemplateTest, WhatIsNotReadIsRefusedWithItsLine) {
  EXPECT_THAT(error_of("a\n{% macro x() %}{% endmacro %}"),
              AllOf(HasSubstr("chat_template:2: {% macro %} is not read")));
  EXPECT_THAT(error_of("{% if a %}\n\nb"), HasSubstr("chat_template:1: {% endif %} is missing"));
  EXPECT_THAT(error_of("{% endfor %}"), HasSubstr("{% endfor %} is not read"));
  EXPECT_THAT(error_of("{{ messages"), HasSubstr("{{ without }}"));
  EXPECT_THAT(error_of("{{ 'a }}"), HasSubstr("a text without an end"));
  EXPECT_THAT(error_of("{{ a b }}"), HasSubstr("\"b\" is not read here"));
  EXPECT_THAT(error_of("{{ 1.5 }}"), HasSubstr("a name is missing before \"5\""));
  EXPECT_THAT(error_of("{{ a @ b }}"), HasSubstr("\"@\""));
  EXPECT_THAT(error_of("{{ messages | tojson }}"), HasSubstr("the filter tojson is not supported"));
  EXPECT_THAT(error_of("{{ messages.foo() }}"), HasSubstr("foo of a value of type array"));
  EXPECT_THAT(error_of("{{ strftime_now('%d') }}"), HasSubstr("function strftime_now is not"));
  EXPECT_THAT(error_of("{{ a.b }}"), HasSubstr("what is not defined"));
  EXPECT_THAT(error_of("{{ messages[0].content + 1 }}"), HasSubstr("+ of a value of type string"));
  EXPECT_THAT(error_of("{{ raise_exception('only system') }}"), HasSubstr("says: only system"));
}

TEST_F(ChatTemplateTest, WhatTakesTooMuchIsRefused) {
  const auto times = [](const std::string& text, int count) {
    std::string all;
    for (int i = 0; i < count; ++i) all += text;
    return all;
  };
  EXPECT_THAT(error_of("{{" + times("(", 900) + "1" + times(")", 900) + "}}"),
              HasSubstr("too deep"));
  EXPECT_THAT(error_of("{{" + times("-", 70) + "1}}"), HasSubstr("-"));
  EXPECT_THAT(error_of("{{" + times("not ", 1000) + "1}}"), HasSubstr("too deep"));
  EXPECT_THAT(error_of(times("{% if 1 %}", 1000)), HasSubstr("too deep"));
  EXPECT_THAT(error_of("{{ 1" + times(" + 1", 100'000) + "}}"), HasSubstr("too long"));
  EXPECT_THAT(error_of("{{ a" + times(".b", 1000) + "}}"), HasSubstr("too deep"));
  EXPECT_THAT(error_of(std::string(2'000'000, 'x')), HasSubstr("longer than 1 MiB"));
  EXPECT_THAT(error_of("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}"
                       "{% endfor %}"),
              HasSubstr("too many steps"));
  EXPECT_THAT(error_of("{% set ns = namespace(a='0123456789') %}{% for a in range(99) %}"
                       "{% set ns.a = ns.a + ns.a %}{% endfor %}"),
              HasSubstr("more than 16 MiB"));
  EXPECT_THAT(error_of("{{ range(10000000) }}"), HasSubstr("too long"));
}

}  // namespace
}  // namespace roundhouse
