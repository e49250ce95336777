// An OpenID provider with its own development pages, for the tests alone.
// Arguments: its port, and where its one client's browsers come back to.
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import Provider from 'oidc-provider';

const [port, redirect] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;

// Whoever signs in as NAME@ORGANISATION is that organisation's; root is an admin.
function claims(account) {
  const organisation = account.split('@')[1];
  return {
    sub: account,
    email: account,
    email_verified: true,
    ...(organisation ? { app: { organisation } } : {}),
    groups: account.startsWith('root') ? ['vpn-admins'] : [],
  };
}

// Another one at each start.
const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const key = { ...privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: 'RS256' };

const provider = new Provider(issuer, {
  clients: [{
    client_id: 'dashboard',
    client_secret: 'a secret: with/signs+',
    redirect_uris: [redirect],
    response_types: ['code'],
    grant_types: ['authorization_code'],
  }],
  jwks: { keys: [key] },
  cookies: { keys: [randomUUID()] },
  claims: { openid: ['sub', 'app', 'groups'], email: ['email', 'email_verified'] },
  // Into the ID token, and not to be asked for at the userinfo endpoint.
  conformIdTokenClaims: false,
  findAccount: (_, account) => ({ accountId: account, claims: () => claims(account) }),
  pkce: { required: () => true, methods: ['S256'] },
  ttl: { IdToken: 600 },
});

provider.listen(Number(port), '127.0.0.1', () => console.log(`listening at ${issuer}`));
