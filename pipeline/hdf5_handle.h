// Owners of HDF5 handles, and its status codes as exceptions.
#pragma once

#include <hdf5.h>

#include <string>

#include "base/error.h"
#include "base/unique.h"

namespace roundhouse {

using H5File = Unique<hid_t, &H5Fclose>;
using H5Dataset = Unique<hid_t, &H5Dclose>;
using H5Space = Unique<hid_t, &H5Sclose>;
using H5Type = Unique<hid_t, &H5Tclose>;
using H5Attribute = Unique<hid_t, &H5Aclose>;
using H5Properties = Unique<hid_t, &H5Pclose>;

// The library's own account of its last failure, and forgets it.
inline std::string hdf5_reason() {
  std::string reason;
  const auto keep_first = [](unsigned, const H5E_error2_t* error, void* text) -> herr_t {
    std::string& first = *static_cast<std::string*>(text);
    if (first.empty() && error->desc != nullptr) first = error->desc;
    return 0;
  };
  H5Ewalk2(H5E_DEFAULT, H5E_WALK_UPWARD, keep_first, &reason);  // upward: the cause comes first
  H5Eclear2(H5E_DEFAULT);
  return reason.empty() ? "HDF5 failed" : "HDF5: " + reason;
}

// A handle or a status; negative: it failed.
template <class T>
T check_hdf5(T result, const char* what) {
  if (result < 0) throw Error(std::string(what) + ": " + hdf5_reason());
  return result;
}

}  // namespace roundhouse
