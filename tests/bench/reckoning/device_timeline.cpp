#include "tests/bench/reckoning/device_timeline.h"

#include <algorithm>

namespace roundhouse {
namespace {

// As CudaStaging has them (kernels/cuda/memory.cu).
constexpr std::int64_t kStagingBytes = std::int64_t{16} << 20;
constexpr std::int64_t kStagingStep = 256;

}  // namespace

const std::vector<RateName>& rate_names() {
  static const std::vector<RateName> names = {
      {"bf16", &GpuRates::bf16, "operations/s of products with BF16 factors"},
      {"f32", &GpuRates::f32, "operations/s with F32 factors, and of factorizations"},
      {"attention", &GpuRates::attention, "operations/s of attention, forward"},
      {"attention-backward", &GpuRates::attention_backward, "operations/s, backward"},
      {"memory", &GpuRates::memory, "bytes/s of the device's memory"},
      {"copy", &GpuRates::copy, "bytes/s between host and device, each way"},
      {"staging", &GpuRates::staging, "bytes/s of the host into its pinned buffers"},
      {"launch", &GpuRates::launch_seconds, "seconds of the host to queue a kernel"},
      {"kernel", &GpuRates::kernel_seconds, "seconds of the shortest kernel"},
      {"wait", &GpuRates::wait_seconds, "seconds of the host to notice an end"},
      {"column", &GpuRates::column_seconds, "seconds of a column of GPTQ's panel"},
      {"attention-slots", &GpuRates::attention_slots, "blocks of attention that run at once"}};
  return names;
}

void DeviceTimeline::queue(double seconds) {
  host_ += rates_.launch_seconds;
  queue_ = std::max(queue_, host_) + seconds;
  busy_ += seconds;
}

void DeviceTimeline::kernel(const KernelWork& work) {
  if (work.kernels == 0) return;
  const double rates[] = {1, rates_.bf16, rates_.f32, rates_.attention, rates_.attention_backward};
  const char* const names[] = {"", "BF16", "F32", "attention", "attention"};
  const auto engine = static_cast<std::size_t>(work.engine);
  const double computing = work.flops / rates[engine] / work.share;
  const double reading = work.read / rates_.memory, writing = work.written / rates_.memory;
  const double least = std::max(work.least_seconds, work.kernels * rates_.kernel_seconds);
  double seconds = std::max(computing, reading) + writing;
  std::string bound = computing > reading + writing ? names[engine] : "memory";
  if (least > seconds) {
    bound = "latency";
    seconds = least;
  }
  for (int i = 1; i < work.kernels; ++i) host_ += rates_.launch_seconds;
  queue(seconds);
  KernelSum& sum = kernels_[work.name];
  ++sum.calls;
  sum.kernels += work.kernels;
  sum.flops += work.flops;
  sum.bytes += work.read + work.written;
  sum.seconds += seconds;
  sum.bound[bound] += seconds;
  counts_.kernels += work.kernels;
}

void DeviceTimeline::fill(double bytes, double times) {
  const double seconds = std::max(rates_.kernel_seconds, times * bytes / rates_.memory);
  queue(seconds);
  KernelSum& sum = kernels_[times > 1 ? "copy on the device" : "zero"];
  ++sum.calls;
  sum.bytes += times * bytes;
  sum.seconds += seconds;
  sum.bound["memory"] += seconds;
}

void DeviceTimeline::wait_until(double when) {
  if (when > host_) {
    waited_ += when - host_;
    host_ = when;
  }
  host_ += rates_.wait_seconds;
  ++counts_.waits;
}

void DeviceTimeline::wait() {
  wait_until(queue_);
  staged_ = 0;
}

void DeviceTimeline::upload(std::int64_t bytes) {
  counts_.bytes_up += bytes;
  while (bytes > 0) {
    if (staged_ == kStagingBytes) {
      wait_until(queue_ - static_cast<double>(kStagingBytes) / rates_.copy);  // for the other half
      staged_ = 0;
    }
    const std::int64_t piece = std::min(bytes, kStagingBytes - staged_);
    host_ += static_cast<double>(piece) / rates_.staging;
    queue(static_cast<double>(piece) / rates_.copy);
    staged_ += (piece + kStagingStep - 1) / kStagingStep * kStagingStep;
    bytes -= piece;
  }
}

void DeviceTimeline::download(std::int64_t bytes) {
  counts_.bytes_down += bytes;
  if (bytes > 0) staged_ = 0;
  for (; bytes > 0; bytes -= kStagingBytes) {
    const auto piece = static_cast<double>(std::min(bytes, kStagingBytes));
    queue(piece / rates_.copy);
    wait_until(queue_);
    host_ += piece / rates_.staging;
  }
}

double DeviceTimeline::upload_ahead(std::int64_t bytes) {
  counts_.bytes_up += bytes;
  counts_.bytes_ahead += bytes;
  host_ += rates_.launch_seconds;
  const double seconds = static_cast<double>(bytes) / rates_.copy;
  up_ = std::max({up_, queue_, host_}) + seconds;
  up_busy_ += seconds;
  return up_;
}

void DeviceTimeline::await_upload(double when) { queue_ = std::max(queue_, when); }

void DeviceTimeline::download_behind(std::int64_t bytes) {
  counts_.bytes_down += bytes;
  fill(static_cast<double>(bytes), 2);
  const double seconds = static_cast<double>(bytes) / rates_.copy;
  down_ = std::max(down_, queue_) + seconds;
  down_busy_ += seconds;
}

void DeviceTimeline::finish_downloads() { wait_until(down_); }

void DeviceTimeline::forget() {
  kernels_.clear();
  counts_ = {};
  busy_ = waited_ = up_busy_ = down_busy_ = 0;
}

}  // namespace roundhouse
