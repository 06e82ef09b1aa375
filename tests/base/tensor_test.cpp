#include "base/tensor.h"

#include <gtest/gtest.h>

#include <array>

#include "base/error.h"

namespace roundhouse {
namespace {

TEST(ElementCountTest, MultipliesAndChecks) {
  EXPECT_EQ(element_count({}), 1);
  EXPECT_EQ(element_count({3, 4, 5}), 60);
  EXPECT_EQ(element_count({3, 0}), 0);
  EXPECT_THROW(element_count({3, -1}), Error);
  EXPECT_THROW(element_count({std::int64_t{1} << 40, std::int64_t{1} << 40}), Error);
}

TEST(HostTensorTest, StartsWithZerosAndCopiesAView) {
  HostTensor tensor(DType::kF32, {2, 3});
  EXPECT_EQ(tensor.count(), 6);
  for (const float value : tensor.as<float>()) EXPECT_EQ(value, 0.0f);
  tensor.as<float>()[4] = 7.0f;
  const HostTensor copy = HostTensor::from(tensor.view());
  EXPECT_EQ(copy.as<float>()[4], 7.0f);
  EXPECT_EQ(copy.shape(), (Shape{2, 3}));
}

TEST(HostTensorTest, RefusesAViewWhoseBytesDoNotMatchItsShape) {
  const std::array<std::byte, 7> bytes{};
  EXPECT_THROW(HostTensor::from({DType::kF32, {2}, bytes}), Error);
  EXPECT_THROW(HostTensor(DType::kF32, {std::int64_t{1} << 62}), Error);
}

TEST(HostTensorTest, MayBeEmpty) {
  EXPECT_EQ(HostTensor().count(), 0);
  EXPECT_TRUE(HostTensor(DType::kF16, {0, 8}).bytes().empty());
}

}  // namespace
}  // namespace roundhouse
