// Signing in by token and by the provider's forms, and out.
import assert from 'node:assert/strict';
import { button, done, ids, link, server, tenant, tokens, visit } from './visit.mjs';

const session = async (context) => {
  const cookies = await context.cookies();
  return cookies.find(({ name }) => name === 'vpn-edge-session');
};

async function paste(page, token) {
  await page.getByLabel('Token').fill(token);
  await button(page, 'Sign in with the token').click();
}

// At the provider: who one is, and that this server may know.
async function atProvider(page, account) {
  await page.locator('[name=login]').fill(account);
  await page.locator('[name=password]').fill('any');
  await page.locator('[type=submit]').click();
  await page.locator('[name=prompt][value=consent]').waitFor({ state: 'attached' });
  await page.locator('[type=submit]').click();
}

await visit({}, async (page, context) => {
  await page.goto(tenant('acme'));
  assert.equal(new URL(page.url()).pathname, '/sign-in');
  await paste(page, 'vpe_wrong');
  await page.getByRole('alert').waitFor();
  assert.match(await page.getByRole('alert').textContent(), /token/i);
  assert.equal(await session(context), undefined);
  const other = await context.newPage();
  await other.goto(tenant('acme'));
  assert.equal(new URL(other.url()).pathname, '/sign-in', 'still signed out');
  await other.close();

  await paste(page, ` ${tokens.acme} `);
  await page.getByRole('heading', { level: 1, name: 'kovra-acme' }).waitFor();
  assert.equal(page.url(), tenant('acme'), 'back where it was to');
  const cookie = await session(context);
  assert.equal(cookie.httpOnly, true);
  assert.equal(cookie.secure, true);
  assert.equal(cookie.sameSite, 'Lax');
  assert.equal(await page.evaluate(() => document.cookie), '');
  // Nothing to ask of whoever is signed in.
  await page.goto(`${server}/sign-in`);
  assert.equal(page.url(), tenant('acme'));

  await button(page, 'Sign out').click();
  await page.getByRole('heading', { level: 1, name: 'Sign in' }).waitFor();
  assert.equal(await session(context), undefined);
  await page.goto(tenant('acme'));
  assert.equal(new URL(page.url()).pathname, '/sign-in');
});

// A token that was taken back: the page says so.
await visit({}, async (page, context) => {
  await context.addCookies([{
    name: 'vpn-edge-session', value: 'vpe_gone', domain: '127.0.0.1', path: '/', secure: true,
  }]);
  await page.goto(tenant('acme'));
  assert.match(await page.getByRole('alert').textContent(), /session has ended/);
});

await visit({}, async (page, context) => {
  await page.goto(`${server}/tenants/${ids.acme}/regenerate`);
  await link(page, 'Sign in').click();
  await atProvider(page, 'ada@acme');
  await page.getByRole('heading', { level: 1, name: 'Regenerate Keys?' }).waitFor();
  assert.equal(page.url(), `${tenant('acme')}/regenerate`, 'back where it was to');
  assert.match(await page.locator('.who').textContent(), /ada@acme/);
  const cookie = await session(context);
  assert.equal(cookie.httpOnly, true);
  assert.equal(cookie.sameSite, 'Lax');
  assert.equal(await page.evaluate(() => document.cookie), '');
  await page.goto(server);
  assert.equal(page.url(), tenant('acme'), 'their only tenant');
  await button(page, 'Sign out').click();
  await page.getByRole('heading', { level: 1, name: 'Sign in' }).waitFor();
  assert.equal(await session(context), undefined);
});

await visit({}, async (page) => {
  await page.goto(server);
  await link(page, 'Sign in').click();
  await atProvider(page, 'root');
  await page.getByRole('heading', { level: 1, name: 'Tenants' }).waitFor();
  for (const name of ['kovra-acme', 'kovra-globex']) await link(page, name).waitFor();
});

// Whom the provider knows, and no organisation is named for.
await visit({}, async (page, context) => {
  await page.goto(server);
  await link(page, 'Sign in').click();
  await atProvider(page, 'nobody');
  assert.match(await page.getByRole('alert').textContent(), /organisation/);
  assert.equal(await session(context), undefined);
  await link(page, 'Sign in').waitFor();
});

await done();
