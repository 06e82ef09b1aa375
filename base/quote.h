// Words from outside (names of tensors, keys, tokens, values, paths) in lines for people: on one line, of bounded length, and
// without a byte that a terminal would obey.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace roundhouse {

// How many bytes at the beginning are UTF-8: all, or up to the first character that is not. No overlong form, no surrogate,
// nothing beyond U+10FFFF, nothing cut off.
std::size_t utf8_prefix(std::string_view text);

// UTF-8 without control characters: those, and bytes that are not UTF-8, become \n, \t, \x1b ... Of a text that would become
// longer than `longest` bytes the middle is left out: "aaa ... 300139 bytes ... zzz".
std::string printable(std::string_view text, std::size_t longest);

// A whole line for people: a net under all that is printed, however it was put together.
std::string printable_line(std::string_view text);

// The same in double quotes, of at most some 200 bytes.
std::string in_quotes(std::string_view name);

// The same of a list: "a", "b", ... and 12 more.
std::string in_quotes(const std::vector<std::string>& names);

// The known words that are most like an unknown one, nearest first: `most` at most, none that differs by more than a quarter of
// its letters.
std::vector<std::string> nearest_words(std::string_view word, const std::vector<std::string>& known,
                                       std::size_t most);

}  // namespace roundhouse
