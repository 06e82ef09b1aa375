#include "stages/report/template.h"

#include <kainjow/mustache.hpp>

#include "base/error.h"

namespace roundhouse {
namespace {

namespace mustache = kainjow::mustache;

mustache::data to_data(const nlohmann::json& value) {
  switch (value.type()) {
    case nlohmann::json::value_t::object: {
      mustache::data object;
      for (const auto& [key, member] : value.items()) object.set(key, to_data(member));
      return object;
    }
    case nlohmann::json::value_t::array: {
      mustache::data list(mustache::data::type::list);
      for (const nlohmann::json& element : value) list.push_back(to_data(element));
      return list;
    }
    case nlohmann::json::value_t::string:
      if (value.get_ref<const std::string&>().empty()) return mustache::data(false);
      return mustache::data(value.get_ref<const std::string&>());
    case nlohmann::json::value_t::boolean:
      return mustache::data(value.get<bool>());
    case nlohmann::json::value_t::null:
      return mustache::data(false);
    default:
      throw Error("a template is given a number that is not formatted: " + value.dump());
  }
}

}  // namespace

std::string render_template(std::string_view name, const nlohmann::json& values,
                            const Escape& escape) {
  mustache::mustache text{std::string(embedded_file(name))};
  text.set_custom_escape(escape);
  mustache::data data = to_data(values);
  for (const char* part : {"page.css", "page.js", "table.html", "plot.html"}) {
    data.set(part, mustache::partial([part] { return std::string(embedded_file(part)); }));
  }
  std::string made = text.is_valid() ? text.render(data) : "";
  if (!text.is_valid()) throw Error(std::string(name) + ": " + text.error_message());
  return made;
}

}  // namespace roundhouse
