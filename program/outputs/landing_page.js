"use strict";
(() => {
  const root = document.documentElement;
  const status = document.querySelector("[role=status]");
  const languages = [...document.querySelectorAll("button[data-language]")];

  const remembered = () => {
    try {
      return localStorage.getItem("language");
    } catch {
      return null; // storage may be forbidden
    }
  };

  const show = (language) => {
    root.lang = language === "zh" ? "zh-Hans" : "en";
    document.title = root.dataset[language === "zh" ? "titleZh" : "titleEn"];
    for (const button of languages) {
      button.setAttribute("aria-pressed", String(button.dataset.language === language));
    }
  };

  const preferred = () => {
    for (const language of navigator.languages) {
      const name = language.slice(0, 2).toLowerCase();
      if (name === "zh" || name === "en") return name;
    }
    return "en";
  };

  const say = (done) => {
    const text = document.querySelector(
      `template[data-say="${done}"][data-language="${root.lang.slice(0, 2)}"]`,
    );
    status.textContent = text.content.textContent;
  };

  for (const button of languages) {
    button.addEventListener("click", () => {
      show(button.dataset.language);
      try {
        localStorage.setItem("language", button.dataset.language);
      } catch {
        // it lasts as long as the page
      }
    });
  }

  for (const button of document.querySelectorAll("button[data-copies]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copies);
      try {
        await navigator.clipboard.writeText(source.textContent);
        say("copied");
      } catch {
        // A page that came without TLS may not write to the clipboard.
        getSelection().selectAllChildren(source);
        say("selected");
      }
    });
  }

  show(remembered() ?? preferred());
  root.classList.add("scripted");
})();
