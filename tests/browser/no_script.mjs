// Everything with scripts switched off.
import assert from 'node:assert/strict';
import {
  awaitState, button, configuration, done, hinder, link, signIn, status, tenant, unhinder, visit,
} from './visit.mjs';

await visit({ javaScriptEnabled: false }, async (page) => {
  await signIn(page, 'acme');
  hinder();
  await button(page, 'Enable VPN').click();
  await awaitState(page, 'enabling');
  unhinder();
  await awaitState(page, 'enabled');
  const first = await status('acme');
  // Nothing to click that would do nothing.
  assert.equal(await page.locator('[data-copy]:visible').count(), 0);
  await link(page, 'Show QR code').click();
  assert.equal(await page.locator('pre code').textContent(), await configuration('acme'));
  await link(page, 'Back').click();
  await link(page, 'Regenerate Keys').click();
  await button(page, 'Regenerate Keys').click();
  await page.waitForURL(tenant('acme'));
  await awaitState(page, 'enabled');
  assert.equal((await status('acme')).generation, first.generation + 1);
  await link(page, 'Disable VPN').click();
  await button(page, 'Disable VPN').click();
  await awaitState(page, 'disabled');
  await button(page, 'Sign out').click();
  await page.getByRole('heading', { level: 1, name: 'Sign in' }).waitFor();
});

await done();
