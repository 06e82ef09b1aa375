// White space as Python's str methods and its regular expressions see it, which tasks are defined by.
#pragma once

#include <string_view>

namespace roundhouse {

std::string_view strip_begin(std::string_view text);
std::string_view strip_end(std::string_view text);
std::string_view strip(std::string_view text);
// How many stretches of white space there are. Precondition: text is UTF-8.
std::size_t count_white_space(std::string_view text);
// Code points. Precondition: text is UTF-8.
std::size_t count_characters(std::string_view text);

}  // namespace roundhouse
