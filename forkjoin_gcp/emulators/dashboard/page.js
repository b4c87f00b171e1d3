// Puts the present page in place of the shown one. Without JavaScript the page reloads itself.
const seconds = Number(document.body.dataset.refresh);

async function refresh() {
  if (!document.hidden && !String(getSelection())) {
    try {
      const answer = await fetch(location.search || "/");
      if (!answer.ok) throw new Error(answer.statusText);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const scrolled = [...document.querySelectorAll(".scroll")].map((each) => each.scrollTop);
      document.querySelector("main").replaceWith(page.querySelector("main"));
      document.querySelectorAll(".scroll").forEach((each, n) => (each.scrollTop = scrolled[n]));
    } catch {
      document.getElementById("gone").hidden = false;
    }
  }
  setTimeout(refresh, seconds * 1000);
}

setTimeout(refresh, seconds * 1000);
