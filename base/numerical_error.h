// Data that allow no result. It is the same at every start: trying again cannot help, another recipe, model or calibration may.
#pragma once

#include <string>

#include "base/error.h"

namespace roundhouse {

// Found by one rank, in its part of the work: a scale beyond float16, a weight that is not finite.
class NumericalError : public Error {
 public:
  explicit NumericalError(const std::string& what) : Error(what) {}
};

// Thrown alike on every rank of the group that works together, so that all of them may go on with something else.
class UnquantizableError : public Error {
 public:
  explicit UnquantizableError(const std::string& what) : Error(what) {}
};

}  // namespace roundhouse
