// Figures and words as they stand in tables: of bounded length, whatever the value.
#pragma once

#include <string>
#include <string_view>

namespace roundhouse {

// "57.48"; in scientific notation from a million on; "not finite".
std::string fixed(double value, int decimals);
std::string scientific(double value);                       // "1.23e-02"
std::string signed_difference(double value, int decimals);  // "+0.31", "-0.02"
std::string seconds_text(double seconds);                   // "12.3 s", "4.2 min", "3.1 h"

// Quoted where RFC 4180 asks for it; what a spreadsheet would take for a formula is told apart by a quotation mark in front.
std::string escape_csv(std::string_view text);
// With a backslash where LaTeX would obey; what has no letter of its own becomes a word.
std::string escape_latex(std::string_view text);
// With a backslash where Markdown would obey, in a cell of a table too.
std::string escape_markdown(std::string_view text);
std::string escape_html(std::string_view text);

}  // namespace roundhouse
