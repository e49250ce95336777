// Pictures of the pages, for people.
import { awaitState, done, known, NARROW, server, signIn, tenant, visit } from './visit.mjs';

const shoot = (page, name, fullPage = false) =>
  page.screenshot({ path: `${known.folder}/${name}.png`, fullPage });

async function at(size, colorScheme, work) {
  await visit({ viewport: size, colorScheme }, work);
}

const DESK = { width: 1280, height: 860 };

await at({ width: 1280, height: 560 }, 'light', async (page) => {
  await page.goto(`${server}/sign-in`);
  await shoot(page, 'sign-in');
});

await at(DESK, 'light', async (page) => {
  await signIn(page, 'acme');
  await awaitState(page, 'enabled');
  await shoot(page, 'vpn');
  await page.goto(`${tenant('acme')}/configuration`);
  await shoot(page, 'qr-code', true);
});

await at(NARROW, 'dark', async (page) => {
  await signIn(page, 'acme');
  await awaitState(page, 'enabled');
  await shoot(page, 'vpn-phone');
});

await at(DESK, 'light', async (page) => {
  await signIn(page, 'admin');
  await shoot(page, 'tenants', true);
});

await done();
