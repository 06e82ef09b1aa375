#include "pipeline/run/sealed_json.h"

#include "base/error.h"
#include "base/file.h"
#include "base/hash.h"

namespace roundhouse {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSeal = "seal";
constexpr std::size_t kMaxBytes = std::size_t{256} << 20;

std::string seal_of(const std::string& key, const nlohmann::json& object) {
  return xxh3_hex(key + "\n" + object.dump());
}

std::string text_of(const nlohmann::json& sealed) { return sealed.dump(1) + "\n"; }

}  // namespace

void write_sealed_json(const fs::path& path, const std::string& key, nlohmann::json object) {
  require(object.is_object() && !object.contains(kSeal),
          "what is sealed is an object without seal");
  object[kSeal] = seal_of(key, object);
  const std::string text = text_of(object);
  std::error_code ignored;
  if (fs::is_regular_file(path, ignored) && read_text_file(path, kMaxBytes) == text) return;
  write_text_atomically(path, text);
}

SealedJson read_sealed_json(const fs::path& path, const std::string& key) {
  if (!bytes_of_file(path)) return {std::nullopt, "missing"};
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (error) throw Error("cannot read " + path.string() + ": " + error.message());
  if (!fs::is_regular_file(status)) return {std::nullopt, "it is not a file"};
  const std::string text = read_text_file(path, kMaxBytes);
  if (text.empty()) return {std::nullopt, "it is empty"};
  nlohmann::json object = nlohmann::json::parse(text, nullptr, false);
  if (!object.is_object()) return {std::nullopt, "it is not JSON"};
  const auto found = object.find(kSeal);
  if (found == object.end() || !found->is_string()) {
    return {std::nullopt, "it has no seal (earlier versions wrote none)"};
  }
  if (text_of(object) != text) {
    return {std::nullopt, "its content is not what was written"};
  }
  const std::string seal = found->get<std::string>();
  object.erase(found);
  if (seal_of(key, object) != seal) return {std::nullopt, "its content does not match its seal"};
  return {std::move(object), ""};
}

}  // namespace roundhouse
