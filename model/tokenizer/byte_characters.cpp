#include "model/tokenizer/byte_characters.h"

#include "model/tokenizer/utf8.h"

namespace roundhouse {

const std::array<std::string, 256>& characters_of_bytes() {
  static const std::array<std::string, 256> characters = [] {
    std::array<std::string, 256> result;
    char32_t next = 0x100;
    for (char32_t byte = 0; byte < 256; ++byte) {
      const bool visible = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) ||
                           (byte >= 0xae && byte <= 0xff);
      append_utf8(result[byte], visible ? byte : next++);
    }
    return result;
  }();
  return characters;
}

}  // namespace roundhouse
