// Every call into CUDA and its libraries passes through check(): a failure becomes an Error with the call, the library's
// words for it and the place in the source.
#pragma once

#include <cublas_v2.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#include <source_location>

namespace roundhouse {

void check(cudaError_t status, const char* call,
           std::source_location where = std::source_location::current());
void check(cublasStatus_t status, const char* call,
           std::source_location where = std::source_location::current());
void check(cusolverStatus_t status, const char* call,
           std::source_location where = std::source_location::current());

}  // namespace roundhouse
