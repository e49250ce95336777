// A browser at the pages, and what all scripts do there.
import assert from 'node:assert/strict';
import { mkdirSync, rmSync } from 'node:fs';
import { chromium } from 'playwright-core';

/** Of the suite: `server`, `tokens` and `ids` by organisation, `folder`. */
export const known = JSON.parse(process.argv[2]);
export const { server, tokens, ids } = known;

export const WIDE = { width: 1280, height: 800 };
export const NARROW = { width: 390, height: 844 };

const args = ['--no-sandbox', '--disable-dev-shm-usage'];
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args });

/**
 * Opens a window of its own, with no cookie, for `work`. What the pages complain
 * of, a violation of their policy above all, fails it; `complaints` is where.
 */
export async function visit(options, work) {
  const context = await browser.newContext({ viewport: WIDE, ...options });
  context.setDefaultTimeout(20_000);
  const complaints = [];
  context.on('console', (message) => {
    const { url } = message.location();
    if (message.type() !== 'error' || (url && !url.startsWith(server))) return;
    // A page that is an error's answer, as it should be.
    if (/^Failed to load resource: .* status of 4\d\d/.test(message.text())) return;
    complaints.push(message.text());
  });
  context.on('weberror', (error) => complaints.push(String(error.error())));
  try {
    await work(await context.newPage(), context, complaints);
    assert.deepEqual(complaints, []);
  } finally {
    await context.close();
  }
}

/** Ends the browser, which the script waits for. */
export const done = () => browser.close();

// Where the first gateway's namespace goes: on the first port.
const namespace = '/run/netns/vpn-edge-30000';

/** Has no gateway come up on the first port until `unhinder`. */
export const hinder = () => mkdirSync(`${namespace}/in-the-way`, { recursive: true });
export const unhinder = () => rmSync(namespace, { recursive: true });

export async function signIn(page, who, path = '/') {
  await page.goto(`${server}/sign-in?return=${encodeURIComponent(path)}`);
  await page.getByLabel('Token').fill(tokens[who]);
  await page.getByRole('button', { name: 'Sign in with the token' }).click();
  await page.getByRole('button', { name: 'Sign out' }).waitFor();
}

export const tenant = (who) => `${server}/tenants/${ids[who]}`;

export const state = (page) => page.getByRole('region', { name: 'VPN', exact: true }).getByRole('status');

export async function awaitState(page, wanted) {
  // A VPN that cannot be set up is failed after half a minute.
  const shown = state(page).filter({ hasText: new RegExp(`^${wanted}$`) });
  await shown.waitFor({ timeout: 45_000 });
}

export const button = (page, name) => page.getByRole('button', { name, exact: true });
export const link = (page, name) => page.getByRole('link', { name, exact: true });

/** What the API says to whoever has the token. */
export async function ask(who, path) {
  const headers = { authorization: `Bearer ${tokens[who]}` };
  const answer = await fetch(`${server}/v1/tenants/${ids[who]}${path}`, { headers });
  assert.equal(answer.status, 200);
  return answer;
}

export const status = async (who) => (await ask(who, '/vpn')).json();
export const configuration = async (who) => (await ask(who, '/vpn/config')).text();
