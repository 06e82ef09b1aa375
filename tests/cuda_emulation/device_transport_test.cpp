// That messages between emulated GPUs notice what they are there to notice. On two ranks, each of which makes its own mistake.
#include "comm/device/device_transport.h"

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "kernels/backend.h"
#include "tests/comm/mpi_world.h"

namespace roundhouse {
namespace {

class EmulatedTransportTest : public testing::Test {
 protected:
  static constexpr std::int64_t kCount = 64;

  std::span<std::byte> bytes_of(Tensor& tensor) {
    return {static_cast<std::byte*>(tensor.view().data), tensor.bytes()};
  }
  std::vector<float> values_of(const Tensor& tensor) {
    std::vector<float> values(kCount);
    backend_->download(tensor.f32(), std::as_writable_bytes(std::span(values)));
    return values;
  }
  Tensor zeros() {
    Tensor tensor(*backend_, DType::kF32, 1, kCount);
    backend_->zero(tensor.view());
    backend_->sync();
    return tensor;
  }
  // Both ranks send to each other.
  std::unique_ptr<Ticket> exchange(Tensor& out, Tensor& in) {
    const int other = 1 - test_world().rank();
    const Send send{bytes_of(out), other};
    const Receive receive{bytes_of(in), other};
    return transport_->start({&send, 1}, {&receive, 1});
  }
  std::string error_of(const std::function<void()>& act) {
    try {
      act();
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  }
  void queue_ones(Tensor& tensor) {
    backend_->upload(std::as_bytes(std::span(ones_)), tensor.view().data);
  }

  const std::vector<float> ones_ = std::vector<float>(kCount, 1.0f);
  std::unique_ptr<Backend> backend_ = make_backend("cuda", {});
  std::unique_ptr<Transport> transport_ =
      make_device_transport({.direct = true, .description = "emulated GPUs"}, test_world(),
                            {.name = "two ranks", .peers = {}}, {});
};

TEST_F(EmulatedTransportTest, WhatIsOnlyQueuedIsNotSent) {
  for (const bool with_sync : {true, false}) {
    Tensor out = zeros(), in = zeros();
    queue_ones(out);
    if (with_sync) backend_->sync();
    exchange(out, in)->wait();
    EXPECT_EQ(values_of(in) == ones_, with_sync);
  }
}

TEST_F(EmulatedTransportTest, WorkThatStillReadsWhatIsReceivedIntoFindsOtherValues) {
  for (const bool with_sync : {true, false}) {
    Tensor out = zeros(), in = zeros(), copy = zeros();
    queue_ones(out);
    backend_->sync();
    backend_->copy(std::as_const(in).view(), copy.view());
    if (with_sync) backend_->sync();
    exchange(out, in)->wait();
    EXPECT_EQ(values_of(copy) == std::vector<float>(kCount, 0.0f), with_sync);
  }
}

TEST_F(EmulatedTransportTest, MemoryThatChangesUnderWayIsAnError) {
  Tensor out = zeros(), in = zeros();
  auto ticket = exchange(out, in);
  queue_ones(test_world().rank() == 0 ? out : in);
  backend_->sync();
  const std::string want = test_world().rank() == 0 ? "changed while" : "written while";
  EXPECT_NE(error_of([&] { ticket->wait(); }).find(want), std::string::npos);
}

TEST_F(EmulatedTransportTest, MemoryThatTheQueueHasNotAllocatedIsAnError) {
  Tensor out = zeros(), in(*backend_, DType::kF32, 1, kCount);
  EXPECT_NE(error_of([&] { (void)exchange(out, in); }).find("not allocated yet"),
            std::string::npos);
}

}  // namespace
}  // namespace roundhouse
