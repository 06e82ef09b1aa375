"""Pictures of a report, to be looked at: screenshots.py PAGE FOLDER."""
import pathlib
import sys

from browser import Browser, find

page, folder = sys.argv[1], pathlib.Path(sys.argv[2])
folder.mkdir(parents=True, exist_ok=True)
browser = Browser(find())
try:
    for width in (1200, 400):
        for dark in (False, True):
            browser.open(page, width, dark)
            browser.screenshot(folder / f"{width}-{'dark' if dark else 'light'}.png")
    browser.pdf(folder / "print.pdf")
finally:
    browser.close()
