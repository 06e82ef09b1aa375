#include "pipeline/schedule/mesh.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace roundhouse {
namespace {

void expect_mesh(MeshShape shape, int pipeline, int data) {
  EXPECT_EQ(shape.pipeline, pipeline);
  EXPECT_EQ(shape.data, data);
}

TEST(MeshTest, OneWideTeamByDefault) { expect_mesh(choose_mesh(0, 0, 4, 16, 6), 1, 4); }

TEST(MeshTest, MoreRanksThanShardsMakeStages) { expect_mesh(choose_mesh(0, 0, 32, 16, 80), 2, 16); }

TEST(MeshTest, PrimeNumbersOfRanksBeyondTheShardsMakeAPipeline) {
  expect_mesh(choose_mesh(0, 0, 17, 16, 80), 17, 1);
}

TEST(MeshTest, TheMissingSideFollows) {
  expect_mesh(choose_mesh(2, 0, 6, 16, 6), 2, 3);
  expect_mesh(choose_mesh(0, 2, 6, 16, 6), 3, 2);
}

TEST(MeshTest, RefusesWhatDoesNotFit) {
  EXPECT_THROW(choose_mesh(2, 2, 6, 16, 6), InputError);
  EXPECT_THROW(choose_mesh(4, 0, 6, 16, 6), InputError);
  EXPECT_THROW(choose_mesh(7, 1, 7, 16, 6), InputError);  // more stages than blocks
}

}  // namespace
}  // namespace roundhouse
