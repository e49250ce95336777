// What a browser does to sign in, without one: follows redirects, keeps cookies,
// sends the provider's forms. Arguments: the server, the path to return to, and
// the account. Prints what it saw as JSON.

const [server, back, account] = process.argv.slice(2);
const jar = new Map(); // by origin

function cookies(url) {
  const { origin } = new URL(url);
  if (!jar.has(origin)) jar.set(origin, new Map());
  return jar.get(origin);
}

async function send(url, options = {}) {
  const kept = cookies(url);
  const headers = { ...options.headers };
  if (kept.size) headers.cookie = [...kept].map(([name, value]) => `${name}=${value}`).join('; ');
  const response = await fetch(url, { ...options, headers, redirect: 'manual' });
  for (const line of response.headers.getSetCookie()) {
    const [pair, ...attributes] = line.split('; ');
    const at = pair.indexOf('=');
    const gone = attributes.includes('Max-Age=0') || at === pair.length - 1;
    if (gone) kept.delete(pair.slice(0, at));
    else kept.set(pair.slice(0, at), pair.slice(at + 1));
  }
  return response;
}

// Until an answer that is no redirect, or leads back to where it was to.
async function follow(url, options) {
  let response = await send(url, options);
  for (let hops = 0; hops < 20; hops += 1) {
    const location = response.headers.get('location');
    if (!location) return { url, response };
    url = new URL(location, url).href;
    if (url === new URL(back, server).href) return { url, response };
    response = await send(url);
  }
  throw new Error('redirected for ever');
}

function form(fields) {
  const headers = { 'content-type': 'application/x-www-form-urlencoded' };
  return { method: 'POST', headers, body: new URLSearchParams(fields).toString() };
}

let step = await follow(`${server}/auth/login?return=${encodeURIComponent(back)}`);
// The login page, and then the one that asks for consent.
for (let pages = 0; pages < 4 && step.response.status === 200; pages += 1) {
  const page = await step.response.text();
  const action = page.match(/<form[^>]*action="([^"]+)"/)?.[1];
  const prompt = page.match(/name="prompt" value="([^"]+)"/)?.[1];
  if (!action || !prompt) break;
  const fields = prompt === 'login' ? { prompt, login: account, password: 'any' } : { prompt };
  step = await follow(new URL(action, step.url).href, form(fields));
}

const { response, url } = step;
const session = cookies(server).get('vpn-edge-session');
const own = session ? { cookie: `vpn-edge-session=${session}` } : {};
const read = await fetch(`${server}/v1/tenants`, { headers: own });
const bearer = await fetch(`${server}/v1/tenants`, { headers: { authorization: `Bearer ${session}` } });
const page = { ...own, 'sec-fetch-site': 'same-origin' };
const signOut = await fetch(`${server}/auth/logout`, { method: 'POST', headers: page, redirect: 'manual' });
console.log(JSON.stringify({
  url,
  status: response.status,
  body: response.status >= 400 ? await response.text() : null,
  cookies: [...cookies(server).keys()],
  algorithm: session ? JSON.parse(Buffer.from(session.split('.')[0], 'base64url')).alg : null,
  read: [read.status, await read.json()],
  bearer: bearer.status,
  signOut: [signOut.status, signOut.headers.get('set-cookie')],
}));
