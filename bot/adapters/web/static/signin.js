"use strict";
// Signs in with the token behind the # of a link, which no server and no preview of the link has seen.

const words = JSON.parse(document.body.dataset.words);
const $ = (id) => document.getElementById(id);

function show() {
  const hasToken = location.hash.length > 1;
  $("link").hidden = !hasToken;
  $("how").hidden = hasToken;
  if (hasToken) $("enter").focus();
}

function tell(text) {
  $("status").textContent = text;
  $("status").hidden = !text;
}

$("enter").addEventListener("click", async () => {
  $("enter").disabled = true;
  try {
    const response = await fetch("/web/signin", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ token: location.hash.slice(1), next: document.body.dataset.next }),
    });
    if (response.ok) {
      location.replace((await response.json()).next);
      return;
    }
    tell(await response.text());
    if (response.status === 403) {  // the link is of no use any more
      history.replaceState(null, "", location.pathname + location.search);
      show();
    }
  } catch {
    tell(words.offline);
  }
  $("enter").disabled = false;
});
addEventListener("hashchange", show);
show();
