// Elementary functions without branches, so that a loop over them becomes vector code, and the
// vector type for what a compiler does not vectorise by itself (reductions, whose order it must
// keep).
#pragma once

#include <bit>
#include <cstdint>

namespace roundhouse {

// 16 floats at any address; the compiler splits them to what the processor has. Sums in 16 lanes
// have the same bits on every processor.
inline constexpr int kLanes = 16;
using Lanes [[gnu::vector_size(64), gnu::aligned(4), gnu::may_alias]] = float;

// 2^n, -126 <= n <= 127.
inline float power_of_two(std::int32_t n) { return std::bit_cast<float>((n + 127) << 23); }

// p(r) 2^n with one rounding, -252 <= n <= 254, subnormal results included.
inline float scale_by_power(float value, std::int32_t n) {
  const std::int32_t half = n >> 1;
  return value * power_of_two(half) * power_of_two(n - half);
}

// Adding this moves a float's units to its last bit: rounds to an integer (|x| < 2^22) and leaves
// it in the low bits.
inline constexpr float kRoundToInteger = 0x1.8p23f;

// e^r for |r| <= ln(2) / 2 (coefficients of Cephes' expf).
inline float exp_near_zero(float r) {
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}

// e^x to 2 units in the last place. Overflow gives infinity, -infinity gives 0, NaN stays NaN.
inline float fast_exp(float x) {
  x = x > 89.0f ? 89.0f : x;  // e^89 overflows
  x = x < -104.0f ? -104.0f : x;
  const float shifted = x * 1.44269504f + kRoundToInteger;
  const float n = shifted - kRoundToInteger;
  const float r = (x - n * 0.693359375f) -
                  n * -2.12194440e-4f;  // ln 2 in two parts; the first product is exact
  return scale_by_power(exp_near_zero(r), std::bit_cast<std::int32_t>(shifted) -
                                              std::bit_cast<std::int32_t>(kRoundToInteger));
}

// tanh(x) to 3 units in the last place (coefficients of Cephes' tanhf). NaN stays NaN.
inline float fast_tanh(float x) {
  const float magnitude = x < 0.0f ? -x : x;
  const float square = x * x;
  float p = -5.70498872745e-3f;
  p = p * square + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const float near_zero = p * square * x + x;
  const float far = 1.0f - 2.0f / (fast_exp(2.0f * magnitude) + 1.0f);
  return magnitude < 0.625f ? near_zero : x < 0.0f ? -far : far;
}

// a of GateFunction::kGeluTanh, and da/dx.
inline float gelu_exponent(float x) { return 1.5957691216057308f * (x + 0.044715f * (x * x * x)); }
inline float gelu_exponent_slope(float x) {
  return 1.5957691216057308f * (1.0f + 0.134145f * (x * x));
}

// x^p for x >= 0, p > 0, with a relative error of about |p log2 x| 2^-23.
inline float fast_pow(float x, float p) {
  // x = m 2^e with m in [1/sqrt(2), sqrt(2)); log(m) with the coefficients of Cephes' logf.
  const std::int32_t bits = std::bit_cast<std::int32_t>(x);
  const std::int32_t e = (bits - 0x3f3504f3) >> 23;
  const float f = std::bit_cast<float>(bits - (e << 23)) - 1.0f;
  float q = 7.0376836292e-2f;
  q = q * f - 1.1514610310e-1f;
  q = q * f + 1.1676998740e-1f;
  q = q * f - 1.2420140846e-1f;
  q = q * f + 1.4249322787e-1f;
  q = q * f - 1.6668057665e-1f;
  q = q * f + 2.0000714765e-1f;
  q = q * f - 2.4999993993e-1f;
  q = q * f + 3.3333331174e-1f;
  const float square = f * f;
  const float log_m = q * (square * f) - 0.5f * square + f;
  float y = p * (static_cast<float>(e) + log_m * 1.44269504f);  // log2(x^p)
  y = y > 129.0f ? 129.0f : y;
  y = y < -151.0f ? -151.0f : y;
  const float shifted = y + kRoundToInteger;
  const float r = (y - (shifted - kRoundToInteger)) * 0.693147181f;
  const float power =
      scale_by_power(exp_near_zero(r), std::bit_cast<std::int32_t>(shifted) -
                                           std::bit_cast<std::int32_t>(kRoundToInteger));
  return x == 0.0f ? 0.0f : power;
}

}  // namespace roundhouse
