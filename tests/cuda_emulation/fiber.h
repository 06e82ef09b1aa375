// Threads of execution that hand over by themselves: each has a stack, none runs beside another.
#pragma once

#include <cstddef>
#include <vector>

namespace emulation {

// Stacks with an unmapped page below each, so that one that overflows ends the program.
class Stacks {
 public:
  explicit Stacks(std::size_t count);
  ~Stacks();
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;
  static constexpr std::size_t kBytes = std::size_t{256} << 10;  // of one stack
  void* bottom(std::size_t index) const;

 private:
  std::byte* memory_;
  std::size_t bytes_;
};

class Fiber {
 public:
  // Prepares to call entry(argument) on the stack that begins at `stack`. The entry never returns: it ends with leave_for_good().
  void start(void* stack, void (*entry)(void*), void* argument);
  void resume();  // from outside: runs the fiber until it leaves
  void leave();   // from inside: back to who resumed it
  void leave_for_good();

 private:
  void enter_and_call();
  static void trampoline();
  void* stack_ = nullptr;
  void* inside_ = nullptr;  // stack pointers
  void* outside_ = nullptr;
  void (*entry_)(void*) = nullptr;
  void* argument_ = nullptr;
  void* fake_stack_ = nullptr;  // the address sanitizer's
  const void* outside_stack_ = nullptr;
  std::size_t outside_bytes_ = 0;
};

}  // namespace emulation
