// WikiText as documents, as lm-evaluation-harness has it: pages, with the data set's tokenization undone.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace roundhouse {

// A text is cut before each heading of the first level ("= Title ="); what is blank is left out.
std::vector<std::string> wikitext_pages(std::string_view text);

// "1 @,@ 000 metres ( 0 @.@ 6 mi ) ." becomes "1,000 metres (0.6 mi)."
std::string detokenized_wikitext(std::string page);

}  // namespace roundhouse
