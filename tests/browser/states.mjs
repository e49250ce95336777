// What keeps a VPN from being enabled, and what the page says to that.
import assert from 'node:assert/strict';
import { judge } from './judge.mjs';
import { awaitState, button, done, hinder, link, signIn, state, status, tenant, unhinder, visit } from './visit.mjs';

hinder();

await visit({ bypassCSP: true }, async (page) => {
  await signIn(page, 'acme');
  await button(page, 'Enable VPN').click();
  await awaitState(page, 'enabling');
  assert.equal(await link(page, 'Download configuration').count(), 0);
  assert.equal(await button(page, 'Enable VPN').count(), 0);
  await judge(page);
  // What comes too early is refused, with the reason.
  await page.goto(`${tenant('acme')}/regenerate`);
  await button(page, 'Regenerate Keys').click();
  assert.match(await page.getByRole('alert').textContent(), /being enabled/);
});

await visit({}, async (page) => {
  await signIn(page, 'initech');
  assert.equal(await state(page).textContent(), 'unavailable');
  await page.getByText('Upgrade to Business or Enterprise Cloud').waitFor();
  assert.equal(await page.locator('main button, main form').count(), 0);
});

await visit({}, async (page) => {
  await signIn(page, 'hooli');
  assert.equal(await state(page).textContent(), 'disabled');
  assert.ok(await button(page, 'Enable VPN').isDisabled());
  await page.getByText('This tenant is still being provisioned').waitFor();
});

await visit({ bypassCSP: true }, async (page) => {
  await signIn(page, 'acme');
  await awaitState(page, 'failed');
  const { failure } = await status('acme');
  assert.match(failure, /namespace/);
  const alert = await page.getByRole('alert').textContent();
  assert.ok(alert.includes(failure), alert);
  assert.match(alert, /Enable VPN tries again/);
  assert.equal(await link(page, 'Download configuration').count(), 0);
  await judge(page);

  // Given up.
  await link(page, 'Disable VPN').click();
  await button(page, 'Disable VPN').click();
  await awaitState(page, 'disabled');
  // And tried again, with nothing in the way any more.
  unhinder();
  await button(page, 'Enable VPN').click();
  await awaitState(page, 'enabled');
  await link(page, 'Download configuration').waitFor();
});

await done();
