// Whether a page is fit for everyone: read aloud, by keyboard, on a phone, at night.
import assert from 'node:assert/strict';
import axe from 'axe-core';
import { NARROW, WIDE } from './visit.mjs';

const RULES = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice'];

/** At both widths and in both schemes. Takes a context without the pages' policy. */
export async function judge(page) {
  for (const size of [WIDE, NARROW]) {
    await page.setViewportSize(size);
    // What is folded away is judged too.
    await page.evaluate(() => document.querySelectorAll('details').forEach((one) => { one.open = true; }));
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      const where = `${page.url()} at ${size.width} px, ${colorScheme}`;
      const found = await page.evaluate(() => ({
        headings: document.querySelectorAll('h1').length,
        language: document.documentElement.lang,
        title: document.title,
        width: document.scrollingElement.scrollWidth,
        room: window.innerWidth,
        nameless: [...document.querySelectorAll('input:not([type=hidden]), select, meter')]
          .filter((field) => !field.labels.length).map((field) => field.outerHTML),
      }));
      assert.equal(found.headings, 1, where);
      assert.equal(found.language, 'en', where);
      assert.match(found.title, /\S – \S/, where);
      assert.ok(found.width <= found.room, `${where}: ${found.width} px wide`);
      assert.deepEqual(found.nameless, [], where);
      if (!(await page.evaluate(() => 'axe' in window))) await page.evaluate(axe.source);
      const { violations } = await page.evaluate(
        (values) => window.axe.run(document, { runOnly: { type: 'tag', values } }),
        RULES,
      );
      const told = violations.map(({ id, nodes }) => [id, ...nodes.map((node) => node.failureSummary + node.html)]);
      assert.deepEqual(told, [], where);
    }
  }
}

/** Tab alone reaches all that can be used, and shows where it is. */
export async function judgeKeyboard(page) {
  const wanted = await page.evaluate(() => {
    const usable = 'a[href], button:enabled, input:enabled:not([type=hidden]), select, summary';
    const all = [...document.querySelectorAll(usable)].filter((one) => one.checkVisibility());
    all.forEach((one, at) => { one.dataset.stop = at; });
    document.activeElement?.blur();
    return all.length;
  });
  const reached = new Set();
  for (let presses = 0; presses < wanted + 2 && reached.size < wanted; presses += 1) {
    await page.keyboard.press('Tab');
    const { stop, html, outline, seen } = await page.evaluate(() => {
      const here = document.activeElement;
      const { left, right, top, bottom } = here.getBoundingClientRect();
      const { outlineStyle, outlineWidth } = getComputedStyle(here);
      return {
        stop: here.dataset.stop,
        html: here.outerHTML,
        outline: outlineStyle !== 'none' && parseFloat(outlineWidth) >= 2,
        seen: right > 0 && left < window.innerWidth && bottom > 0 && top < window.innerHeight,
      };
    });
    if (stop === undefined) continue;
    assert.ok(outline && seen, `${page.url()}: focus is not seen on ${html}`);
    reached.add(stop);
  }
  assert.equal(reached.size, wanted, `${page.url()}: not all can be reached by Tab`);
}
