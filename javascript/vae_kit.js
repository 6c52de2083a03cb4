// VAE Kit inside a web UI: keeps the panel's sentence about the active VAE true, explains the dropdowns on hover, and
// leads from a message in the panel to the VAE it names.
(function () {
    "use strict";

    const TABS = ["txt2img", "img2img"];
    const POLL_MS = 2000; // while the first checkpoint is still loading,
    const SLOWEST_POLL_MS = 15000; // which some web UIs only begin with the first job
    const SETTLE_MS = 150; // several options often change at once

    const find = (id) => gradioApp().querySelector(`#${id}`);

    const TOOLTIPS = {
        setting_sd_vae: "VAE used for all jobs. Automatic follows the rules, None is the checkpoint's own.",
        vae_kit_txt2img_refresh: "Look again which VAE is active",
        vae_kit_img2img_refresh: "Look again which VAE is active",
    };

    let timer = null;

    function refreshSentences() {
        clearTimeout(timer);
        timer = setTimeout(() => {
            for (const tab of TABS) {
                find(`vae_kit_${tab}_refresh`)?.click();
            }
        }, SETTLE_MS);
    }

    function waitForCheckpoint(delay) {
        if (!gradioApp().querySelector("[data-vae-kit-waiting]")) {
            return;
        }
        if (!document.hidden) {
            refreshSentences();
        }
        const next = Math.min(delay * 1.25, SLOWEST_POLL_MS);
        setTimeout(() => waitForCheckpoint(next), next);
    }

    // --- the tab "VAE Kit" ---

    const TAB = "VAE Kit";

    function tabButton() {
        const buttons = gradioApp().querySelectorAll("#tabs > .tab-nav button");
        return [...buttons].find((button) => button.textContent.trim() === TAB);
    }

    function wantedField() {
        return gradioApp().querySelector("#vae_kit_catalogue_wanted textarea, #vae_kit_catalogue_wanted input");
    }

    /** Lists the files again, and selects the VAE that is wanted, if there is one. */
    function lookAgain() {
        setTimeout(() => find("vae_kit_catalogue_look")?.click(), SETTLE_MS); // a field must have told its value before
    }

    /** Links in the panel that name a VAE lead to it; whoever opens the tab sees the files that are there now. */
    function followLinks() {
        gradioApp().addEventListener("click", (event) => {
            const link = event.target.closest?.("[data-vae-kit-entry]");
            const field = wantedField();
            if (link && field) {
                event.preventDefault();
                field.value = link.dataset.vaeKitEntry;
                updateInput(field);
                tabButton()?.click();
                lookAgain();
            }
        });
        onUiTabChange(() => {
            if (tabButton()?.classList.contains("selected") && !wantedField()?.value) {
                lookAgain();
            }
        });
    }

    function addTooltips() {
        for (const [id, text] of Object.entries(TOOLTIPS)) {
            const element = find(id);
            if (element && !element.title) {
                element.title = text;
            }
        }
    }

    onUiLoaded(() => {
        addTooltips();
        followLinks();
        refreshSentences();
        setTimeout(() => waitForCheckpoint(POLL_MS), POLL_MS);
    });
    onOptionsChanged(refreshSentences);
})();
