// The page works without this. It follows what changes, and copies.
'use strict';

const WAIT = { fast: 1000, slow: 10000 };

// Takes the parts that may change from the page as it now is.
async function follow() {
  const pace = document.querySelector('main')?.dataset.follow;
  if (!pace) return;
  await new Promise((done) => setTimeout(done, WAIT[pace]));
  if (document.visibilityState === 'visible') await refresh().catch(() => {});
  follow();
}

async function refresh() {
  const response = await fetch(location.href, { headers: { accept: 'text/html' } });
  // Signed out, or at the answer of a form.
  if (response.redirected) return location.replace(response.url);
  if (!response.ok) return;
  const fresh = new DOMParser().parseFromString(await response.text(), 'text/html');
  const main = document.querySelector('main');
  const next = fresh.querySelector('main');
  if (main.dataset.state !== next.dataset.state) {
    main.replaceWith(document.adoptNode(next));
    document.title = fresh.title;
    return;
  }
  for (const part of main.querySelectorAll('[data-live]')) {
    const now = next.querySelector(`[data-live="${part.dataset.live}"]`);
    if (now && now.innerHTML !== part.innerHTML) part.replaceChildren(...document.adoptNode(now).childNodes);
  }
}

async function copy(button) {
  const from = document.getElementById(button.dataset.copy);
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(from.textContent);
    button.textContent = 'Copied';
  } catch {
    // No permission, or no HTTPS: by hand, then.
    getSelection().selectAllChildren(from);
    button.textContent = 'Press Ctrl+C';
  }
  setTimeout(() => { button.textContent = before; }, 2000);
}

document.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-copy]');
  if (button) copy(button);
});

document.documentElement.classList.add('scripted');
follow();
