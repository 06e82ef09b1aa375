#include <array>

#include "base/file.h"
#include "model/template/chat_template.h"
#include "model/tokenizer/tokenizer.h"
#include "tests/fuzz/reader.h"
#include "tests/source_folder.h"

using namespace roundhouse;

// The first byte says which files the rest is; two files are separated by a NUL.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  for (const char* name : {"tokenizer.model", "tokenizer.json", "vocab.json", "merges.txt",
                           "tokenizer_config.json", "added_tokens.json", "chat_template.jinja"}) {
    std::filesystem::remove(fuzz::folder() / name);
  }
  const std::string_view rest = fuzz::text_of(data + 1, size - 1);
  const std::size_t middle = std::min(rest.find('\0'), rest.size());
  const std::string_view second = rest.substr(std::min(rest.size(), middle + 1));
  static const std::filesystem::path golden = source_folder() / "tests/golden/tokenizer/bpe";
  switch (data[0]) {
    case 'm':
      fuzz::write("tokenizer.model", rest);
      break;
    case 'j':
      fuzz::write("tokenizer.json", rest.substr(0, middle));
      fuzz::write("tokenizer_config.json", second.empty() ? "{}" : second);
      break;
    case 'v':
      fuzz::write("vocab.json", rest.substr(0, middle));
      fuzz::write("merges.txt", second);
      break;
    case 't':
      fuzz::write("chat_template.jinja", rest);
      return fuzz::may_refuse([&] {
        (void)ChatTemplate(fuzz::folder())
            .render({{{"role", "system"}, {"content", " Be brief.\n"}},
                     {{"role", "user"}, {"content", "Hi, \xC3\xA9"}},
                     {{"role", "assistant"}, {"content", "<think>x</think>Hello"}}});
      });
    default:
      std::filesystem::create_symlink(golden / "tokenizer.json", fuzz::folder() / "tokenizer.json");
      fuzz::write("tokenizer_config.json", rest.substr(0, middle));
      fuzz::write("added_tokens.json", second);
  }
  return fuzz::may_refuse([&] {
    const auto tokenizer = load_tokenizer(fuzz::folder());
    for (const std::string_view text :
         {"", "Once upon a time", " \n\t1234 \xC3\xA9t\xC3\xA9 \xF0\x9F\x90\xA2<s>"}) {
      for (const std::int32_t id : tokenizer->encode_document(text)) {
        if (id < 0) std::abort();
      }
    }
  });
}
