// A key of one's own, when enabling and when making keys anew.
import assert from 'node:assert/strict';
import { awaitState, button, configuration, done, link, signIn, status, tenant, visit } from './visit.mjs';

const FIRST = 'hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=';
const SECOND = 'TrMvSoP4jYQlY6RIzBgbssQqY3vxI2Pi+y71lOWWXX0=';
// Of low order: whoever used it would share no secret.
const WORTHLESS = 'AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=';

async function give(page, key) {
  if (!(await page.getByLabel('Public key').isVisible())) {
    await page.getByText('Use a key of your own').click();
  }
  await page.getByLabel('Public key').fill(key);
}

await visit({}, async (page) => {
  await signIn(page, 'acme');
  await give(page, 'no key');
  await button(page, 'Enable VPN').click();
  const held = await page.getByLabel('Public key').evaluate((field) => field.validity.patternMismatch);
  assert.ok(held, 'the browser keeps what is no key');
  assert.equal((await status('acme')).state, 'disabled');

  await give(page, WORTHLESS);
  await button(page, 'Enable VPN').click();
  assert.match(await page.getByRole('alert').textContent(), /^The public key is not valid/);
  assert.equal(await page.getByLabel('Public key').inputValue(), WORTHLESS, 'the field is kept');
  assert.ok(await page.getByLabel('Public key').isVisible());
  assert.equal((await status('acme')).state, 'disabled');

  await give(page, ` ${FIRST} `);
  await button(page, 'Enable VPN').click();
  await awaitState(page, 'enabled');
  await page.getByText(FIRST, { exact: true }).waitFor();
  assert.equal((await status('acme')).client_public_key, FIRST);
  await link(page, 'Show QR code').click();
  await page.getByText('There is no QR code').waitFor();
  assert.equal(await page.locator('.qr').count(), 0);
  const text = await page.locator('pre code').textContent();
  assert.equal(text, await configuration('acme'));
  const [line] = text.split('\n').filter((found) => found.startsWith('PrivateKey'));
  assert.doesNotMatch(line, /[A-Za-z0-9+/]{43}=/, 'a line to fill in');

  await page.goto(`${tenant('acme')}/regenerate`);
  await give(page, WORTHLESS);
  await button(page, 'Regenerate Keys').click();
  assert.match(await page.getByRole('alert').textContent(), /not valid/);
  assert.equal(await page.getByLabel('Public key').inputValue(), WORTHLESS);
  assert.equal((await status('acme')).client_public_key, FIRST);
  await give(page, SECOND);
  await button(page, 'Regenerate Keys').click();
  await page.waitForURL(tenant('acme'));
  await awaitState(page, 'enabled');
  await page.getByText(SECOND, { exact: true }).waitFor();

  // Left empty, they are made here.
  await link(page, 'Regenerate Keys').click();
  await button(page, 'Regenerate Keys').click();
  await page.waitForURL(tenant('acme'));
  await awaitState(page, 'enabled');
  assert.equal((await status('acme')).client_key_given, false);
  await link(page, 'Show QR code').click();
  await page.locator('.qr').waitFor();
});

await done();
