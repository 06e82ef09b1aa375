// From a record of a task's file to what a model is asked.
#pragma once

#include "stages/evaluate/task_file.h"
#include "stages/evaluate/tasks.h"

namespace roundhouse {

// Throws InputError naming the record, and the line of the template that cannot be made of it.
TaskDocument document_of(const TaskTemplate& task, const TaskRecord& record);

}  // namespace roundhouse
