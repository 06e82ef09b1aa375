#include "base/file_name.h"

namespace roundhouse {

bool is_file_name(std::string_view name, std::size_t longest) {
  constexpr std::string_view kAllowed =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._";
  return !name.empty() && name.size() <= longest && name.front() != '.' &&
         name.find_first_not_of(kAllowed) == name.npos;
}

}  // namespace roundhouse
