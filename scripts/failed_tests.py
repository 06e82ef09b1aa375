#!/usr/bin/env python3
"""Says at the end of a long test run once more which tests failed, with the last lines of each.

failed_tests.py FILE        (of ctest --output-junit FILE)
"""
import sys
import xml.etree.ElementTree as xml

LINES, WIDTH = 15, 300


def main():
    failed = [case for case in xml.parse(sys.argv[1]).iter("testcase") if case.get("status") == "fail"]
    for case in failed:
        lines = (case.findtext("system-out") or "").strip().splitlines()
        print(f"\n{case.get('name')} failed after {float(case.get('time')):.0f} s; the last it said:")
        for line in lines[-LINES:]:
            print(f"  {line[:WIDTH]}")
    print(f"\n{len(failed)} of the tests failed; all they said: build/Testing/Temporary/LastTest.log")


if __name__ == "__main__":
    main()
