// Puts the present page in place of the shown one. Without JavaScript the page reloads itself.
const seconds = Number(document.body.dataset.refresh);

async function refresh() {
  if (!document.hidden && !String(getSelection())) {
    try {
      const answer = await fetch("/");
      if (!answer.ok) throw new Error(answer.statusText);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(page.querySelector("main"));
    } catch {
      document.getElementById("gone").hidden = false;
    }
  }
  setTimeout(refresh, seconds * 1000);
}

setTimeout(refresh, seconds * 1000);
