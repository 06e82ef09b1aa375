#include "stages/evaluate/tasks.h"
#include "base/error.h"
#include "tests/fuzz/reader.h"

using namespace roundhouse;

// The first byte chooses the task, and the kind of file by its name; the rest is the file.
int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  constexpr const char* kFiles[] = {"task.jsonl", "task.json", "task.csv", "task.tsv", "task.raw"};
  const std::vector<std::string>& tasks = task_names();
  const std::size_t choice = data[0];
  const TaskOptions options{.name = "fuzzed",
                            .task = tasks[choice % tasks.size()],
                            .file = fuzz::write(kFiles[choice / tasks.size() % std::size(kFiles)],
                                                fuzz::text_of(data + 1, size - 1))};
  return fuzz::may_refuse([&] {
    for (const TaskDocument& document : read_task(options)) {
      if (!document.requests.empty() && document.gold >= document.requests.size()) std::abort();
    }
  });
}
