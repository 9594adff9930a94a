"use strict";
// The person of a page: what proves that a request is the page's own, and the end of their session.

const session = {
  token: "", user: "", isOpen: false, opening: null,

  // Find out who is signed in: 401 if nobody is.
  async open() {
    const response = await fetch("/web/session", { method: "POST" });
    if (response.ok) ({ token: session.token, user: session.user } = await response.json());
    session.isOpen ||= response.ok;
    return response;
  },

  // A request of this page; sent again if the person has signed in again meanwhile, in another tab.
  async post(path, type, body) {
    await (session.opening ??= session.open().catch((error) => { session.opening = null; throw error; }));
    const token = session.token;
    const send = () => fetch(path, { method: "POST", headers: { "Content-Type": type, "X-CSRF-Token": session.token }, body });
    const response = await send();
    if (response.status !== 403) return response;
    await session.open();
    return session.token === token ? response : send();
  },

  // Say that the session has ended, and offer to sign in again.
  offer(node) {
    const link = Object.assign(document.createElement("a"), { href: `/web/signin?next=${location.pathname}`, textContent: words.sign_in });
    node.replaceChildren(words.ended, " ", link);
    node.hidden = false;
  },
};

document.getElementById("sign-out")?.addEventListener("click", async () => {
  try {
    if (!(await session.post("/web/signout", "application/json", "{}")).ok) return;
  } catch {
    return;
  }
  session.isOpen = false;
  sessionStorage.clear();
  location.replace("/web/signin");
});
