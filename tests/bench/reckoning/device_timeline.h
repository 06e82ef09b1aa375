// The time line of one GPU and of the host that drives it, of which nothing is there but rates: what the host queues, copies and
// waits for, in order, becomes seconds and counts.
//
// One queue of kernels and a stream of copies each way, which run beside each other; the host queues ahead of the device and
// stands still where it waits. A kernel takes the longer of what its operations and its reads take, and then what it writes (a
// product's last step is not hidden behind it), but at least `kernel_seconds`.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace roundhouse {

// Of an H200: what its data sheet and others' measurements suggest. None was measured here.
struct GpuRates {
  double bf16 = 790e12;                // operations a second of products with BF16 factors
  double f32 = 45e12;                  // with F32 factors, and of factorizations
  double attention = 200e12;           // forward
  double attention_backward = 130e12;  // the seven products that its two kernels make
  double memory = 3.3e12;              // bytes a second, read and written
  double copy = 55e9;                  // between host and device, each way, of pinned memory
  double staging =
      20e9;  // by which the host fills and empties pinned buffers for memory that is not
  double launch_seconds = 4e-6;   // of the host, for each call that queues something
  double kernel_seconds = 3e-6;   // of the device, the shortest kernel
  double wait_seconds = 10e-6;    // of the host, to notice that what it waits for is done
  double column_seconds = 60e-9;  // of a column of GPTQ's panel: one after the other
  double attention_slots =
      264;  // blocks of an attention kernel that run at once: two on each of 132 processors
};
struct RateName {
  const char* name;
  double GpuRates::*value;
  const char* what;
};
const std::vector<RateName>& rate_names();

enum class Engine { kNone, kBf16, kF32, kAttention, kAttentionBackward };

// What one call to the backend queues, as one or several kernels.
struct KernelWork {
  std::string name;
  Engine engine = Engine::kNone;
  double flops = 0;
  double read = 0, written = 0;  // bytes
  double least_seconds = 0;      // whatever the rates: steps that wait for each other
  double share = 1;              // of the device that works on it at least
  int kernels = 1;               // launches and calls of libraries
};

struct KernelSum {
  std::int64_t calls = 0, kernels = 0;
  double flops = 0, bytes = 0, seconds = 0;
  std::map<std::string, double> bound;  // seconds by what decided them
};

struct DeviceCounts {
  std::int64_t kernels = 0;      // launches and calls of libraries
  std::int64_t waits = 0;        // of the host, for the device
  std::int64_t bytes_up = 0;     // host to device
  std::int64_t bytes_ahead = 0;  // of them, beside the kernels
  std::int64_t bytes_down = 0;   // back

  bool operator==(const DeviceCounts&) const = default;
};

class DeviceTimeline {
 public:
  explicit DeviceTimeline(const GpuRates& rates) : rates_(rates) {}

  const GpuRates& rates() const { return rates_; }
  double host_seconds() const { return host_; }
  void kernel(const KernelWork& work);
  void fill(
      double bytes,
      double times);  // memory within the device: a copy (times 2) or zeros; no kernel of ours

  // By way of the buffers of pinned memory (CudaStaging).
  void upload(std::int64_t bytes);
  void download(std::int64_t bytes);
  void wait();  // for all that is queued

  double upload_ahead(std::int64_t bytes);  // when it is there
  void await_upload(double when);
  void download_behind(std::int64_t bytes);
  void finish_downloads();

  const std::map<std::string, KernelSum>& kernels() const { return kernels_; }
  const DeviceCounts& counts() const { return counts_; }
  double busy_seconds() const { return busy_; }      // of the queue
  double waited_seconds() const { return waited_; }  // by the host
  double copies_up() const { return up_busy_; }      // seconds of the copy streams
  double copies_down() const { return down_busy_; }
  void forget();  // counts and sums; the clock goes on

 private:
  void queue(double seconds);
  void wait_until(double when);

  GpuRates rates_;
  double host_ = 0, queue_ = 0, up_ = 0, down_ = 0;  // when each is done with what it has
  double busy_ = 0, waited_ = 0, up_busy_ = 0, down_busy_ = 0;
  std::int64_t staged_ = 0;  // bytes of the buffer at hand that are taken
  std::map<std::string, KernelSum> kernels_;
  DeviceCounts counts_;
};

}  // namespace roundhouse
