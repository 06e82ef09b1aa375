#include "tests/source_folder.h"

#include <gtest/gtest.h>

namespace roundhouse {
namespace {

TEST(SourceFolderTest, IsTheBuildersUnlessAnotherIsNamed) {
  ::unsetenv("ROUNDHOUSE_SOURCE_DIR");
  EXPECT_TRUE(std::filesystem::exists(source_folder() / "tests/golden/gradients.json"));
  ::setenv("ROUNDHOUSE_SOURCE_DIR", "/elsewhere/tree", 1);
  EXPECT_EQ(source_folder(), "/elsewhere/tree");
  ::unsetenv("ROUNDHOUSE_SOURCE_DIR");
}

}  // namespace
}  // namespace roundhouse
