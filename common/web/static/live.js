// Keeps a page of ours up to date: when the server says that something changed, the page is fetched
// again and its content put in place. What a person has typed, opened or focused stays.
"use strict";
(() => {
  const said = document.getElementById("live");
  const source = new EventSource(document.body.dataset.live);
  let fetching = false;
  let again = false;

  const typing = () => Boolean(document.activeElement?.closest("main form"));

  async function renew() {
    if (fetching || typing()) { again = true; return; }
    fetching = true;
    again = false;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, credentials: "same-origin" });
      if (answer.redirected || !answer.ok) { location.reload(); return; }
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const focused = document.activeElement?.id;
      const open = [...document.querySelectorAll("main details[open]")].map((one) => one.id);
      document.querySelector("main").replaceChildren(...page.querySelector("main").childNodes);
      open.forEach((id) => { if (id) document.getElementById(id)?.setAttribute("open", ""); });
      if (focused && focused !== "main") document.getElementById(focused)?.focus({ preventScroll: true });
      said.textContent = "Live. Renewed at " + new Date().toLocaleTimeString() + ".";
    } catch {
      said.textContent = "The connection is lost; this page tries again.";
    } finally {
      fetching = false;
    }
    if (again) renew();
  }

  source.addEventListener("open", () => { said.textContent = "Live."; });
  source.addEventListener("error", () => { said.textContent = "The connection is lost; this page tries again."; });
  source.addEventListener("changed", renew);
  document.addEventListener("focusout", () => setTimeout(() => { if (again) renew(); }, 0));
})();
