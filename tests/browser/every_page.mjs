// Each page: its policy, its accessibility, its width, its keyboard.
import assert from 'node:assert/strict';
import { judge, judgeKeyboard } from './judge.mjs';
import { done, ids, server, signIn, tenant, visit } from './visit.mjs';

const pages = {
  admin: [
    '/tenants',
    '/tenants?search=kovra&state=disabled',
    '/tenants?search=nothing',
    '/audit',
    `/audit?tenant=${ids.acme}`,
    '/nothing',
  ].map((path) => server + path).concat(
    tenant('acme'),
    `${tenant('acme')}/configuration`,
    `${tenant('acme')}/disable`,
    `${tenant('acme')}/regenerate`,
    tenant('globex'),
    `${tenant('globex')}/configuration`,
    tenant('initech'),
    tenant('hooli'),
  ),
};

// As it is served: the policy holds, and nothing on the pages is against it.
await visit({}, async (page, context, complaints) => {
  await page.goto(`${server}/sign-in?ended`);
  await judgeKeyboard(page);
  await signIn(page, 'admin');
  for (const url of pages.admin) {
    await page.goto(url);
    await judgeKeyboard(page);
  }
  const answer = await page.goto(tenant('acme'));
  assert.match((await answer.allHeaders())['content-security-policy'], /default-src 'none'/);
  await page.evaluate(() => {
    const script = document.createElement('script');
    script.textContent = 'window.foreign = true';
    document.body.append(script);
  });
  assert.equal(await page.evaluate(() => window.foreign), undefined);
  for (let looks = 0; looks < 50 && !complaints.length; looks += 1) await page.waitForTimeout(100);
  assert.equal(complaints.length, 1, 'what is against the policy is noticed here');
  assert.match(complaints.pop(), /Content Security Policy/);
});

// axe is a script that the policy would not have.
await visit({ bypassCSP: true }, async (page) => {
  await page.goto(`${server}/sign-in?ended`);
  await judge(page);
  await signIn(page, 'admin');
  for (const url of pages.admin) {
    await page.goto(url);
    await judge(page);
  }
});

await done();
