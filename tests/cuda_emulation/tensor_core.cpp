#include <kernels/cuda/tensor_core.cuh>

#include <cstdint>

namespace roundhouse {
namespace {

using emulation::kWarp;
using Lanes = std::span<void* const, kWarp>;

struct Load {
  const void* row;
  unsigned* r;
};

std::uint16_t element(const Lanes& lanes, unsigned matrix, unsigned row, unsigned col) {
  const void* const from = static_cast<const Load*>(lanes[8 * matrix + row])->row;
  std::uint16_t value;
  std::memcpy(&value, static_cast<const std::byte*>(from) + col * sizeof(value), sizeof(value));
  return value;
}

template <bool kTransposed>
void load_all(Lanes lanes) {
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
      const unsigned row = lane / 4;
      const unsigned col = lane % 4 * 2;
      const unsigned low =
          kTransposed ? element(lanes, matrix, col, row) : element(lanes, matrix, row, col);
      const unsigned high =
          kTransposed ? element(lanes, matrix, col + 1, row) : element(lanes, matrix, row, col + 1);
      static_cast<Load*>(lanes[lane])->r[matrix] = low | high << 16;
    }
  }
}

void check_row(const void* row, std::source_location where) {
  if (reinterpret_cast<std::uintptr_t>(row) % 16 != 0) {
    emulation::fail("a row of a matrix to be loaded is not aligned", where);
  }
}

struct Product {
  float* c;
  const unsigned* a;
  unsigned b[2];
};

float half_of(unsigned pair, unsigned which) {
  return bfloat16_to_float(static_cast<std::uint16_t>(pair >> (16 * which)));
}

std::uint64_t products = 0;

void multiply_all(Lanes lanes) {
  ++products;
  const auto of = [&](unsigned lane) { return static_cast<const Product*>(lanes[lane]); };
  float a[16][16];
  float b[16][8];
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    const unsigned g = lane / 4;
    const unsigned t = lane % 4;
    for (unsigned i = 0; i < 4; ++i) {
      for (unsigned h = 0; h < 2; ++h) {
        a[g + i % 2 * 8][2 * t + h + i / 2 * 8] = half_of(of(lane)->a[i], h);
      }
    }
    for (unsigned i = 0; i < 2; ++i) {
      for (unsigned h = 0; h < 2; ++h) b[2 * t + h + i * 8][g] = half_of(of(lane)->b[i], h);
    }
  }
  for (unsigned lane = 0; lane < kWarp; ++lane) {
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = lane / 4 + i / 2 * 8;
      const unsigned col = lane % 4 * 2 + i % 2;
      float sum = 0.0f;
      for (unsigned k = 0; k < 16; ++k) sum += a[row][k] * b[k][col];
      of(lane)->c[i] += sum;
    }
  }
}

}  // namespace

void load_matrices(unsigned (&r)[4], const void* row, std::source_location where) {
  check_row(row, where);
  Load mine{row, r};
  emulation::wait_for_warp("ldmatrix", where, &mine, &load_all<false>);
}

void load_matrices_transposed(unsigned (&r)[4], const void* row, std::source_location where) {
  check_row(row, where);
  Load mine{row, r};
  emulation::wait_for_warp("ldmatrix.trans", where, &mine, &load_all<true>);
}

void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1,
                  std::source_location where) {
  Product mine{c, a, {b0, b1}};
  emulation::wait_for_warp("mma", where, &mine, &multiply_all);
}

}  // namespace roundhouse

std::uint64_t emulation::tensor_core_products() { return roundhouse::products; }
