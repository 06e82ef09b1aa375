// Gradients in double precision: by finite differences for whatever is a function, and written out for attention, where
// differences would take too long at the sizes that kernels are tested with.
#pragma once

#include <functional>

#include "tests/reference/reference.h"

namespace roundhouse::reference {

// d/dx sum(dy * f(x)) by central differences; errs by about 1e-9 of the values that pass through f.
Matrix numeric_gradient(const std::function<Matrix(const Matrix&)>& f, const Matrix& x,
                        const Matrix& dy);

struct AttentionGradient {
  Matrix dq, dk, dv;
};
AttentionGradient attention_backward(const Matrix& q, const Matrix& k, const Matrix& v,
                                     const Matrix& d_out, std::int64_t heads, std::int64_t kv_heads,
                                     std::int64_t length, std::int64_t window, double scale,
                                     double score_cap = 0.0);

}  // namespace roundhouse::reference
