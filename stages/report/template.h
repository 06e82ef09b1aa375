// Mustache templates that are part of the program: stages/report/templates/.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace roundhouse {

// A file that was embedded when the program was built, by its name; throws Error if there is none.
std::string_view embedded_file(std::string_view name);

// Strings go through `escape`, but for {{{these}}}. A section is left out where its value is null, false, "" or an empty list; numbers are
// not for templates: they are formatted before. A partial {{>name}} is the embedded file of that name. Throws Error.
using Escape = std::function<std::string(const std::string&)>;
std::string render_template(std::string_view name, const nlohmann::json& values,
                            const Escape& escape);

}  // namespace roundhouse
