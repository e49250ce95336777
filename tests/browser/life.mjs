// A member's VPN: enabled, followed, downloaded, shown, its keys made anew, disabled.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  awaitState, button, configuration, done, hinder, link, server, signIn, state, status, tenant, unhinder, visit,
} from './visit.mjs';

async function download(page) {
  const [file] = await Promise.all([
    page.waitForEvent('download'),
    link(page, 'Download configuration').click(),
  ]);
  return { name: file.suggestedFilename(), text: readFileSync(await file.path(), 'utf8') };
}

const line = (text, key) => text.split('\n').find((found) => found.startsWith(`${key} =`));

await visit({}, async (page, context) => {
  await signIn(page, 'acme');
  assert.equal(await state(page).textContent(), 'disabled');
  assert.equal(await link(page, 'Download configuration').count(), 0);

  hinder();
  await button(page, 'Enable VPN').click();
  await awaitState(page, 'enabling');
  await page.getByText('The VPN is being set up').waitFor();
  // Gone with the page, if it were loaded anew.
  await page.evaluate(() => { window.marker = 'still here'; });
  unhinder();
  await awaitState(page, 'enabled');
  assert.equal(await page.evaluate(() => window.marker), 'still here');
  const first = await status('acme');
  assert.equal(first.state, 'enabled');
  for (const text of [first.endpoint, first.client_address, first.server_public_key, first.client_public_key]) {
    await page.getByText(text, { exact: true }).waitFor();
  }

  await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin: server });
  await page.getByRole('button', { name: 'Copy the endpoint' }).click();
  await button(page, 'Copied').waitFor().catch(() => {});
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), first.endpoint);

  const file = await download(page);
  assert.match(file.name, /^[a-zA-Z0-9_=+.-]{1,15}\.conf$/, 'a name that wg-quick takes');
  assert.equal(file.text, await configuration('acme'));

  await link(page, 'Show QR code').click();
  assert.equal(await page.locator('pre code').textContent(), file.text);
  const folder = mkdtempSync(join(tmpdir(), 'qr-'));
  for (const [scheme, width] of [['light', 1280], ['dark', 390]]) {
    await page.emulateMedia({ colorScheme: scheme });
    await page.setViewportSize({ width, height: 800 });
    const path = join(folder, `${scheme}.png`);
    await page.locator('.qr').screenshot({ path });
    const read = execFileSync('zbarimg', ['--raw', '--quiet', '--nodbus', path], { encoding: 'utf8' });
    assert.equal(read, `${file.text}\n`, `the QR code, ${scheme}`);
  }
  await page.emulateMedia({ colorScheme: 'light' });

  await link(page, 'Back').click();
  await link(page, 'Regenerate Keys').click();
  await page.getByText('The current configuration stops working at once').waitFor();
  assert.deepEqual(await status('acme'), first, 'looking changes nothing');
  await link(page, 'Cancel').click();
  await link(page, 'Regenerate Keys').click();
  await button(page, 'Regenerate Keys').click();
  await page.waitForURL(tenant('acme'));
  await awaitState(page, 'enabled');
  const second = await status('acme');
  assert.equal(second.generation, first.generation + 1);
  const renewed = await download(page);
  assert.equal(renewed.text, await configuration('acme'));
  const lines = [file, renewed].map(({ text }) => text.split('\n'));
  assert.equal(lines[0].length, lines[1].length);
  const changed = lines[0].filter((text, at) => text !== lines[1][at]);
  assert.deepEqual(changed, ['PrivateKey', 'PublicKey'].map((key) => line(file.text, key)));
  for (const key of ['Endpoint', 'Address']) assert.ok(line(renewed.text, key), key);

  await link(page, 'Disable VPN').click();
  await page.getByText('Disabling the VPN disconnects all active sessions at once').waitFor();
  assert.equal((await status('acme')).state, 'enabled', 'looking changes nothing');
  await button(page, 'Disable VPN').click();
  await awaitState(page, 'disabled');
  await button(page, 'Enable VPN').waitFor();
  assert.equal((await status('acme')).state, 'disabled');
  assert.equal(await page.getByText(second.server_public_key).count(), 0);
});

// A page that was left open follows what others do.
await visit({}, async (page, context) => {
  await signIn(page, 'acme');
  await button(page, 'Enable VPN').click();
  await awaitState(page, 'enabled');
  await page.evaluate(() => { window.marker = 'still here'; });
  const other = await context.newPage();
  await other.goto(`${tenant('acme')}/disable`);
  await button(other, 'Disable VPN').click();
  await page.bringToFront();
  await awaitState(page, 'disabled');
  assert.equal(await page.evaluate(() => window.marker), 'still here');
  // What a page that is out of date asks for is refused, with the reason.
  await other.goto(`${tenant('acme')}/regenerate`);
  await button(other, 'Regenerate Keys').click();
  assert.match(await other.getByRole('alert').textContent(), /not enabled/);
});

await done();
