// Who sees which tenants.
import assert from 'node:assert/strict';
import { done, ids, link, server, signIn, tenant, visit } from './visit.mjs';

const NOBODYS = '00000000-0000-4000-8000-000000000000';

await visit({}, async (page) => {
  await signIn(page, 'acme');
  const seen = async (path) => {
    const answer = await page.goto(server + path);
    const { date, ...headers } = await answer.allHeaders();
    return { status: answer.status(), headers, body: (await answer.body()).toString() };
  };
  for (const rest of ['', '/configuration', '/disable', '/regenerate']) {
    const unknown = await seen(`/tenants/${NOBODYS}${rest}`);
    assert.equal(unknown.status, 404);
    assert.deepEqual(await seen(`/tenants/${ids.globex}${rest}`), unknown, `another's${rest}`);
    assert.deepEqual(await seen(`/tenants/nonsense${rest}`), unknown);
  }
  await page.goto(`${server}/tenants?search=kovra`);
  await link(page, 'kovra-acme').waitFor();
  assert.equal(await page.locator('tbody tr').count(), 1);
  assert.equal(await page.getByText('Port pool').count(), 0, 'pools are the admin’s');
});

await visit({}, async (page) => {
  await signIn(page, 'admin');
  await page.getByRole('heading', { level: 1, name: 'Tenants' }).waitFor();
  const rows = () => page.locator('tbody tr td:first-child').allTextContents();
  assert.deepEqual(await rows(), ['kovra-acme', 'kovra-globex', 'kovra-hooli', 'kovra-initech']);
  assert.match(await page.getByLabel(/ports in use/).evaluate((meter) => meter.labels[0].textContent), /: 1 of \d+ ports in use/);
  assert.equal(await page.getByLabel(/ports in use/).evaluate((meter) => meter.value), 1);
  await page.getByText('1 enabled').waitFor();

  const search = async (text, state) => {
    await page.getByLabel('Search').fill(text);
    await page.getByLabel('State').selectOption(state);
    const loaded = page.waitForEvent('load');
    await page.getByRole('button', { name: 'Search' }).click();
    await loaded;
    assert.equal(await page.getByLabel('Search').inputValue(), text, 'the field is kept');
  };
  await search('Glob', '');
  assert.deepEqual(await rows(), ['kovra-globex']);
  await search(ids.initech.slice(0, 8), '');
  assert.deepEqual(await rows(), ['kovra-initech']);
  await search('30000', '');
  assert.deepEqual(await rows(), ['kovra-acme']);
  await search('', 'disabled');
  assert.deepEqual(await rows(), ['kovra-globex', 'kovra-hooli']);
  await search('<b>none</b>', '');
  await page.getByText('No tenant matches.').waitFor();
  await link(page, 'Show all').click();
  await link(page, 'kovra-globex').click();
  assert.equal(page.url(), tenant('globex'));
  await page.getByRole('heading', { level: 1, name: 'kovra-globex' }).waitFor();
});

await done();
