// Before any work: do the nodes of a job see the same, and is each of them fit for it? One that is not is named, with an exit code of its
// own (kExitBadNode), so that a script can start the job again without it. What all ranks find alike is no node's fault.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "comm/launcher.h"
#include "pipeline/config/config.h"

namespace roundhouse {

// Collective. Runs `work`, which must not communicate, on every rank. Fails it on all, they throw what the first of them did; fails it on
// some, all throw BadNodeError: "bad node: HOST (rank R): what".
void agree(Communicator& world, const std::function<void()>& work);

// Collective. What `read` gives, as agree() does it.
RunConfig agreed_config(LaunchSession& session, const std::function<RunConfig()>& read);

// Throws BadNodeError: for each node "bad node: HOST (ranks R, S): why". `hosts`: of all ranks.
[[noreturn]] void throw_bad_nodes(const std::vector<std::string>& hosts,
                                  const std::map<int, std::string>& why_by_rank);

// What has to be the same on every rank: name of the fact -> its value.
using Facts = std::map<std::string, std::string>;
// Collective, with the same names on all ranks. Throws BadNodeError for the ranks that differ from most (where there are as many on
// both sides, from rank 0).
void compare_facts(Communicator& world, const Facts& facts);

// Version, commit, compiler and content of this program: "0.1.0, commit 7394a89c, compiler 12.2.0, program 1f0c2a..". Of a tree without git: "commit unknown".
std::string build_description();

// Collective. One line for people: how many ranks on how many nodes there are, what they agree on, and between which bounds lies what may
// differ: free memory, with control groups' limits, and open files.
std::string describe_agreement(Communicator& world, const Facts& facts);

// Raises this process's limit of open files to what it may be. Throws Error where that is too little: fewer than 256.
void raise_open_files();

// Waits until this rank sees the lease with this token in the run's folder: a network file system may show it late. Throws Error after
// `patience_seconds`: then it is another folder.
void await_lease(
    const std::filesystem::path& run, const std::string& token, double patience_seconds = 30,
    const std::function<void()>& tick = [] {});

}  // namespace roundhouse
