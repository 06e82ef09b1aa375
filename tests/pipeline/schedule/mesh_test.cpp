#include "pipeline/schedule/mesh.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace roundhouse {
namespace {

void expect_mesh(MeshShape shape, int pipeline, int data) {
  EXPECT_EQ(shape.pipeline, pipeline);
  EXPECT_EQ(shape.data, data);
}

TEST(MeshTest, TheMissingSideFollows) {
  expect_mesh(named_mesh({2, 0, 0}, 6, 6), 2, 3);
  expect_mesh(named_mesh({0, 2, 0}, 6, 6), 3, 2);
  expect_mesh(named_mesh({0, 2, 3}, 12, 6), 2, 2);
}

TEST(MeshTest, RefusesWhatDoesNotFit) {
  EXPECT_THROW(named_mesh({2, 2, 0}, 6, 6), InputError);
  EXPECT_THROW(named_mesh({4, 0, 0}, 6, 6), InputError);
  EXPECT_THROW(named_mesh({2, 2, 2}, 6, 6), InputError);
  EXPECT_THROW(named_mesh({2, 1, 4}, 8, 6), InputError);  // they have all blocks once together
  EXPECT_THROW(named_mesh({7, 1, 0}, 7, 6), InputError);  // more stages than blocks
}

}  // namespace
}  // namespace roundhouse
