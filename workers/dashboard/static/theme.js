// Sets the theme before anything is drawn. Shares its choice with Flower's own pages.
(() => {
  "use strict";
  const root = document.documentElement;
  const key = root.dataset.themeKey;
  const themes = ["system", "light", "dark"];

  function stored() {
    try {
      const theme = localStorage.getItem(key);
      return themes.includes(theme) ? theme : "system";
    } catch {
      return "system"; // storage may be forbidden
    }
  }

  function store(theme) {
    try {
      if (theme === "system") localStorage.removeItem(key);
      else localStorage.setItem(key, theme);
    } catch {
      // it holds until the page is left
    }
  }

  function apply(theme) {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${theme}`;
  }

  let theme = stored();
  apply(theme);
  document.addEventListener("DOMContentLoaded", () => {
    apply(theme);
    document.getElementById("theme").addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      store(theme);
      apply(theme);
    });
  });
})();
