// Ctrl+Enter (or Cmd+Enter) in a prompt presses that tab's Generate, as in A1111.
(() => {
    const PROMPT = /^vae_kit_(txt2img|img2img)_/;

    document.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) {
            return;
        }
        const field = event.target.closest("[id^='vae_kit_']");
        const tab = field && PROMPT.exec(field.id);
        const button = tab && document.getElementById(`vae_kit_${tab[1]}_generate`);
        if (button) {
            event.preventDefault();
            // the field must have told its value before the button is pressed
            event.target.dispatchEvent(new Event("change", { bubbles: true }));
            setTimeout(() => button.click(), 0);
        }
    }, true);
})();
