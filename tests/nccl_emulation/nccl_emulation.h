// What tests ask of the imitation beyond NCCL's own calls, all of this rank's device; see README.md.
#pragma once

namespace nccl_emulation {

// Which stream's head runs next where several have a kernel there.
enum class Order {
  kLaunched,  // in the order of their launches: what NCCL_LAUNCH_ORDER_IMPLICIT promises
  kNewest,    // the last launched first
  kShuffled,  // any
};
void set_order(Order order);

// The `count`th kernel from now never ends, and its communicator reports an error from then on. 0: none will.
void break_network_at_kernel(int count);
// Communicators made from now on do or do not come to stand.
void let_connect(bool connects);

int communicators();       // that are there
int communicators_made();  // ever
int communicators_aborted();

}  // namespace nccl_emulation
