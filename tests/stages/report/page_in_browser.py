"""The report in Chromium: nothing is complained about, nothing sticks out at any width, tables are sorted and filtered, and all of it is
there without scripts. Ends with 77, skipped, where there is no Chromium.

page_in_browser.py PROGRAM    PROGRAM FILE writes a page of two models, fallbacks, hostile names and figures that are not finite
"""
import pathlib
import subprocess
import sys
import tempfile

from browser import Browser, find

OVERFLOW = """Array.from(document.querySelectorAll('body *')).filter(function (element) {
  if (element.closest('.scroll, pre, svg, .switch')) return false;
  return element.getBoundingClientRect().right > document.documentElement.clientWidth + 1;
}).map((element) => element.tagName + '.' + element.className).slice(0, 5).join(' ')"""
COLUMN = """Array.from(document.querySelectorAll('#all table')[0].tBodies[0].querySelectorAll('tr:not(.group)'))
  .map((row) => row.cells[2].textContent)"""
CLICK = "document.querySelectorAll('#all table')[0].tHead.rows[0].cells[2].firstChild.click()"


def check(condition, what):
    if not condition:
        sys.exit("page_in_browser: " + what)


def look(browser, page):
    for width in (1200, 400):
        for dark in (False, True):
            where = f"{width} pixels, {'dark' if dark else 'light'}"
            browser.open(page, width, dark)
            check(not browser.complaints(), f"{where}: {browser.complaints()}")
            wide = browser.evaluate("document.documentElement.scrollWidth")
            check(wide <= width, f"{where}: the page is {wide} pixels wide: {browser.evaluate(OVERFLOW)}")
            check(not browser.evaluate(OVERFLOW), f"{where}: sticks out: {browser.evaluate(OVERFLOW)}")
            paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            bright = sum(int(part) for part in paper.strip("rgb()").split(",")) / 3
            check((bright < 64) == dark, f"{where}: the background is {paper}")


def sort(browser, page):
    browser.open(page, 1200)
    check(browser.evaluate(COLUMN)[0] == "2.0000", "the original comes first before anything is sorted")
    browser.evaluate(CLICK)
    check(browser.evaluate(COLUMN) == ["2.0000", "2.2500", "2.5000", "10.5000", "not finite"], f"ascending: {browser.evaluate(COLUMN)}")
    browser.evaluate(CLICK)
    # By number, not by letter; what is no number stays last among what is none.
    check(browser.evaluate(COLUMN)[-4:] == ["10.5000", "2.5000", "2.2500", "2.0000"], f"descending: {browser.evaluate(COLUMN)}")
    check(browser.evaluate("document.querySelector('#all th[aria-sort]').getAttribute('aria-sort')") == "descending", "the order is said")
    check(not browser.complaints(), str(browser.complaints()))


def filtered(browser, page):
    browser.open(page, 1200)
    shown = "Array.from(document.querySelectorAll('#all table')[0].querySelectorAll('tbody tr:not(.group)')).filter((row) => !row.hidden).length"
    everything = browser.evaluate(shown)
    browser.evaluate("var field = document.getElementById('filter'); field.value = 'GPTQ w4g128'; field.dispatchEvent(new Event('input'))")
    check(browser.evaluate(shown) == 2, f"rows with both words, one of each model: {browser.evaluate(shown)}")
    browser.evaluate("field.value = ''; field.dispatchEvent(new Event('input'))")
    check(browser.evaluate(shown) == everything, "an empty field shows all rows")


def switches(browser, page):
    for scripts in (True, False):
        browser.open(page, 1200, scripts=scripts)
        visible = "getComputedStyle(document.querySelector('td .error')).display !== 'none'"
        check(not browser.evaluate(visible), "standard errors are hidden at first")
        place = browser.evaluate("(function () { const box = document.querySelector('label[for=show-errors]').getBoundingClientRect();"
                                 " window.scrollTo(0, box.top - 100);"
                                 " const now = document.querySelector('label[for=show-errors]').getBoundingClientRect();"
                                 " return [now.left + now.width / 2, now.top + now.height / 2]; })()")
        for kind in ("mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)
        check(browser.evaluate(visible), f"standard errors are shown on demand (scripts: {scripts})")
        field = browser.evaluate("document.querySelector('.scripted').hidden")
        check(field != scripts, "the field that needs scripts is there only with them")


def main():
    program = find()
    if not program:
        print("page_in_browser: no Chromium is installed; skipped")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        page = pathlib.Path(folder) / "index.html"
        subprocess.run([sys.argv[1], str(page)], check=True)
        browser = Browser(program)
        try:
            look(browser, page)
            sort(browser, page)
            filtered(browser, page)
            switches(browser, page)
        finally:
            browser.close()
    print("no complaint, nothing sticks out, sorted, filtered, switched; with and without scripts")


main()
