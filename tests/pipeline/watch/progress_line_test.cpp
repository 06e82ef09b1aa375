#include "pipeline/watch/progress_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace roundhouse {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;

TEST(ProgressLineTest, DurationsReadLikeSpeech) {
  EXPECT_EQ(format_duration(0), "0.0 s");
  EXPECT_EQ(format_duration(3.24), "3.2 s");
  EXPECT_EQ(format_duration(9.96), "10 s");
  EXPECT_EQ(format_duration(59.4), "59 s");
  EXPECT_EQ(format_duration(64), "1 min 4 s");
  EXPECT_EQ(format_duration(7500), "2 h 5 min");
  EXPECT_EQ(format_duration(3 * 86400 + 4 * 3600), "3 d 4 h");
  EXPECT_EQ(format_duration(-1), "unknown");
  EXPECT_EQ(format_duration(1.0 / 0.0), "unknown");
}

TEST(ProgressLineTest, ALogHasOneLineAUnit) {
  testing::internal::CaptureStderr();
  {
    ProgressLine line(false, "");
    line.plan(4, 1);
    line.phase("rtn-w4 block 1");
    line.redraw();
    line.set_done(2);
    line.set_left(0.5);
    line.unit_done("rtn-w4 block 1, error 1.20e-03", 3.21);
    line.say("a word");
    line.set_done(4);
    line.set_left(64);  // of exports and evaluations
    line.unit_done("rtn-w4 block 3", 100);
  }
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              MatchesRegex("\\[2/4\\] rtn-w4 block 1, error 1.20e-03: 3.2 s, 0.5 s left\n"
                           "a word\n"
                           "\\[4/4\\] rtn-w4 block 3: 1 min 40 s, 1 min 4 s left\n"));
}

TEST(ProgressLineTest, OtherRanksSayWhoTheyAre) {
  testing::internal::CaptureStderr();
  ProgressLine line(false, "[rank 3] ");
  line.say("a word");
  line.unit_done("rtn-w4 block 1", 3);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "[rank 3] a word\n[rank 3] rtn-w4 block 1: 3.0 s\n");
}

TEST(ProgressLineTest, ATerminalHasOneLiveLine) {
  testing::internal::CaptureStderr();
  {
    ProgressLine line(true, "");
    line.plan(4, 0);
    line.phase("rtn-w4 block 0");
    for (int i = 0; i < 1000; ++i) line.redraw();
    line.say("a word");
    line.set_done(1);
    line.unit_done("rtn-w4 block 0", 3);
  }
  const std::string text = testing::internal::GetCapturedStderr();
  const std::string erase = "\r\x1b[K";
  EXPECT_TRUE(text.starts_with(erase + "[>                       ] 0/4  rtn-w4 block 0")) << text;
  EXPECT_THAT(text, HasSubstr(erase + "a word\n"));
  EXPECT_THAT(text, HasSubstr(erase + "[======>                 ] 1/4  rtn-w4 block 0"));
  EXPECT_TRUE(text.ends_with(erase)) << "nothing is left behind";
  EXPECT_LT(text.size(), 600u) << "it is drawn ten times a second at most";
}

}  // namespace
}  // namespace roundhouse
