// AWQ on a GPU: its kernels are still to be written.
#include "base/error.h"
#include "kernels/cuda_backend.h"

namespace roundhouse {
namespace {

[[noreturn]] void refuse() { throw Error("AWQ does not run on a GPU yet: use the CPU backend"); }

}  // namespace

void CudaBackend::column_magnitudes(const ColumnMagnitudes&) { refuse(); }
void CudaBackend::compare_rows(const CompareRows&) { refuse(); }
void CudaBackend::scaled_rounding(const ScaledRounding&) { refuse(); }
void CudaBackend::fold_scales(const FoldScales&) { refuse(); }
void CudaBackend::group_grams(const GroupGrams&) { refuse(); }
void CudaBackend::clip_groups(const ClipGroups&) { refuse(); }

}  // namespace roundhouse
