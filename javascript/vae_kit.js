// VAE Kit's panel inside a web UI: keeps the sentence about the active VAE true, and explains the dropdowns on hover.
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
        refreshSentences();
        setTimeout(() => waitForCheckpoint(POLL_MS), POLL_MS);
    });
    onOptionsChanged(refreshSentences);
})();
