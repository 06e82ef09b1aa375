#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <new>
#include <thread>

#include <fmt/ranges.h>
#include <CLI/CLI.hpp>

#include "base/error.h"
#include "base/exit_code.h"
#include "base/file.h"
#include "base/quote.h"
#include "comm/launcher.h"
#include "model/synthetic.h"
#include "pipeline/commands/commands.h"
#include "pipeline/config/config.h"
#include "pipeline/plan/device_rates.h"
#include "pipeline/start/agreement.h"
#include "pipeline/version.h"
#include "pipeline/watch/signal_thread.h"
#include "stages/export/engines.h"

namespace roundhouse {
namespace {

using Command = std::function<int(LaunchSession&)>;

// Known before MPI is: what every rank would say alike is said by the first.
bool is_first_rank() {
  for (const char* name : {"OMPI_COMM_WORLD_RANK", "PMIX_RANK"}) {
    if (const char* rank = std::getenv(name)) return std::atoi(rank) == 0;
  }
  return true;
}

// What went wrong and the exit code for it, of the exception in flight.
struct Failure {
  std::string what;
  int exit_code;
};

Failure current_failure() {
  try {
    with_file_errors_named([] { throw; });
    return {};  // never
  } catch (const InputError& error) {
    return {error.what(), kExitWrongInput};
  } catch (const InUseError& error) {
    return {error.what(), kExitInUse};
  } catch (const BadNodeError& error) {
    return {error.what(), kExitBadNode};
  } catch (const std::bad_alloc&) {
    return {"out of memory", kExitFailed};
  } catch (const std::exception& error) {
    return {error.what(), kExitFailed};
  }
}

void print_failure(const Failure& failure) {
  const std::string line = "roundhouse: " + printable_line(failure.what) + "\n";
  std::fflush(stdout);
  std::fwrite(line.data(), 1, line.size(), stderr);
}

// What all ranks find alike (a wrong config) should be said once, so the first goes first, and the job is over before the others
// wake up. The other way round a launcher would end it before it has spoken.
void let_first_rank_speak(std::chrono::seconds patience) {
  if (!is_first_rank()) std::this_thread::sleep_for(patience);
}

// With several ranks a failure must end the job, from inside the session: the others may be waiting
// for this rank.
int run_in_session(int& argc, char**& argv, const Command& command) {
  const bool several = started_by_launcher();
  LaunchSession session(argc, argv);
  if (!several) return command(session);
  try {
    return command(session);
  } catch (...) {
    const Failure failure = current_failure();
    let_first_rank_speak(std::chrono::seconds(3));  // it may not be wrong there
    abort_job(failure.exit_code, failure.what);
  }
}

CLI::Option* add_list(CLI::App& app, const std::string& name, std::vector<std::string>& values,
                      const std::string& help) {
  // One value each time it is given, so that a positional argument may follow.
  return app.add_option(name, values, help)->allow_extra_args(false);
}

// The arguments of all commands; the chosen one sets `chosen`.
struct Arguments {
  std::string config;
  std::vector<std::string> overrides;
  ExportArguments exporting;
  EvaluateArguments evaluating;
  PerplexityTask text;
  TaskOptions task;
  std::string protocol;
  std::string evaluation_name;
  int limit = 0;  // of what is evaluated
  std::string folder;
  ReportArguments reporting;
  TimelineArguments tracing;
  SynthArguments making;
  PlanArguments planning;
  bool follow = false;
  bool retry_failed = false;

  Command chosen;
};

void add_plan(CLI::App& app, Arguments& arguments) {
  CLI::App& command = *app.add_subcommand(
      "plan", "Reckon what a job would do and take: time, memory, disk, messages");
  PlanArguments& given = arguments.planning;
  command.add_option("CONFIG", given.config, "YAML file that describes the run")->required();
  add_list(command, "--set", given.overrides,
           "Put KEY=VALUE in place of what CONFIG says; may be repeated")
      ->type_name("KEY=VALUE");
  command
      .add_option("--ranks", given.ranks,
                  "Ranks of the job; default: those of the config's mesh, or 1")
      ->type_name("N")
      ->check(CLI::Range(1, 100'000));
  CLI::Option* device =
      command.add_option("--device", given.device, "What each rank computes on; default: h200")
          ->type_name("NAME")
          ->check(CLI::IsMember(known_devices()));
  CLI::Option* rates =
      command.add_option("--rates", given.rates, "A file of rates, as --write-rates writes one")
          ->type_name("FILE")
          ->check(CLI::ExistingFile)
          ->excludes(device);
  command
      .add_flag("--measure", given.measure,
                "Measure this machine for some seconds, and plan for it")
      ->excludes(device)
      ->excludes(rates);
  command.add_option("--write-rates", given.write_rates, "Write the rates that were used")
      ->type_name("FILE");
  command
      .add_option("--like", given.like, "Plan for this shape, whatever lies in the model's folder")
      ->type_name("NAME")
      ->check(CLI::IsMember(known_shapes()));
  CLI::Option* scaling = command.add_flag("--scaling", given.scaling,
                                          "Tables for 1 to 512 ranks in place of one plan");
  command.add_flag("--json", given.json, "Print everything as JSON")->excludes(scaling);
  command.footer(
      "Examples:\n"
      "  roundhouse plan configs/llama-2-70b.yaml --ranks 32 --device h200\n"
      "  roundhouse plan configs/tiny-world.yaml --measure --write-rates here.json\n"
      "  roundhouse plan configs/tiny-world.yaml --rates here.json --ranks 2 --set mesh.data=2\n"
      "  roundhouse plan configs/scaling.yaml --scaling\n"
      "\n"
      "Neither GPU nor launcher is needed, nor weights: config.json in the model's folder, or a "
      "folder "
      "that is called like\n"
      "a published model, is enough. What is done of the run already counts as done.");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession&) {
      return is_first_rank() ? plan_command(arguments.planning) : 0;
    };
  });
}

void add_run(CLI::App& app, Arguments& arguments) {
  CLI::App& run =
      *app.add_subcommand("run", "Quantize, export and evaluate: starts a run, or goes on with it");
  run.add_option("CONFIG", arguments.config, "YAML file that describes the run")->required();
  add_list(run, "--set", arguments.overrides,
           "Put KEY=VALUE in place of what CONFIG says; may be repeated")
      ->type_name("KEY=VALUE");
  run.add_flag("--retry-failed", arguments.retry_failed,
               "Try recipes again that could not be made at an earlier start");
  run.footer(
      "Examples:\n"
      "  roundhouse run configs/tiny-world.yaml\n"
      "  roundhouse run configs/tiny-world.yaml --set run=runs/try --set calibration.samples=64\n"
      "  roundhouse run configs/tiny-world.yaml --set 'recipes=[{method: rtn, bits: 3}]'\n"
      "  roundhouse run configs/tiny-world.yaml --set cpu_precision=bf16    (a CPU with AVX-512 "
      "BF16 "
      "or AMX: faster)\n"
      "  mpirun -n 4 roundhouse run configs/tiny-world.yaml\n"
      "\n"
      "The same command goes on where a stopped or killed run was, on as many ranks as it then "
      "gets.\n"
      "Exit codes: 0 done, 75 stopped as asked (signal, time limit) with work left, 2 wrong "
      "input,\n"
      "73 another job has the run, 76 a node that is named does not fit the others, 1 else: also "
      "where\n"
      "recipes could not be made, which a table names, and all others are done.");
  run.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession& session) {
      return run_command(
          session,
          agreed_config(session,
                        [&] { return read_config(arguments.config, arguments.overrides); }),
          arguments.retry_failed);
    };
  });
}

void add_export(CLI::App& app, Arguments& arguments) {
  CLI::App& command = *app.add_subcommand("export", "Write checkpoints that other tools load");
  ExportArguments& given = arguments.exporting;
  command.add_option("RUN", given.run, "Folder of a run")->required();
  add_list(command, "--recipe", given.recipes, "Only this recipe; may be repeated")
      ->type_name("NAME");
  add_list(command, "--format", given.formats, "In this format; may be repeated")
      ->type_name("FORMAT")
      ->check(CLI::IsMember(export_formats()));
  add_list(command, "--for", given.engines,
           "Refuse what this engine would not load, instead of those of the run's config; may be "
           "repeated")
      ->type_name("ENGINE")
      ->check(CLI::IsMember(engine_names()));
  command.add_option("--output", given.output, "Folder to write to, instead of RUN/export")
      ->type_name("DIR");
  command.add_flag(
      "--check", given.check,
      "Read each export back, also one that was made earlier, and compare every weight "
      "with the run's records; 1 if one differs");
  command.footer(
      "Examples:\n"
      "  roundhouse export runs/tiny\n"
      "  roundhouse export runs/tiny --recipe gptq-w4g128 --format gptq --output /data/models\n"
      "  roundhouse export runs/tiny --check");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession& session) {
      return export_command(session, arguments.exporting);
    };
  });
}

void add_evaluate(CLI::App& app, Arguments& arguments) {
  CLI::App& command = *app.add_subcommand(
      "evaluate", "Measure perplexities and tasks of a run's recipes, or of a model");
  EvaluateArguments& given = arguments.evaluating;
  command.add_option("TARGET", given.target, "Folder of a run, or of a Hugging Face model")
      ->required();
  add_list(command, "--recipe", given.recipes, "Only this recipe of a run; may be repeated")
      ->type_name("NAME");
  CLI::Option* text = command
                          .add_option("--text", arguments.text.text,
                                      "Measure on this text, instead of what the config names")
                          ->type_name("FILE")
                          ->check(CLI::ExistingFile);
  command
      .add_option("--name", arguments.evaluation_name,
                  "What the figure is called; default: the name of the text's file, or of the task")
      ->type_name("NAME");
  command.add_option("--window", arguments.text.window, "Tokens a window; default 2048")
      ->type_name("N")
      ->check(CLI::Range(2, 1 << 20))
      ->needs(text);
  command
      .add_flag("--rows", arguments.text.rows,
                "Each line is a row of a data set, as WikiText-2 is measured")
      ->needs(text);
  const CLI::Validator is_task(
      [](const std::string& given_task) {
        const bool known =
            std::ranges::find(task_names(), given_task) != task_names().end() ||
            (is_task_file(given_task) && std::filesystem::is_regular_file(given_task));
        return known ? std::string()
                     : in_quotes(given_task) + " is no file that ends with .yaml, nor one of " +
                           fmt::format("{}", fmt::join(task_names(), ", "));
      },
      "");
  CLI::Option* task =
      command
          .add_option(
              "--task", arguments.task.task,
              "Measure this zero-shot task, a name or a YAML file (docs/tasks.md), instead of "
              "what the config names")
          ->type_name("TASK")
          ->check(is_task)
          ->excludes(text);
  CLI::Option* file =
      command.add_option("--file", arguments.task.file, "The documents of the task")
          ->type_name("FILE")
          ->check(CLI::ExistingPath)
          ->needs(task);
  task->needs(file);
  command
      .add_option("--protocol", arguments.protocol,
                  "lm-eval: what the tokenizer puts in front of a text stands in front of every "
                  "context (default); paper: nothing does")
      ->type_name("NAME")
      ->check(CLI::IsMember(
          {std::string(name_of(Protocol::kLmEval)), std::string(name_of(Protocol::kPaper))}))
      ->needs(task);
  command.add_option("--limit", arguments.limit, "Windows or documents at most; 0: all")
      ->type_name("N")
      ->check(CLI::Range(0, 1'000'000));
  command.footer(
      "Examples:\n"
      "  roundhouse evaluate runs/tiny\n"
      "  roundhouse evaluate runs/tiny --recipe rtn-w4g128 --text wiki.test.txt --window 2048\n"
      "  roundhouse evaluate /data/models/llama-2-7b --text wiki.test.raw --rows --limit 20\n"
      "  roundhouse evaluate /data/models/llama-2-7b --task piqa --file data/piqa/valid.jsonl");
  command.callback([&arguments, text, task] {
    const std::string& name = arguments.evaluation_name;
    Evaluations& evaluations = arguments.evaluating.evaluations;
    if (!name.empty() && !is_plain_name(name)) {
      throw CLI::ValidationError(
          "--name", in_quotes(name) + " is not a name of letters, digits, '-', '_' and '.'");
    }
    if (name == kAverage)
      throw CLI::ValidationError("--name", "reports call the mean of all tasks " + in_quotes(name));
    if (text->count() == 0 && task->count() == 0 && (!name.empty() || arguments.limit > 0))
      throw CLI::RequiredError("--text or --task");
    if (text->count() > 0) {
      PerplexityTask& asked = arguments.text;
      asked.name = name.empty() ? asked.text.stem().string() : name;
      asked.limit = arguments.limit;
      evaluations.perplexity.push_back(asked);
    }
    if (task->count() > 0) {
      TaskOptions& asked = arguments.task;
      if (name.empty()) {
        asked.name = is_task_file(asked.task) ? std::filesystem::path(asked.task).stem().string()
                                              : asked.task;
      } else {
        asked.name = name;
      }
      asked.limit = arguments.limit;
      evaluations.tasks.push_back(asked);
      if (arguments.protocol == name_of(Protocol::kPaper)) evaluations.protocol = Protocol::kPaper;
    }
    arguments.chosen = [&arguments](LaunchSession& session) {
      return evaluate_command(session, arguments.evaluating);
    };
  });
}

void add_status(CLI::App& app, Arguments& arguments) {
  CLI::App& command = *app.add_subcommand("status", "Show how far a run is, also while it runs");
  command.add_option("RUN", arguments.folder, "Folder of a run")->required();
  command.add_flag("--follow", arguments.follow,
                   "Show it again every 2 seconds until the run is done");
  command.footer("Example:\n  roundhouse status runs/tiny --follow");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession&) {
      return is_first_rank() ? status_command(arguments.folder, arguments.follow) : 0;
    };
  });
}

void add_verify(CLI::App& app, Arguments& arguments) {
  CLI::App& command =
      *app.add_subcommand("verify", "Check every hash of a run or of an exported checkpoint");
  command.add_option("TARGET", arguments.folder, "Folder of a run, or of an export")->required();
  command.footer(
      "Examples:\n"
      "  roundhouse verify runs/tiny\n"
      "  roundhouse verify runs/tiny/export/gptq-w4g128/gptq\n"
      "\n"
      "Exit codes: 0 all is whole, 1 something is damaged, 2 wrong input.");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession&) {
      return is_first_rank() ? verify_command(arguments.folder) : 0;
    };
  });
}

void add_report(CLI::App& app, Arguments& arguments) {
  CLI::App& command = *app.add_subcommand(
      "report", "Write tables and a page of what runs have reached, also while they run");
  ReportArguments& given = arguments.reporting;
  command.add_option("RUN", given.runs, "Folders of runs: all on one page")->required();
  CLI::Option* output =
      command
          .add_option("--output", given.output,
                      "Folder to write to, instead of RUN/report (of several runs: ./report)")
          ->type_name("DIR");
  CLI::Option* table =
      command
          .add_option(
              "--table", given.table,
              "Only print this table: overview (all recipes), widths (for each width models "
              "x methods by tasks), averages (for each model methods x bits by tasks and "
              "perplexity) or figures (acc, acc_norm, documents)")
          ->type_name("TABLE")
          ->check(CLI::IsMember({"overview", "widths", "averages", "figures"}))
          ->excludes(output);
  command
      .add_option("--form", given.form,
                  "Of the printed table: text (default), markdown, csv or latex")
      ->type_name("FORM")
      ->check(CLI::IsMember({"text", "markdown", "csv", "latex"}))
      ->needs(table);
  command.add_flag("--errors", given.errors, "With standard errors in Markdown and LaTeX");
  command.footer(
      "Examples:\n"
      "  roundhouse report runs/tiny\n"
      "  roundhouse report runs/llama-2-7b runs/mistral-7b --output report\n"
      "  roundhouse report runs/tiny --table widths --form latex --errors");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession&) {
      return is_first_rank() ? report_command(arguments.reporting) : 0;
    };
  });
}

void add_timeline(CLI::App& app, Arguments& arguments) {
  CLI::App& command =
      *app.add_subcommand("timeline", "Write a trace of who did what when, for ui.perfetto.dev");
  TimelineArguments& given = arguments.tracing;
  command.add_option("RUN", given.run, "Folder of a run")->required();
  command.add_option("--output", given.output, "File to write, instead of RUN/timeline.json")
      ->type_name("FILE");
  command.footer("Example:\n  roundhouse timeline runs/tiny");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession&) {
      return is_first_rank() ? timeline_command(arguments.tracing) : 0;
    };
  });
}

void add_synth(CLI::App& app, Arguments& arguments) {
  CLI::App& command = *app.add_subcommand(
      "synth", "Make a model of a published shape with random weights, for benchmarks");
  SynthArguments& given = arguments.making;
  command.add_option("--like", given.like, "The shape")
      ->type_name("NAME")
      ->check(CLI::IsMember(known_shapes()))
      ->required();
  command.add_option("DIR", given.output, "Folder to write, new or empty")->required();
  command.add_option("--blocks", given.blocks, "Decoder blocks; default: as many as the shape has")
      ->type_name("N")
      ->check(CLI::Range(1, 1000));
  command.add_option("--seed", given.seed, "Of the random weights")->type_name("N");
  command.add_option("--tokenizer", given.tokenizer, "Model folder whose tokenizer is copied")
      ->type_name("DIR")
      ->check(CLI::ExistingDirectory);
  command.footer(
      "Example:\n"
      "  roundhouse synth --like llama-2-70b --blocks 2 --tokenizer /data/models/llama-2-7b "
      "/data/models/two-blocks");
  command.callback([&arguments] {
    arguments.chosen = [&arguments](LaunchSession&) {
      return is_first_rank() ? synth_command(arguments.making) : 0;
    };
  });
}

}  // namespace

int main_command(int argc, char** argv) {
  try {
    Arguments arguments;
    CLI::App app(
        "Roundhouse quantizes the weights of large language models, on one machine or on many.",
        "roundhouse");
    app.set_version_flag("--version", version_line());
    app.require_subcommand(1);
    add_plan(app, arguments);
    add_run(app, arguments);
    add_export(app, arguments);
    add_evaluate(app, arguments);
    add_status(app, arguments);
    add_verify(app, arguments);
    add_report(app, arguments);
    add_timeline(app, arguments);
    add_synth(app, arguments);
    app.footer("`roundhouse COMMAND --help` shows a command's options and examples.");

    // Before MPI: a wrong command line needs no job.
    try {
      // The parser would only miss a command, not name the wrong one.
      const auto is_first_word = [&](CLI::App* command) { return command->check_name(argv[1]); };
      if (argc > 1 && argv[1][0] != '-' && app.get_subcommands(is_first_word).empty()) {
        throw CLI::ParseError("there is no command " + in_quotes(argv[1]), kExitWrongInput);
      }
      app.parse(argc, argv);
    } catch (const CLI::ParseError& error) {
      if (error.get_exit_code() == 0) {
        if (is_first_rank()) app.exit(error);
        return 0;
      }
      // It is wrong on all. The others end by themselves, with this code, also where srun wants to end them as the first has ended.
      if (!is_first_rank()) std::signal(SIGTERM, SIG_IGN);
      let_first_rank_speak(std::chrono::seconds(10));
      if (is_first_rank())
        print_failure({std::string(error.what()) + " (see roundhouse --help)", kExitWrongInput});
      return kExitWrongInput;
    }

    leave_signals_to_another_thread();
    const int exit_code = run_in_session(argc, argv, arguments.chosen);
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw Error("cannot write to standard output");
    return exit_code;
  } catch (...) {
    const Failure failure = current_failure();
    print_failure(failure);
    return failure.exit_code;
  }
}

}  // namespace roundhouse
