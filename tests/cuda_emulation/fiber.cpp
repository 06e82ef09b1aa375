#include "tests/cuda_emulation/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// switch_stack(save, load): pushes what a callee must keep, stores the stack pointer in *save and goes on from `load`.
extern "C" void emulation_switch_stack(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl emulation_switch_stack
.type emulation_switch_stack, @function
emulation_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emulation_switch_stack, .-emulation_switch_stack
.section .note.GNU-stack,"",@progbits
.text
)");
constexpr std::size_t kFrameWords = 8;  // so that the stack is aligned as after a call
constexpr std::size_t kReturnWord = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl emulation_switch_stack
.type emulation_switch_stack, %function
emulation_switch_stack:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size emulation_switch_stack, .-emulation_switch_stack
.section .note.GNU-stack,"",%progbits
.text
)");
constexpr std::size_t kFrameWords = 20;
constexpr std::size_t kReturnWord = 11;
#else
#error "the emulation knows how to switch stacks on x86-64 and on 64-bit Arm"
#endif

namespace emulation {
namespace {

Fiber* entering = nullptr;  // between resume() and the first instruction of a fiber

std::size_t page_bytes() {
  static const std::size_t bytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace

Stacks::Stacks(std::size_t count) : bytes_(count * (kBytes + page_bytes())) {
  void* const memory = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  memory_ = static_cast<std::byte*>(memory);
  for (std::size_t i = 0; i < count; ++i) {
    (void)::mprotect(memory_ + i * (kBytes + page_bytes()), page_bytes(), PROT_NONE);
  }
}

Stacks::~Stacks() { ::munmap(memory_, bytes_); }

void* Stacks::bottom(std::size_t index) const {
  return memory_ + index * (kBytes + page_bytes()) + page_bytes();
}

void Fiber::start(void* stack, void (*entry)(void*), void* argument) {
  stack_ = stack;
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
  // Tops at different places of their pages: stacks would compete for the same few lines of the cache.
  const std::size_t offset = reinterpret_cast<std::uintptr_t>(stack) / page_bytes() % 32 * 128;
  // As emulation_switch_stack() leaves a stack.
  auto* const top =
      reinterpret_cast<std::uintptr_t*>(static_cast<std::byte*>(stack) + Stacks::kBytes - offset);
  std::uintptr_t* const sp = top - kFrameWords;
  std::memset(sp, 0, static_cast<std::size_t>(top - sp) * sizeof(*sp));
  sp[kReturnWord] = reinterpret_cast<std::uintptr_t>(&Fiber::trampoline);
  inside_ = sp;
}

void Fiber::trampoline() { entering->enter_and_call(); }

void Fiber::enter_and_call() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &outside_stack_, &outside_bytes_);
#endif
  entry_(argument_);
  __builtin_unreachable();
}

void Fiber::resume() {
  entering = this;
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, stack_, Stacks::kBytes);
#endif
  emulation_switch_stack(&outside_, inside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void Fiber::leave() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fake_stack_, outside_stack_, outside_bytes_);
#endif
  emulation_switch_stack(&inside_, outside_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack_, &outside_stack_, &outside_bytes_);
#endif
}

void Fiber::leave_for_good() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, outside_stack_, outside_bytes_);
#endif
  emulation_switch_stack(&inside_, outside_);
}

}  // namespace emulation
