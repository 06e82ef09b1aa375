// Regular expressions of tokenizer.json. They are written for Oniguruma (Ruby's syntax) and matched by PCRE2, with the
// classes of characters of the former.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace roundhouse {

struct PcreCode;

// The same pattern in PCRE2's syntax. Throws InputError beginning with `where` for what the two read differently.
std::string pcre_of(const std::string& pattern, const std::string& where);

class Regex {
 public:
  struct Match {
    std::size_t begin, end;
  };
  // Throws InputError beginning with `where`: not a pattern, too long, not supported.
  Regex(const std::string& pattern, const std::string& where);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

  // Goes through a text, for one thread. Precondition: it is UTF-8, and outlives this.
  class Matches {
   public:
    Matches(const Regex& regex, std::string_view text);
    ~Matches();
    Matches(const Matches&) = delete;
    Matches& operator=(const Matches&) = delete;
    // The next; of those without a character only such as do not touch the one before. Throws InputError if that takes too
    // many steps.
    std::optional<Match> next();

   private:
    std::optional<Match> search(std::size_t from);
    const Regex& regex_;
    std::string_view text_;
    struct Buffers;
    std::unique_ptr<Buffers> buffers_;
    std::size_t at_ = 0;
    bool found_ = false;  // one that ends at at_
  };

 private:
  std::string pattern_, where_;
  std::unique_ptr<PcreCode> code_;
};

}  // namespace roundhouse
