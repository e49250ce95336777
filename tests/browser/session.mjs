// The page of a tenant whose client connects while it is open.
import assert from 'node:assert/strict';
import { existsSync, writeFileSync } from 'node:fs';
import { awaitState, done, known, signIn, visit } from './visit.mjs';

await visit({}, async (page) => {
  await signIn(page, 'acme');
  await awaitState(page, 'enabled');
  const session = page.getByRole('region', { name: 'Live session' });
  await session.getByRole('status').filter({ hasText: /^not connected$/ }).waitFor();
  await session.getByText('none with these keys yet').waitFor();
  await page.evaluate(() => { window.marker = 'still here'; });
  writeFileSync(`${known.folder}-looked`, '');
  await session.getByRole('status').filter({ hasText: /^connected$/ }).waitFor({ timeout: 60_000 });
  assert.ok(existsSync(`${known.folder}-connected`));
  await session.getByText(known.client).waitFor();
  assert.match(await session.textContent(), /[1-9]\d* packets/);
  assert.equal(await page.evaluate(() => window.marker), 'still here');
});

await done();
