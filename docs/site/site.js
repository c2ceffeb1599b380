// What the theme leaves out for a keyboard and a screen reader: what scrolls takes the focus, and what is alike has names of its own.
function complete() {
  document.querySelector(".md-search").setAttribute("aria-label", "Search");
  document.querySelectorAll("pre > code, .md-typeset__scrollwrap").forEach((scrolled) => { scrolled.tabIndex = 0; });
  document.querySelectorAll("th:empty").forEach((corner) => { corner.setAttribute("role", "cell"); });
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => { nav.setAttribute("aria-label", `Code block ${i + 1}`); });
  document.querySelectorAll(".md-nav--secondary .md-nav").forEach((nav) => { nav.setAttribute("role", "none"); nav.removeAttribute("aria-label"); });
}
complete();
new MutationObserver(complete).observe(document.body, { childList: true, subtree: true });
