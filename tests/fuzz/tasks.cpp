#include <algorithm>
#include <string>
#include <string_view>

#include "base/error.h"
#include "stages/evaluate/tasks.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

// The first byte chooses the task, and the kind of file by its name; the rest is the file. 255: a template, a NUL and JSON lines.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  constexpr const char* kFiles[] = {"task.jsonl", "task.json", "task.csv", "task.tsv", "task.raw"};
  const std::vector<std::string>& tasks = task_names();
  const std::size_t choice = data[0];
  std::string_view text = fuzz::text_of(data + 1, size - 1);
  return fuzz::may_refuse([&] {
    TaskTemplate task;
    if (choice == 0xff) {
      const std::size_t end = std::min(text.find('\0'), text.size());
      task = parse_task_template(std::string(text.substr(0, end)), "fuzzed.yaml");
      text.remove_prefix(std::min(end + 1, text.size()));
    } else {
      task = read_task_template(tasks[choice % tasks.size()]);
    }
    const std::filesystem::path file =
        fuzz::write(kFiles[choice == 0xff ? 0 : choice / tasks.size() % std::size(kFiles)], text);
    for (const TaskDocument& document : read_task(task, file, 0)) {
      if (!document.requests.empty() && document.gold >= document.requests.size()) std::abort();
    }
  });
}
